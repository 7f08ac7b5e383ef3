package authsvc

import (
	"context"
	"net/http"
	"net/netip"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/httpserver/typed"
	"pganalytics/pkg/identity"
	"pganalytics/pkg/identity/ca"
)

// collectorAnswer is a collector in answers.
type collectorAnswer struct {
	ID                    uuid.UUID  `json:"id"`
	Name                  string     `json:"name"`
	Hostname              string     `json:"hostname"`
	Address               string     `json:"address"`
	Version               string     `json:"version"`
	Status                string     `json:"status" enum:"registered,active,offline,disabled,locked"`
	LastSeen              *time.Time `json:"last_seen"`
	CertificateThumbprint string     `json:"certificate_thumbprint"`
	CertificateExpiresAt  time.Time  `json:"certificate_expires_at"`
	ConfigVersion         int64      `json:"config_version"`
	CreatedAt             time.Time  `json:"created_at"`
	UpdatedAt             time.Time  `json:"updated_at"`
}

func showCollector(c Collector) collectorAnswer {
	return collectorAnswer{
		ID: c.ID, Name: c.Name, Hostname: c.Hostname, Address: c.Address, Version: c.Version,
		Status: c.Status.String(), LastSeen: optional(c.LastSeen),
		CertificateThumbprint: c.Thumbprint, CertificateExpiresAt: c.CertificateExpiresAt.UTC(), ConfigVersion: c.ConfigVersion,
		CreatedAt: c.CreatedAt.UTC(), UpdatedAt: c.UpdatedAt.UTC(),
	}
}

// enrollmentTokenAnswer is an enrolment token in answers, without its secret.
type enrollmentTokenAnswer struct {
	ID          string     `json:"id"`
	Status      string     `json:"status" enum:"usable,used,expired,revoked"`
	Name        string     `json:"name,omitempty" doc:"The only name that it enrols."`
	Names       []string   `json:"names,omitempty" doc:"The names that it enrols, each once."`
	UsedNames   []string   `json:"used_names,omitempty"`
	CIDR        string     `json:"cidr,omitempty" doc:"Where it may be used from."`
	CollectorID *uuid.UUID `json:"collector_id,omitempty" doc:"The collector that it enrols again."`
	CreatedBy   string     `json:"created_by"`
	CreatedAt   time.Time  `json:"created_at"`
	ExpiresAt   time.Time  `json:"expires_at"`
	UsedAt      *time.Time `json:"used_at"`
	RevokedAt   *time.Time `json:"revoked_at"`
}

func (s *Service) showEnrollmentToken(t EnrollmentToken) enrollmentTokenAnswer {
	a := enrollmentTokenAnswer{
		ID: t.ID, Status: t.Status(s.cfg.Now()), Name: t.BoundName, Names: t.Names, UsedNames: t.UsedNames,
		CreatedBy: t.CreatedBy, CreatedAt: t.CreatedAt.UTC(), ExpiresAt: t.ExpiresAt.UTC(),
		UsedAt: optional(t.UsedAt), RevokedAt: optional(t.RevokedAt),
	}
	if t.BoundSource.IsValid() {
		a.CIDR = t.BoundSource.String()
	}
	if t.CollectorID != uuid.Nil {
		a.CollectorID = &t.CollectorID
	}
	return a
}

// newTokenAnswer holds the secret; it is told this once. The fingerprint is
// what `collector enroll` needs beside it.
type newTokenAnswer struct {
	ID            string    `json:"id"`
	Token         string    `json:"token"`
	ExpiresAt     time.Time `json:"expires_at"`
	CAFingerprint string    `json:"ca_fingerprint"`
}

func (s *Service) showNewToken(e Enrollment) newTokenAnswer {
	return newTokenAnswer{
		ID: e.ID, Token: e.Token, ExpiresAt: e.ExpiresAt, CAFingerprint: ca.Fingerprint(s.Authority.ServerCAs()[0]),
	}
}

type collectorPath struct {
	ID uuid.UUID `path:"id"`
}

type collectorList struct {
	PageQuery
	Name   string `query:"name" maxLength:"200" doc:"Only the collector of this name."`
	Status string `query:"status" enum:"registered,active,offline,disabled,locked" doc:"Only collectors of this status."`
}

type unlockRequest struct {
	ID   uuid.UUID `path:"id"`
	Body *struct {
		TTLSeconds int `json:"ttl_seconds,omitempty" minimum:"1" maximum:"604800" default:"1800" doc:"How long the token is good."`
	}
}

type unlockAnswer struct {
	Collector       collectorAnswer `json:"collector"`
	EnrollmentToken newTokenAnswer  `json:"enrollment_token"`
}

type newTokenRequest struct {
	Body struct {
		Name        string     `json:"name,omitempty" maxLength:"200" doc:"The only name that it enrols."`
		Names       []string   `json:"names,omitempty" maxItems:"1000" doc:"The names that it enrols, each once; not together with name."`
		CIDR        string     `json:"cidr,omitempty" maxLength:"49" doc:"Where it may be used from, such as 10.1.0.0/16."`
		CollectorID *uuid.UUID `json:"collector_id,omitempty" doc:"The collector that it enrols again, under its name."`
		TTLSeconds  int        `json:"ttl_seconds,omitempty" minimum:"1" maximum:"604800" default:"1800" doc:"How long the token is good."`
	}
}

type tokenPath struct {
	ID string `path:"id" maxLength:"64"`
}

// adminRoutes adds what operators do with collectors and enrolment tokens.
func (s *Service) adminRoutes(api *typed.API) {
	const collectors, tokens = "collectors", "enrolment tokens"
	typed.Route(api, typed.Operation{
		ID: "list_collectors", Method: http.MethodGet, Path: "/api/v1/collectors", Tag: collectors, Summary: "List collectors by name.",
	}, s.getCollectors)
	typed.Route(api, typed.Operation{
		ID: "get_collector", Method: http.MethodGet, Path: "/api/v1/collectors/{id}", Tag: collectors, Summary: "Show a collector.",
	}, s.getCollector)
	for _, op := range []struct {
		operation Operation
		summary   string
	}{
		{Disable, "Refuse a collector until it is enabled."},
		{Enable, "Let a disabled collector in again."},
	} {
		typed.Route(api, typed.Operation{
			ID: op.operation.String() + "_collector", Method: http.MethodPost, Path: "/api/v1/collectors/{id}/" + op.operation.String(),
			Tag: collectors, Summary: op.summary,
		}, func(ctx context.Context, in *collectorPath) (*body[collectorAnswer], error) {
			return s.changeCollector(ctx, in.ID, op.operation)
		})
	}
	typed.Route(api, typed.Operation{
		ID: "unlock_collector", Method: http.MethodPost, Path: "/api/v1/collectors/{id}/unlock", Tag: collectors,
		Summary: "Revoke what a locked collector has and make a token that enrols it again.",
	}, s.unlockCollector)
	typed.Route(api, typed.Operation{
		ID: "delete_collector", Method: http.MethodDelete, Path: "/api/v1/collectors/{id}", Tag: collectors,
		Summary: "Revoke a collector's certificates and forget it; what it sent stays.",
	}, s.deleteCollector)

	typed.Route(api, typed.Operation{
		ID: "list_enrollment_tokens", Method: http.MethodGet, Path: "/api/v1/enrollment-tokens", Tag: tokens,
		Summary: "List enrolment tokens, newest first.",
	}, s.getEnrollmentTokens)
	typed.Route(api, typed.Operation{
		ID: "create_enrollment_token", Method: http.MethodPost, Path: "/api/v1/enrollment-tokens", Tag: tokens, Status: http.StatusCreated,
		Summary: "Make a token that enrols one collector once, or each of a list.",
	}, s.postEnrollmentToken)
	typed.Route(api, typed.Operation{
		ID: "revoke_enrollment_token", Method: http.MethodDelete, Path: "/api/v1/enrollment-tokens/{id}", Tag: tokens,
		Summary: "End a token's use.",
	}, s.deleteEnrollmentToken)
}

func (s *Service) getCollectors(ctx context.Context, in *collectorList) (*body[list[collectorAnswer]], error) {
	q := CollectorQuery{Page: in.page(), Name: in.Name}
	if in.Status != "" {
		var err error
		if q.Status, err = identity.ParseStatus(in.Status); err != nil {
			return nil, fault.New(fault.Invalid, "request_invalid", "There is no such status.")
		}
	}
	found, total, err := s.collectors(ctx, q)
	if err != nil {
		return nil, err
	}
	return listed(found, total, q.Page, showCollector), nil
}

func (s *Service) getCollector(ctx context.Context, in *collectorPath) (*body[collectorAnswer], error) {
	c, err := s.collector(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return answer(showCollector(c)), nil
}

func (s *Service) changeCollector(ctx context.Context, id uuid.UUID, o Operation) (*body[collectorAnswer], error) {
	if _, err := s.change(ctx, Change{CollectorID: id, Operation: o, By: s.by(ctx)}); err != nil {
		return nil, err
	}
	return s.getCollector(ctx, &collectorPath{id})
}

func (s *Service) unlockCollector(ctx context.Context, in *unlockRequest) (*body[unlockAnswer], error) {
	ttl := DefaultEnrollmentTTL
	if in.Body != nil {
		ttl = time.Duration(in.Body.TTLSeconds) * time.Second
	}
	made, _, err := s.unlock(ctx, in.ID, ttl, s.by(ctx))
	if err != nil {
		return nil, err
	}
	c, err := s.collector(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return answer(unlockAnswer{Collector: showCollector(c), EnrollmentToken: s.showNewToken(made)}), nil
}

func (s *Service) deleteCollector(ctx context.Context, in *collectorPath) (*struct{}, error) {
	_, err := s.change(ctx, Change{CollectorID: in.ID, Operation: Delete, By: s.by(ctx)})
	return nil, err
}

func (s *Service) getEnrollmentTokens(ctx context.Context, in *PageQuery) (*body[list[enrollmentTokenAnswer]], error) {
	found, total, err := s.Tokens.ListEnrollmentTokens(ctx, in.page())
	if err != nil {
		return nil, err
	}
	return listed(found, total, in.page(), s.showEnrollmentToken), nil
}

func (s *Service) postEnrollmentToken(ctx context.Context, in *newTokenRequest) (*body[newTokenAnswer], error) {
	by := s.by(ctx)
	r := EnrollmentRequest{
		BoundName: in.Body.Name, Names: in.Body.Names, TTL: time.Duration(in.Body.TTLSeconds) * time.Second,
		Actor: by.Actor, Source: by.Source, Now: by.At,
	}
	var fields []fault.Field
	if in.Body.CIDR != "" {
		var err error
		if r.BoundSource, err = netip.ParsePrefix(in.Body.CIDR); err != nil || r.BoundSource != r.BoundSource.Masked() {
			fields = append(fields, fault.Field{Pointer: "/cidr", Code: "value_invalid", Detail: "is not a network such as 10.1.0.0/16"})
			r.BoundSource = netip.Prefix{}
		}
	}
	if in.Body.CollectorID != nil {
		r.CollectorID = *in.Body.CollectorID
	}
	if err := r.Validate(); err != nil {
		fields = append(fields, fault.Field{Code: "value_invalid", Detail: "needs printable names without repetition, and one name, a list of them or a collector, not several of these"})
	}
	if len(fields) > 0 {
		return nil, &fault.Error{Class: fault.Invalid, Code: "body_invalid", Detail: "Some members are not acceptable.", Fields: fields}
	}
	made, err := CreateEnrollmentToken(ctx, s.Tokens, r)
	if err != nil {
		return nil, err
	}
	return answer(s.showNewToken(made)), nil
}

func (s *Service) deleteEnrollmentToken(ctx context.Context, in *tokenPath) (*struct{}, error) {
	return nil, s.Tokens.RevokeEnrollmentToken(ctx, in.ID, s.by(ctx))
}
