// Package authsvc lets people and collectors in: it keeps users and their
// sessions, enrols collectors, renews their certificates, and hands out access
// tokens.
//
// Invariants: a private key never leaves the collector. An act and its audit
// row are one transaction. What the database has committed is then published
// to the identity bucket, from where every verifier learns it; what could not
// be published is published later, and nothing is ever published that would
// take back a refusal. Access tokens are handed out without the database.
//
// The package must not know PostgreSQL or NATS; it sees both through the small
// interfaces below. No token, key or request goes into a log or an error.
package authsvc

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/httpserver"
	"pganalytics/pkg/httpserver/typed"
	"pganalytics/pkg/identity"
	"pganalytics/pkg/identity/ca"
)

// maxBodyBytes bounds every body of this service; a register body has about
// 1 KiB.
const maxBodyBytes = 64 << 10

// Config sets the service.
type Config struct {
	// CollectorURL is where collectors push: scheme, host and port of the
	// collector listener, told to them at enrolment. It has no default. If it is
	// wrong, enrolled collectors can't push.
	CollectorURL string
	// TokenURL is where collectors renew and get tokens: authsvc's own collector
	// listener. Defaults to CollectorURL, which is right where one listener
	// serves both.
	TokenURL string
	// CollectorInterval is how often a collector sends. One of which nothing has
	// been stored for three of them is offline. Defaults to 1m; at most 20m.
	CollectorInterval time.Duration
	// KeySettle is how long a new signing key must have been known here before
	// it is used: the other verifiers learn of it at the same time, but for
	// delays. Defaults to 5s.
	KeySettle time.Duration
	// Now is the service's clock. Defaults to time.Now.
	Now func() time.Time
}

const maxCollectorInterval = 20 * time.Minute

// Validate reports all faults.
func (c Config) Validate() error {
	errs := []error{checkURL("--collector-url", c.CollectorURL)}
	if c.TokenURL != "" {
		errs = append(errs, checkURL("--token-url", c.TokenURL))
	}
	if c.CollectorInterval < 0 || c.CollectorInterval > maxCollectorInterval {
		errs = append(errs, fmt.Errorf("collector interval %s: must be above 0 and at most %s", c.CollectorInterval, maxCollectorInterval))
	}
	if c.KeySettle < 0 {
		errs = append(errs, fmt.Errorf("key settle %s: must not be negative", c.KeySettle))
	}
	return errors.Join(errs...)
}

func checkURL(flag, value string) error {
	u, err := url.Parse(value)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%s %q: must be https://host[:port]", flag, value)
	}
	return nil
}

// CollectorStore keeps collectors and their certificates. Each method that
// changes something is one transaction, audit row included.
type CollectorStore interface {
	// Register consumes the enrolment token and stores collector and
	// certificate; see Registration. It errs with ErrEnrollmentRefused unless
	// the token is there, unused, in time and for this source, with
	// ErrNameTaken, ErrCollectorLocked and ErrCollectorDisabled.
	Register(ctx context.Context, r Registration) (Registered, error)
	// RepeatedRegistration returns the enrolment that this token, name and key
	// made before, if its certificate has not been seen in use. It errs with
	// ErrEnrollmentRefused if there is none.
	RepeatedRegistration(ctx context.Context, r Registration) (Registered, error)
	// Renew stores a certificate of the next generation, or locks the
	// collector; see Renewal.
	Renew(ctx context.Context, r Renewal) (Renewed, error)
	// MarkUsed notes when certificates, by thumbprint, were last seen in use.
	MarkUsed(ctx context.Context, lastUse map[string]time.Time) error
	// Directory returns all that verifiers must know: collectors, and the
	// revocations of certificates that end after the given time.
	Directory(ctx context.Context, endAfter time.Time) ([]identity.Collector, []identity.Revocation, error)
	// ListCollectors returns one page, by name, and how many there are in all.
	ListCollectors(ctx context.Context, q CollectorQuery) ([]Collector, int, error)
	// ChangeCollector does what an operator asked for. It errs with
	// ErrNoCollector and ErrStatusConflict.
	ChangeCollector(ctx context.Context, c Change) (Changed, error)
}

// TokenStore keeps enrolment tokens.
type TokenStore interface {
	// CreateEnrollmentToken stores the token and the audit row. It errs with
	// ErrNoCollector for a token that re-enrols one that is not there.
	CreateEnrollmentToken(ctx context.Context, t EnrollmentToken) error
	// EnrollmentToken returns the token of that id, or one that is not usable.
	EnrollmentToken(ctx context.Context, id string) (EnrollmentToken, error)
	// ListEnrollmentTokens returns one page, newest first, and how many there
	// are in all.
	ListEnrollmentTokens(ctx context.Context, page Page) ([]EnrollmentToken, int, error)
	// RevokeEnrollmentToken ends a token's use; a second time is no error. It
	// errs with ErrNoEnrollmentToken.
	RevokeEnrollmentToken(ctx context.Context, id string, by Act) error
}

// Directory is the identity bucket, to write to.
type Directory interface {
	Put(ctx context.Context, key string, value []byte) error
	// Revise puts what change makes of the present value, with nobody else's
	// value in between; nil leaves it.
	Revise(ctx context.Context, key string, change func(old []byte) []byte) error
	Delete(ctx context.Context, key string) error
}

// Certificate is an issued certificate as the store keeps it.
type Certificate struct {
	Thumbprint          string
	Serial              string
	KeyHash             [sha256.Size]byte
	DER                 []byte
	NotBefore, NotAfter time.Time
}

func storable(c *x509.Certificate) Certificate {
	return Certificate{
		Thumbprint: ca.Fingerprint(c), Serial: c.SerialNumber.Text(16), KeyHash: ca.KeyHash(c), DER: c.Raw,
		NotBefore: c.NotBefore, NotAfter: c.NotAfter,
	}
}

// Errors of the stores, as the sender sees them.
var (
	ErrEnrollmentRefused = fault.New(fault.Unauthenticated, "enrollment_token_invalid",
		"The enrolment token is unknown, used, or out of its time.")
	ErrNameTaken          = fault.New(fault.Conflict, "name_taken", "There is a collector of this name.")
	ErrCollectorLocked    = fault.New(fault.Forbidden, "collector_locked", "The collector is locked; an operator must unlock it.")
	ErrCollectorDisabled  = fault.New(fault.Forbidden, "collector_disabled", "The collector is disabled.")
	ErrNoCollector        = fault.New(fault.NotFound, "collector_not_found", "There is no such collector.")
	ErrNoEnrollmentToken  = fault.New(fault.NotFound, "enrollment_token_not_found", "There is no such enrolment token.")
	ErrStatusConflict     = fault.New(fault.Conflict, "status_conflict", "The collector's status does not allow this.")
	ErrCertificateUnknown = fault.New(fault.Unauthenticated, "certificate_unknown", "The certificate is not known here.")
)

// Needs is what the service works with. All of it is required.
type Needs struct {
	Collectors CollectorStore
	Tokens     TokenStore
	Users      UserStore
	APITokens  APITokenStore
	Audit      AuditStore
	Directory  Directory
	Snapshot   *identity.Snapshot // of the bucket that Directory writes to
	Verifier   *identity.Verifier // on top of Snapshot
	Signer     *identity.Signer
	Authority  *ca.Authority
	Log        *slog.Logger
	Registry   prometheus.Registerer
}

// Service answers authsvc's routes. Run must run beside them.
type Service struct {
	cfg Config
	Needs
	metrics *metrics

	// wake asks Run for a Reconcile. One slot: a second request before the
	// first is served asks for the same.
	wake chan struct{}

	// unpublished is set while something committed may not have reached the
	// bucket: it is then tried again without patience.
	unpublished atomic.Bool

	signing     signing      // of Run alone
	revokedSent atomic.Int64 // signing keys whose revocation was published

	flushing sync.Mutex
	mu       sync.Mutex
	used     map[string]time.Time // certificates seen in use that the store does not know of yet
	// usedTokens is the same of API tokens.
	usedTokens map[string]time.Time

	hasher   *hasher
	throttle *throttle
	refused  refusals
}

// New makes the service. It does nothing until its routes are called and Run
// runs.
func New(cfg Config, needs Needs) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("authsvc: %w", err)
	}
	if cfg.TokenURL == "" {
		cfg.TokenURL = cfg.CollectorURL
	}
	if cfg.CollectorInterval == 0 {
		cfg.CollectorInterval = time.Minute
	}
	if cfg.KeySettle == 0 {
		cfg.KeySettle = 5 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	hasher, err := newHasher()
	if err != nil {
		return nil, fmt.Errorf("authsvc: %w", err)
	}
	return &Service{
		cfg: cfg, Needs: needs, metrics: newMetrics(needs.Registry),
		wake: make(chan struct{}, 1), used: map[string]time.Time{}, usedTokens: map[string]time.Time{},
		hasher: hasher, throttle: newThrottle(cfg.Now), refused: refusals{counts: map[Refusal]int{}},
	}, nil
}

// UserRoutes adds what is reached without a client certificate.
func (s *Service) UserRoutes(r chi.Router) {
	r.Post("/api/v1/collectors/register", httpserver.Handle(s.register))
	r.Get("/api/v1/ca", httpserver.Handle(s.serverCA))
	s.routes(s.describe(r))
}

// routes adds those that are made of typed functions.
func (s *Service) routes(api *typed.API) {
	s.sessionRoutes(api)
	s.userRoutes(api)
	s.apiTokenRoutes(api)
	s.auditRoutes(api)
	s.adminRoutes(api)
}

// CollectorRoutes adds what belongs on the listener that demands a client
// certificate.
func (s *Service) CollectorRoutes(r chi.Router) {
	r.Post("/api/v1/collectors/renew", httpserver.Handle(s.renew))
	r.Post("/api/v1/collectors/token", httpserver.Handle(s.token))
}

// Ready errs with Unavailable while tokens can't be handed out.
func (s *Service) Ready() error {
	if err := s.Verifier.Ready(); err != nil {
		return err
	}
	if !s.Verifier.KnowsKey(s.Signer.Record().KID) {
		return errKeyUnpublished
	}
	return nil
}

var errKeyUnpublished = fault.New(fault.Unavailable, "signing_key_unpublished", "The signing key is not known to all verifiers yet.")

// serverCA answers with the CAs of the server certificates. Whoever asks
// compares the fingerprint with the one that the operator was shown.
func (s *Service) serverCA(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "application/x-pem-file")
	if _, err := w.Write(ca.EncodePEM(s.Authority.ServerCAs()...)); err != nil {
		return fmt.Errorf("write CA: %w", err)
	}
	return nil
}

// source returns the peer's address for the audit, or the zero Addr.
func source(r *http.Request) netip.Addr {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return peer.Addr().Unmap().WithZone("")
}

// parseCSR errs with csr_required and csr_invalid.
func parseCSR(text string) (*ca.Request, error) {
	if text == "" {
		return nil, &fault.Error{Class: fault.Invalid, Code: "csr_required", Detail: "A certificate signing request is required.",
			Fields: []fault.Field{{Pointer: "/csr", Code: "csr_required", Detail: "is missing"}}}
	}
	return ca.ParseRequest(text)
}
