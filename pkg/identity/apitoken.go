package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"pganalytics/pkg/fault"
)

const (
	apiTokenPrefix = "apitoken." // in the bucket

	// The form of an API token: pga_<id>_<secret>, both in hex. The prefix lets
	// scanners for leaked secrets find it.
	apiTokenMark        = "pga_"
	apiTokenIDBytes     = 8
	apiTokenSecretBytes = 32

	pushScope = "push:"
	readScope = "read"
)

// Scopes say what an API token may do: "read", and "push:<collector id>" for
// one collector at most.
type Scopes []string

// ParseScopes errs on anything that is not a scope, on none, on one twice, and
// on two collectors.
func ParseScopes(scopes []string) (Scopes, error) {
	if len(scopes) == 0 {
		return nil, errors.New("at least one scope is needed")
	}
	pushes := 0
	for i, s := range scopes {
		id, push := strings.CutPrefix(s, pushScope)
		if push {
			pushes++
			if parsed, err := uuid.Parse(id); err != nil || parsed.String() != id {
				return nil, errors.New("push: is followed by the collector's id")
			}
		} else if s != readScope {
			return nil, errors.New("a scope is read or push:<collector id>")
		}
		if slices.Contains(scopes[:i], s) {
			return nil, errors.New("a scope stands there twice")
		}
	}
	if pushes > 1 {
		return nil, errors.New("a token pushes for one collector")
	}
	return Scopes(scopes), nil
}

// Read reports whether the scopes hold read.
func (s Scopes) Read() bool { return slices.Contains(s, readScope) }

// Push returns the collector that the scopes let push for, or the nil UUID.
func (s Scopes) Push() uuid.UUID {
	for _, scope := range s {
		if id, ok := strings.CutPrefix(scope, pushScope); ok {
			parsed, _ := uuid.Parse(id)
			return parsed
		}
	}
	return uuid.Nil
}

// CanPush reports whether the scopes let push at all.
func (s Scopes) CanPush() bool { return s.Push() != uuid.Nil }

// APIToken is what verifiers know of an API token; its secret is nowhere.
type APIToken struct {
	ID        string    `json:"id"`
	Hash      string    `json:"hash"` // SHA-256 of the whole token, in hex
	Scopes    Scopes    `json:"scopes"`
	ExpiresAt time.Time `json:"expires_at"`
	Revoked   bool      `json:"revoked"`
}

// Supersedes reports whether the record must replace the value that stands
// under its key: a token is made once and revoked once.
func (t APIToken) Supersedes(value []byte) bool {
	old, err := decodeAPIToken(apiTokenPrefix+t.ID, value)
	return err != nil || t.Revoked && !old.Revoked
}

// Record returns key and value for the bucket.
func (t APIToken) Record() (string, []byte, error) { return record(apiTokenPrefix+t.ID, t) }

// NewAPIToken makes a token: its id, and what its holder presents.
func NewAPIToken() (id, token string) {
	raw := make([]byte, apiTokenIDBytes+apiTokenSecretBytes)
	_, _ = rand.Read(raw) // never fails: the runtime ends the process instead
	id = hex.EncodeToString(raw[:apiTokenIDBytes])
	return id, apiTokenMark + id + "_" + hex.EncodeToString(raw[apiTokenIDBytes:])
}

// HashAPIToken returns what is stored of a token.
func HashAPIToken(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

func decodeAPIToken(key string, value []byte) (APIToken, error) {
	var t APIToken
	if err := json.Unmarshal(value, &t); err != nil {
		return t, err
	}
	if raw, err := hex.DecodeString(t.Hash); err != nil || len(raw) != sha256.Size || apiTokenPrefix+t.ID != key {
		return t, errors.New("record does not belong under its key or has no hash")
	}
	if _, err := ParseScopes(t.Scopes); err != nil {
		return t, err
	}
	return t, nil
}

// IsAPIToken reports whether the value of an Authorization header looks like an
// API token rather than an access token.
func IsAPIToken(authorization string) bool {
	_, token, _ := strings.Cut(authorization, " ")
	return strings.HasPrefix(token, apiTokenMark)
}

// VerifyAPIToken checks an API token from the header. It errs with
// Unauthenticated, with Forbidden if the token pushes for a collector that is
// disabled or locked, or Unavailable (see Ready). Which scope is needed is the
// caller's to check.
func (v *Verifier) VerifyAPIToken(authorization string) (Principal, error) {
	now := v.now()
	if err := v.snapshot.fresh(now, v.maxAge); err != nil {
		return Principal{}, err
	}
	scheme, token, _ := strings.Cut(authorization, " ")
	const length = len(apiTokenMark) + 2*apiTokenIDBytes + 1 + 2*apiTokenSecretBytes
	if !strings.EqualFold(scheme, "Bearer") || len(token) != length || !strings.HasPrefix(token, apiTokenMark) {
		return Principal{}, refuseAPIToken("no API token")
	}
	id, _, _ := strings.Cut(token[len(apiTokenMark):], "_")
	t, known := v.snapshot.apiToken(id)
	// Compared also if there is none: the answer takes as long.
	same := subtle.ConstantTimeCompare([]byte(t.Hash), []byte(HashAPIToken(token))) == 1
	switch {
	case !known || !same:
		return Principal{}, refuseAPIToken("no such token")
	case t.Revoked:
		return Principal{}, fault.New(fault.Unauthenticated, "token_revoked", "The token is revoked.")
	case !now.Before(t.ExpiresAt):
		return Principal{}, fault.New(fault.Unauthenticated, "token_expired", "The token has expired.")
	}
	p := Principal{TokenID: t.ID, Scopes: t.Scopes, CollectorID: t.Scopes.Push()}
	if p.CollectorID != uuid.Nil {
		c, known, _ := v.snapshot.lookup(p.CollectorID, "")
		if !known {
			return Principal{}, errUnknownCollector
		}
		if err := refuseStatus(c.Status); err != nil {
			return Principal{}, err
		}
		p.Hostname = c.Hostname
	}
	if v.onAPIToken != nil {
		v.onAPIToken(t.ID, now)
	}
	return p, nil
}

func refuseAPIToken(why string) error { return refuseToken(fmt.Errorf("api token: %s", why)) }
