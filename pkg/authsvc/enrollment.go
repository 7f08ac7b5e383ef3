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
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/google/uuid"
)

const (
	// DefaultEnrollmentTTL is how long an enrolment token may be used if nobody
	// says otherwise.
	DefaultEnrollmentTTL = 30 * time.Minute
	// MaxEnrollmentTTL is how long it may be used at most.
	MaxEnrollmentTTL = 7 * 24 * time.Hour

	// MaxEnrollmentNames bounds the list of one token.
	MaxEnrollmentNames = 1000

	maxNameBytes = 200

	// The form of an enrolment token: pge_<id>_<secret>, both in hex. The
	// prefix lets scanners for leaked secrets find it.
	tokenPrefix      = "pge_"
	tokenIDBytes     = 8
	tokenSecretBytes = 32
)

// EnrollmentToken is a token as the store keeps it: its secret is nowhere.
type EnrollmentToken struct {
	ID          string
	Hash        [sha256.Size]byte // SHA-256 of the whole token
	BoundName   string            // empty: any name, or one of Names
	Names       []string          // each may be enrolled once
	BoundSource netip.Prefix      // zero: from anywhere
	CollectorID uuid.UUID         // zero: it enrols a new one; else that one again
	CreatedBy   string
	CreatedFrom netip.Addr // for the audit; not read back
	CreatedAt   time.Time
	ExpiresAt   time.Time

	// The rest only comes from the store.

	UsedAt    time.Time // zero: not; of a list, when its last name was
	UsedNames []string  // of Names
	RevokedAt time.Time // zero: not
	// Unanswered: an enrolment with this token was stored whose certificate
	// has not been seen in use. The answer may have been lost.
	Unanswered bool
}

// Status returns what the token is good for at the time.
func (t EnrollmentToken) Status(now time.Time) string {
	switch {
	case !t.RevokedAt.IsZero():
		return "revoked"
	case !t.UsedAt.IsZero():
		return "used"
	case !now.Before(t.ExpiresAt):
		return "expired"
	default:
		return "usable"
	}
}

// admits compares in constant time, and compares also for tokens that are not
// there or have ended: they have a zero hash or a true one, and the answer takes
// as long. repeat says that all the token may do is to have an answer repeated.
func (t EnrollmentToken) admits(hash [sha256.Size]byte, source netip.Addr, now time.Time) (repeat, ok bool) {
	same := subtle.ConstantTimeCompare(t.Hash[:], hash[:]) == 1
	from := !t.BoundSource.IsValid() || t.BoundSource.Contains(source)
	switch status := t.Status(now); {
	case !same || !from:
		return false, false
	case status == "usable":
		return false, true
	default:
		return true, status == "used" && t.Unanswered && now.Before(t.ExpiresAt)
	}
}

// EnrollmentRequest asks for a token.
type EnrollmentRequest struct {
	BoundName   string        // the only name it enrols; empty: any
	Names       []string      // the names that it enrols, each once; not together with BoundName
	BoundSource netip.Prefix  // where it may be used from; zero: anywhere
	CollectorID uuid.UUID     // the collector that it enrols again; zero: it enrols a new one
	TTL         time.Duration // 0: DefaultEnrollmentTTL; at most MaxEnrollmentTTL
	Actor       string        // for the audit: "user:<id>", "cli:<operating system user>"
	Source      netip.Addr    // of the request, for the audit
	Now         time.Time     // when it is made; zero: now
}

// Validate reports all faults.
func (r EnrollmentRequest) Validate() error {
	var errs []error
	if r.TTL < 0 || r.TTL > MaxEnrollmentTTL {
		errs = append(errs, fmt.Errorf("--ttl %s: must be above 0 and at most %s", r.TTL, MaxEnrollmentTTL))
	}
	if r.BoundName != "" && !validName(r.BoundName) {
		errs = append(errs, fmt.Errorf("--name %q: at most %d printable bytes without space around them", r.BoundName, maxNameBytes))
	}
	if r.BoundName != "" && len(r.Names) > 0 || r.CollectorID != uuid.Nil && len(r.Names) > 0 {
		errs = append(errs, errors.New("a list of names goes with neither one name nor one collector"))
	}
	if len(r.Names) > MaxEnrollmentNames {
		errs = append(errs, fmt.Errorf("%d names: at most %d", len(r.Names), MaxEnrollmentNames))
	}
	if slices.ContainsFunc(r.Names, func(name string) bool { return !validName(name) }) {
		errs = append(errs, fmt.Errorf("names: each must have 1 to %d printable bytes without space around them", maxNameBytes))
	}
	if sorted := slices.Sorted(slices.Values(r.Names)); len(slices.Compact(sorted)) != len(r.Names) {
		errs = append(errs, errors.New("names: one stands there twice"))
	}
	if r.BoundSource.IsValid() && r.BoundSource != r.BoundSource.Masked() {
		errs = append(errs, fmt.Errorf("cidr %s: has bits beyond its length", r.BoundSource))
	}
	if r.Actor == "" {
		errs = append(errs, errors.New("actor: must not be empty"))
	}
	return errors.Join(errs...)
}

func validName(name string) bool {
	return name != "" && len(name) <= maxNameBytes && strings.TrimSpace(name) == name &&
		!strings.ContainsFunc(name, func(c rune) bool { return !unicode.IsPrint(c) })
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

// CreateEnrollmentToken makes a token that enrols one collector once, or each
// of a list of names. It needs the store alone, so that the command line can
// use it with no service running.
func CreateEnrollmentToken(ctx context.Context, store TokenStore, r EnrollmentRequest) (Enrollment, error) {
	made, stored, err := newEnrollmentToken(r)
	if err == nil {
		err = store.CreateEnrollmentToken(ctx, stored)
	}
	if err != nil {
		return Enrollment{}, fmt.Errorf("create enrolment token: %w", err)
	}
	return made, nil
}

// newEnrollmentToken makes the token and what is stored of it.
func newEnrollmentToken(r EnrollmentRequest) (Enrollment, EnrollmentToken, error) {
	if err := r.Validate(); err != nil {
		return Enrollment{}, EnrollmentToken{}, err
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
	return e, EnrollmentToken{
		ID: e.ID, Hash: sha256.Sum256([]byte(e.Token)), BoundName: r.BoundName, Names: r.Names,
		BoundSource: r.BoundSource, CollectorID: r.CollectorID,
		CreatedBy: r.Actor, CreatedFrom: r.Source, CreatedAt: created, ExpiresAt: e.ExpiresAt,
	}, nil
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
