package authsvc

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"github.com/google/uuid"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/httpserver"
	"pganalytics/pkg/identity/ca"
)

// registerRequest is the body of POST collectors/register.
type registerRequest struct {
	Name     string `json:"name"`
	Hostname string `json:"hostname"`
	Address  string `json:"address"`
	Version  string `json:"version"`
	CSR      string `json:"csr"`
}

// registerAnswer is its answer. ExpiresAt is the token's end; the certificate
// says its own. CA is the bundle to verify our servers with. CollectorURL is
// where to push, TokenURL where to renew and to get tokens.
type registerAnswer struct {
	CollectorID          uuid.UUID `json:"collector_id"`
	Token                string    `json:"token"`
	Certificate          string    `json:"certificate"`
	CA                   string    `json:"ca"`
	ExpiresAt            time.Time `json:"expires_at"`
	CertificateExpiresAt time.Time `json:"certificate_expires_at"`
	CollectorURL         string    `json:"collector_url"`
	TokenURL             string    `json:"token_url"`
}

// Registration is an enrolment to be stored.
type Registration struct {
	TokenID   string
	TokenHash [sha256.Size]byte
	At        time.Time
	Source    netip.Addr

	CollectorID                      uuid.UUID
	Name, Hostname, Address, Version string
	Certificate                      Certificate
}

// register enrols a collector. The token is looked at before the body is read,
// so that nobody without one has us parse or sign anything; what counts is the
// UPDATE that consumes it in the end.
func (s *Service) register(w http.ResponseWriter, r *http.Request) error {
	answer, err := s.enrol(r)
	s.metrics.enrolments.WithLabelValues(outcome(err)).Inc()
	if err != nil {
		return fmt.Errorf("enrol collector: %w", err)
	}
	return httpserver.WriteJSON(w, http.StatusCreated, answer)
}

func (s *Service) enrol(r *http.Request) (*registerAnswer, error) {
	ctx := r.Context()
	tokenID, hash, err := parseEnrollmentToken(r.Header.Get("Authorization"))
	if err != nil {
		return nil, err
	}
	token, err := s.Tokens.EnrollmentToken(ctx, tokenID)
	if err != nil {
		return nil, err
	}
	now := s.cfg.Now().UTC()
	if !token.usable(hash, now) {
		return nil, ErrEnrollmentRefused
	}
	body, err := httpserver.ReadJSON[registerRequest](r, maxBodyBytes)
	if err != nil {
		return nil, err
	}
	if err := body.validate(); err != nil {
		return nil, err
	}
	if token.BoundName != "" && token.BoundName != body.Name {
		return nil, fault.New(fault.Forbidden, "enrollment_name_mismatch", "The enrolment token is for another name.")
	}
	request, err := parseCSR(body.CSR)
	if err != nil {
		return nil, err
	}
	id := uuid.New()
	cert, err := s.Authority.IssueCollector(id, request)
	if err != nil {
		return nil, err
	}
	access, expires, err := s.Signer.CollectorToken(id, body.Hostname, cert)
	if err != nil {
		return nil, err
	}
	collector, err := s.Collectors.Register(ctx, Registration{
		TokenID: tokenID, TokenHash: hash, At: now, Source: source(r),
		CollectorID: id, Name: body.Name, Hostname: body.Hostname, Address: body.Address, Version: body.Version,
		Certificate: storable(cert),
	})
	if err != nil {
		return nil, err
	}
	// From here on it is enrolled, come what may.
	s.publish(context.WithoutCancel(ctx), collector)
	s.Log.Info("collector enrolled", "collector_id", id, "name", body.Name, "enrollment_token", tokenID, "not_after", cert.NotAfter)
	return &registerAnswer{
		CollectorID: id, Token: access, ExpiresAt: expires,
		Certificate: string(ca.EncodePEM(cert)), CertificateExpiresAt: cert.NotAfter,
		CA: string(ca.EncodePEM(s.Authority.ServerCAs()...)), CollectorURL: s.cfg.CollectorURL, TokenURL: s.cfg.TokenURL,
	}, nil
}

// validate reports all faulty members at once. The CSR is looked at later.
func (r registerRequest) validate() error {
	var fields []fault.Field
	check := func(pointer, value string, least, most int) {
		switch {
		case len(value) < least:
			fields = append(fields, fault.Field{Pointer: pointer, Code: "required", Detail: "is missing"})
		case len(value) > most:
			fields = append(fields, fault.Field{Pointer: pointer, Code: "too_long", Detail: fmt.Sprintf("is longer than %d bytes", most)})
		case strings.TrimSpace(value) != value || strings.ContainsFunc(value, func(c rune) bool { return !unicode.IsPrint(c) }):
			fields = append(fields, fault.Field{Pointer: pointer, Code: "not_printable", Detail: "has characters that do not print, or space around it"})
		}
	}
	check("/name", r.Name, 1, maxNameBytes)
	check("/hostname", r.Hostname, 1, 253)
	check("/address", r.Address, 0, 255)
	check("/version", r.Version, 0, 100)
	if len(fields) > 0 {
		return &fault.Error{Class: fault.Invalid, Code: "body_invalid", Detail: "Some members are not acceptable.", Fields: fields}
	}
	return nil
}
