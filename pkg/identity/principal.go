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

// Principal is a collector that has shown who it is.
type Principal struct {
	CollectorID uuid.UUID
	Hostname    string    // as registered; informs only
	Thumbprint  string    // of the presented certificate, "sha256:<hex>"
	NotAfter    time.Time // of the presented certificate
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
