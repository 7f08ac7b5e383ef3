// Package identity answers one question: who sent this request, and may they
// still? It holds principals, the tokens that name them, and the in-memory
// snapshot of collectors, revocations and signing keys that every request is
// checked against.
//
// Invariant: a request is let through only if the certificate comes from a
// collector CA and is in time, the token is signed by a key that the root
// vouches for and is bound to that very certificate, and the snapshot, recently
// confirmed, knows the collector and neither disables nor revokes anything of
// it. Whatever can't be decided is Unavailable, never Unauthenticated.
//
// The package must not talk to NATS or a database, and no error of it repeats
// any part of a token, certificate or header.
package identity

import (
	"context"
	"time"

	"github.com/google/uuid"
)

// Principal is who has shown who it is: a collector, a user, or the holder of
// an API token. What is not of its kind is zero.
type Principal struct {
	// CollectorID is also set for an API token that may push for a collector.
	CollectorID uuid.UUID
	Hostname    string    // as registered; informs only
	Thumbprint  string    // of the presented certificate, "sha256:<hex>"
	NotAfter    time.Time // of the presented certificate

	UserID    uuid.UUID
	Username  string
	Role      Role
	SessionID uuid.UUID
	// MustChangePassword says that the user may do nothing else before.
	MustChangePassword bool

	TokenID string // of an API token
	Scopes  Scopes
}

// Actor names the principal in the audit.
func (p Principal) Actor() string {
	switch {
	case p.UserID != uuid.Nil:
		return "user:" + p.UserID.String()
	case p.TokenID != "":
		return "api_token:" + p.TokenID
	case p.CollectorID != uuid.Nil:
		return "collector:" + p.CollectorID.String()
	default:
		return "anonymous"
	}
}

type principalKey struct{}

// WithPrincipal returns a context that carries the principal.
func WithPrincipal(ctx context.Context, p Principal) context.Context {
	return context.WithValue(ctx, principalKey{}, p)
}

// From returns the principal that the context carries. Without one it returns
// the zero Principal, whose nil CollectorID owns nothing.
func From(ctx context.Context) Principal {
	p, _ := ctx.Value(principalKey{}).(Principal)
	return p
}
