package authsvc

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
	"unicode"
)

const (
	// DefaultEnrollmentTTL is how long an enrolment token is good unless it is
	// said otherwise.
	DefaultEnrollmentTTL = 30 * time.Minute

	// MaxEnrollmentTTL is the longest that may be said.
	MaxEnrollmentTTL = 7 * 24 * time.Hour

	maxNameBytes = 200

	// The form of an enrolment token: pge_<id>_<secret>, both in hex. The
	// prefix lets scanners for leaked secrets find it.
	tokenPrefix      = "pge_"
	tokenIDBytes     = 8
	tokenSecretBytes = 32
)

// EnrollmentToken is a token as the store keeps it: its secret is nowhere.
type EnrollmentToken struct {
	ID        string
	Hash      [sha256.Size]byte // SHA-256 of the whole token
	BoundName string            // empty: any name
	CreatedBy string
	CreatedAt time.Time
	ExpiresAt time.Time
	Spent     bool // used or revoked
}

// usable compares in constant time, and compares also for tokens that are not
// there, used or expired: they have a zero hash or a true one, and the answer
// takes as long.
func (t EnrollmentToken) usable(hash [sha256.Size]byte, now time.Time) bool {
	same := subtle.ConstantTimeCompare(t.Hash[:], hash[:]) == 1
	return same && !t.Spent && now.Before(t.ExpiresAt)
}

// EnrollmentRequest asks for a token.
type EnrollmentRequest struct {
	BoundName string        // the only name it enrols; empty: any
	TTL       time.Duration // 0: DefaultEnrollmentTTL; at most MaxEnrollmentTTL
	Actor     string        // for the audit: "user:<id>", "cli:<operating system user>"
	Now       time.Time     // when it is made; zero: now
}

// Validate reports all faults.
func (r EnrollmentRequest) Validate() error {
	var errs []error
	if r.TTL < 0 || r.TTL > MaxEnrollmentTTL {
		errs = append(errs, fmt.Errorf("--ttl %s: must be above 0 and at most %s", r.TTL, MaxEnrollmentTTL))
	}
	if len(r.BoundName) > maxNameBytes || strings.TrimSpace(r.BoundName) != r.BoundName ||
		strings.ContainsFunc(r.BoundName, func(c rune) bool { return !unicode.IsPrint(c) }) {
		errs = append(errs, fmt.Errorf("--name %q: at most %d printable bytes without space around them", r.BoundName, maxNameBytes))
	}
	if r.Actor == "" {
		errs = append(errs, errors.New("actor: must not be empty"))
	}
	return errors.Join(errs...)
}

// Enrollment is a new token, shown once and stored nowhere.
type Enrollment struct {
	ID        string
	Token     string
	ExpiresAt time.Time
}

// LogValue keeps the token out of logs.
func (e Enrollment) LogValue() slog.Value { return slog.StringValue(e.ID) }

// String keeps the token out of messages.
func (e Enrollment) String() string { return tokenPrefix + e.ID + "_[redacted]" }

// CreateEnrollmentToken makes a token that enrols one collector once. It needs
// the store alone, so that the command line can use it with no service running.
func CreateEnrollmentToken(ctx context.Context, store TokenStore, r EnrollmentRequest) (Enrollment, error) {
	if err := r.Validate(); err != nil {
		return Enrollment{}, fmt.Errorf("create enrolment token: %w", err)
	}
	if r.TTL == 0 {
		r.TTL = DefaultEnrollmentTTL
	}
	if r.Now.IsZero() {
		r.Now = time.Now()
	}
	// Microseconds are what the database keeps; the limit of 7 days is checked there as well.
	created := r.Now.UTC().Truncate(time.Microsecond)
	e := Enrollment{ID: randomHex(tokenIDBytes), ExpiresAt: created.Add(r.TTL)}
	e.Token = tokenPrefix + e.ID + "_" + randomHex(tokenSecretBytes)
	err := store.CreateEnrollmentToken(ctx, EnrollmentToken{
		ID: e.ID, Hash: sha256.Sum256([]byte(e.Token)), BoundName: r.BoundName,
		CreatedBy: r.Actor, CreatedAt: created, ExpiresAt: e.ExpiresAt,
	})
	if err != nil {
		return Enrollment{}, fmt.Errorf("create enrolment token: %w", err)
	}
	return e, nil
}

// parseEnrollmentToken returns id and hash of the token in the header. What
// can't be a token is refused without asking the store.
func parseEnrollmentToken(authorization string) (id string, hash [sha256.Size]byte, err error) {
	scheme, token, _ := strings.Cut(authorization, " ")
	const length = len(tokenPrefix) + 2*tokenIDBytes + 1 + 2*tokenSecretBytes
	if !strings.EqualFold(scheme, "Bearer") || len(token) != length || !strings.HasPrefix(token, tokenPrefix) {
		return "", hash, ErrEnrollmentRefused
	}
	id, secret, _ := strings.Cut(token[len(tokenPrefix):], "_")
	if !isHex(id, tokenIDBytes) || !isHex(secret, tokenSecretBytes) {
		return "", hash, ErrEnrollmentRefused
	}
	return id, sha256.Sum256([]byte(token)), nil
}

func isHex(s string, size int) bool {
	raw, err := hex.DecodeString(s)
	return err == nil && len(raw) == size
}

func randomHex(size int) string {
	raw := make([]byte, size)
	_, _ = rand.Read(raw) // never fails: the runtime ends the process instead
	return hex.EncodeToString(raw)
}
