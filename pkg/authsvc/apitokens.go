package authsvc

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"time"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/httpserver/typed"
	"pganalytics/pkg/identity"
)

const (
	defaultAPITokenDays = 90
	maxAPITokenDays     = 366
)

// APIToken is a token as the store keeps it; its secret is nowhere.
type APIToken struct {
	ID         string
	Name       string
	Hash       string // see identity.HashAPIToken
	Scopes     identity.Scopes
	CreatedBy  string
	CreatedAt  time.Time
	ExpiresAt  time.Time
	RevokedAt  time.Time // zero: not
	LastUsedAt time.Time // zero: never; late by some seconds
}

// Known returns what verifiers must know of the token.
func (t APIToken) Known() identity.APIToken {
	return identity.APIToken{ID: t.ID, Hash: t.Hash, Scopes: t.Scopes, ExpiresAt: t.ExpiresAt, Revoked: !t.RevokedAt.IsZero()}
}

// APITokenStore keeps API tokens.
type APITokenStore interface {
	// CreateAPIToken errs with ErrNoCollector for a scope of one that is not
	// there.
	CreateAPIToken(ctx context.Context, t APIToken, by Act) error
	// ListAPITokens returns one page, newest first, and how many there are.
	ListAPITokens(ctx context.Context, page Page) ([]APIToken, int, error)
	// RevokeAPIToken ends a token's use; a second time is no error. It errs
	// with ErrNoAPIToken.
	RevokeAPIToken(ctx context.Context, id string, by Act) (APIToken, error)
	// MarkAPITokens notes when tokens, by id, were last used.
	MarkAPITokens(ctx context.Context, lastUse map[string]time.Time) error
}

// ErrNoAPIToken is an error of the store, as the sender sees it.
var ErrNoAPIToken = fault.New(fault.NotFound, "api_token_not_found", "There is no such API token.")

// apiTokenView is an API token in answers. Token is there once, at creation.
type apiTokenView struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	Token     string     `json:"token,omitempty"`
	Scopes    []string   `json:"scopes"`
	Status    string     `json:"status" enum:"active,expired,revoked"`
	CreatedBy string     `json:"created_by"`
	CreatedAt time.Time  `json:"created_at"`
	ExpiresAt time.Time  `json:"expires_at"`
	RevokedAt *time.Time `json:"revoked_at"`
	LastUsed  *time.Time `json:"last_used"`
}

func (s *Service) viewAPIToken(t APIToken) apiTokenView {
	status := "active"
	switch {
	case !t.RevokedAt.IsZero():
		status = "revoked"
	case !s.cfg.Now().Before(t.ExpiresAt):
		status = "expired"
	}
	return apiTokenView{
		ID: t.ID, Name: t.Name, Scopes: t.Scopes, Status: status, CreatedBy: t.CreatedBy,
		CreatedAt: t.CreatedAt.UTC(), ExpiresAt: t.ExpiresAt.UTC(), RevokedAt: optional(t.RevokedAt), LastUsed: optional(t.LastUsedAt),
	}
}

func optional(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

type newAPITokenInput struct {
	Body struct {
		Name          string   `json:"name" minLength:"1" maxLength:"200" doc:"What it is for."`
		Scopes        []string `json:"scopes" minItems:"1" maxItems:"2" doc:"read, and push:<collector id> for one collector at most."`
		ExpiresInDays int      `json:"expires_in_days,omitempty" minimum:"1" maximum:"366" doc:"Defaults to 90."`
	}
}

type apiTokenID struct {
	ID string `path:"id" minLength:"1" maxLength:"64"`
}

func (s *Service) apiTokenRoutes(api *typed.API) {
	typed.Route(api, typed.Operation{
		ID: "list_api_tokens", Method: http.MethodGet, Path: "/api/v1/tokens", Tag: "API tokens", Summary: "List API tokens, newest first.",
	}, func(ctx context.Context, in *PageQuery) (*body[list[apiTokenView]], error) {
		found, total, err := s.APITokens.ListAPITokens(ctx, in.page())
		if err != nil {
			return nil, err
		}
		return listed(found, total, in.page(), s.viewAPIToken), nil
	})
	typed.Route(api, typed.Operation{
		ID: "create_api_token", Method: http.MethodPost, Path: "/api/v1/tokens", Tag: "API tokens", Status: http.StatusCreated,
		Summary: "Make an API token; its secret is in this answer and nowhere else.",
	}, s.createAPIToken)
	typed.Route(api, typed.Operation{
		ID: "revoke_api_token", Method: http.MethodDelete, Path: "/api/v1/tokens/{id}", Tag: "API tokens", Summary: "Revoke an API token.",
	}, func(ctx context.Context, in *apiTokenID) (*struct{}, error) {
		by := s.by(ctx)
		t, err := s.APITokens.RevokeAPIToken(ctx, in.ID, by)
		if err != nil {
			return nil, err
		}
		s.publishPeople(ctx, identity.People{APITokens: map[string]identity.APIToken{t.ID: t.Known()}})
		s.Log.Info("api token revoked", "api_token", t.ID, "actor", by.Actor)
		return nil, nil
	})
}

func (s *Service) createAPIToken(ctx context.Context, in *newAPITokenInput) (*body[apiTokenView], error) {
	scopes, err := identity.ParseScopes(in.Body.Scopes)
	if err != nil {
		return nil, invalid("/scopes", "value_invalid", err.Error())
	}
	if !validName(in.Body.Name) {
		return nil, invalid("/name", "not_printable", "has characters that do not print, or space around it")
	}
	by := s.by(ctx)
	days := in.Body.ExpiresInDays
	if days == 0 {
		days = defaultAPITokenDays
	}
	by.At = by.At.Truncate(time.Microsecond)
	id, token := identity.NewAPIToken()
	t := APIToken{
		ID: id, Name: in.Body.Name, Hash: identity.HashAPIToken(token), Scopes: scopes, CreatedBy: by.Actor,
		CreatedAt: by.At, ExpiresAt: by.At.Add(time.Duration(days) * 24 * time.Hour),
	}
	if err := s.APITokens.CreateAPIToken(ctx, t, by); err != nil {
		return nil, err
	}
	s.publishPeople(ctx, identity.People{APITokens: map[string]identity.APIToken{id: t.Known()}})
	s.Log.Info("api token made", "api_token", id, "actor", by.Actor)
	view := s.viewAPIToken(t)
	view.Token = token
	return answer(view), nil
}

// invalid is a fault at one place of the body.
func invalid(pointer, code, detail string) error {
	return &fault.Error{Class: fault.Invalid, Code: "body_invalid", Detail: "Some members are not acceptable.",
		Fields: []fault.Field{{Pointer: pointer, Code: code, Detail: detail}}}
}

// APITokenUsed remembers that an API token was used until Run has told the
// store. Only tokens of ours get here, so the map is bounded by their number.
func (s *Service) APITokenUsed(id string, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.usedTokens[id] = at.UTC()
}

// flushUsedTokens tells the store; see flushUsed.
func (s *Service) flushUsedTokens(ctx context.Context) error {
	s.mu.Lock()
	batch := s.usedTokens
	s.usedTokens = map[string]time.Time{}
	s.mu.Unlock()
	if len(batch) == 0 {
		return nil
	}
	err := s.APITokens.MarkAPITokens(ctx, batch)
	if err == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.Copy(batch, s.usedTokens) // what came meanwhile is newer
	s.usedTokens = batch
	return fmt.Errorf("note API tokens in use: %w", err)
}
