package authsvc_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/authsvc/pgstore"
	"pganalytics/pkg/bus"
	"pganalytics/pkg/httpserver"
	"pganalytics/pkg/identity"
	"pganalytics/pkg/identity/ca"
	"pganalytics/pkg/internal/testlog"
	"pganalytics/pkg/internal/testnats"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	trustDomain  = "test.example"
	collectorURL = "https://collectors.example:8444"
	patience     = 20 * time.Second
)

// stack is authsvc on its two listeners, before a real database and a real
// bucket. Its clock can be moved; NATS and the database can be stopped.
type stack struct {
	t           *testing.T
	clock       *clock
	databaseURL string
	nats        *testnats.Server
	bus         *bus.Bus
	dir         string
	authority   *ca.Authority
	snapshot    *identity.Snapshot
	verifier    *identity.Verifier
	store       *pgstore.Store
	service     *authsvc.Service
	users       *httpserver.Server
	collectors  *httpserver.Server
	logs        *testlog.Buffer
	once        sync.Once
	one         *http.Client
}

type clock struct{ offset atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.offset.Load())) }
func (c *clock) advance(d time.Duration) { c.offset.Add(int64(d)) }

// following feeds the snapshot by the test's clock, as if NATS had confirmed it at that time.
type following struct {
	*identity.Snapshot
	clock *clock
}

func (f following) Confirm(time.Time) { f.Snapshot.Confirm(f.clock.now()) }

func newStack(t *testing.T, databaseURL string) *stack {
	t.Helper()
	return newStackAt(t, databaseURL, 0)
}

// newStackAt makes one whose clock is ahead of the machine's by offset.
func newStackAt(t *testing.T, databaseURL string, offset time.Duration) *stack {
	t.Helper()
	s := newGround(t, databaseURL, offset)
	s.open(authsvc.Config{CollectorURL: collectorURL})
	return s
}

// newGround makes what authsvc stands on.
func newGround(t *testing.T, databaseURL string, offset time.Duration) *stack {
	t.Helper()
	s := &stack{t: t, clock: &clock{}, databaseURL: databaseURL, nats: testnats.Start(t), logs: &testlog.Buffer{},
		dir: filepath.Join(t.TempDir(), "identity")}
	s.clock.advance(offset)
	var err error
	s.bus, err = bus.Connect(t.Context(), bus.Config{URL: s.nats.URL(), ConfirmEvery: 100 * time.Millisecond}, s.log(), prometheus.NewRegistry())
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.bus.Close(context.Background()) })
	require.NoError(t, s.bus.EnsureStreams(t.Context()))
	s.authority, err = ca.Init(ca.Options{Dir: s.dir, TrustDomain: trustDomain, ServerNames: []string{"127.0.0.1"}, Now: s.clock.now})
	require.NoError(t, err)
	s.store, err = pgstore.Open(t.Context(), databaseURL)
	require.NoError(t, err)
	t.Cleanup(s.store.Close)
	return s
}

func (s *stack) log() *slog.Logger {
	return slog.New(slog.NewTextHandler(s.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// open starts authsvc, on the addresses of the last time if there was one, and
// returns what stops it. Without a TokenURL it names its own listener, if the
// CollectorURL is a real one.
func (s *stack) open(cfg authsvc.Config) (stop func()) {
	t, log, reg := s.t, s.log(), prometheus.NewRegistry()
	t.Helper()
	addr := [2]string{"127.0.0.1:0", "127.0.0.1:0"}
	if s.users != nil {
		addr = [2]string{s.users.Addr().String(), s.collectors.Addr().String()}
	}
	var err error
	s.snapshot, err = identity.NewSnapshot(s.authority.Roots(), log, reg)
	require.NoError(t, err)
	s.verifier, err = identity.NewVerifier(identity.VerifierConfig{
		CollectorCAs: s.authority.CollectorCAs(), TrustDomain: trustDomain, Now: s.clock.now,
	}, s.snapshot)
	require.NoError(t, err)
	key, record := s.authority.SigningKey()
	signer, err := identity.NewSigner(identity.Tokens{}, key, record, s.clock.now)
	require.NoError(t, err)
	certificate, err := httpserver.LoadCertificate(filepath.Join(s.dir, ca.ServerCertFile), filepath.Join(s.dir, ca.ServerKeyFile), log)
	require.NoError(t, err)
	metrics := httpserver.NewMetrics(reg)
	s.users, err = httpserver.Listen(httpserver.Config{Name: "users", Addr: addr[0]}, httpserver.UserTLS(certificate), log, metrics)
	require.NoError(t, err)
	s.collectors, err = httpserver.Listen(httpserver.Config{Name: "collectors", Addr: addr[1]},
		httpserver.CollectorTLS(certificate, s.verifier.CollectorCAs, identity.RenewalGrace), log, metrics)
	require.NoError(t, err)
	if cfg.Now = s.clock.now; cfg.CollectorURL != collectorURL {
		cfg.TokenURL = s.collectors.URL()
	}
	s.service, err = authsvc.New(cfg, authsvc.Needs{
		Collectors: s.store, Tokens: s.store, Users: s.store, APITokens: s.store, Audit: s.store, Directory: s.bus.IdentityBucket(), Snapshot: s.snapshot, Verifier: s.verifier,
		Signer: signer, Authority: s.authority, Log: log, Registry: reg,
	})
	require.NoError(t, err)
	users, collectors := httpserver.NewRouter(), httpserver.NewRouter()
	s.service.UserRoutes(users)
	s.service.CollectorRoutes(collectors)

	snapshot := s.snapshot
	stops := []func(){
		s.background(func(ctx context.Context) error {
			return s.bus.IdentityBucket().Follow(ctx, following{snapshot, s.clock})
		}),
		s.background(s.service.Run),
		s.background(func(ctx context.Context) error { return s.users.Part(users).Run(ctx, func() {}) }),
		s.background(func(ctx context.Context) error { return s.collectors.Part(collectors).Run(ctx, func() {}) }),
	}
	s.eventually(func() bool { return s.service.Ready() == nil }, "ready")
	return func() {
		for _, stop := range stops {
			stop()
		}
	}
}

// background runs until it is stopped or the test ends, and waits for it to end.
func (s *stack) background(run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(s.t, <-done)
	})
	s.t.Cleanup(stop)
	return stop
}

func (s *stack) eventually(ok func() bool, what string) {
	s.t.Helper()
	require.Eventually(s.t, ok, patience, 10*time.Millisecond, what)
}

// known waits until the snapshot has this record of the collector.
func (s *stack) known(ok func(identity.Collector) bool, id uuid.UUID) {
	s.t.Helper()
	s.eventually(func() bool {
		o, _ := s.snapshot.Observed()
		c, known := o.Collectors[id]
		return known && ok(c)
	}, "published")
}

func (s *stack) enrolmentToken(r authsvc.EnrollmentRequest) string {
	s.t.Helper()
	r.Actor, r.Now = "cli:test", s.clock.now()
	e, err := authsvc.CreateEnrollmentToken(s.t.Context(), s.store, r)
	require.NoError(s.t, err)
	return e.Token
}

// answer is whatever a route answered.
type answer struct {
	status int
	header http.Header
	raw    string

	CollectorID          uuid.UUID `json:"collector_id"`
	Token                string    `json:"token"`
	Certificate          string    `json:"certificate"`
	CA                   string    `json:"ca"`
	ExpiresAt            time.Time `json:"expires_at"`
	CertificateExpiresAt time.Time `json:"certificate_expires_at"`
	CollectorURL         string    `json:"collector_url"`
	TokenURL             string    `json:"token_url"`
	PrivateKey           string    `json:"private_key"`

	Code   string `json:"code"`
	Errors []struct {
		Pointer, Code string
	} `json:"errors"`
}

// client returns one that trusts the server CA and shows the certificates.
func (s *stack) client(certs ...tls.Certificate) *http.Client {
	pool := x509.NewCertPool()
	for _, c := range s.authority.ServerCAs() {
		pool.AddCert(c)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: certs}, ForceAttemptHTTP2: true}
	s.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute}
}

func (s *stack) call(c *http.Client, method, url, authorization, body string) answer {
	s.t.Helper()
	a, err := s.tryCall(c, method, url, authorization, body)
	require.NoError(s.t, err)
	return a
}

func (s *stack) tryCall(c *http.Client, method, url, authorization, body string) (a answer, err error) {
	return s.tryCallContext(context.Background(), c, method, url, authorization, body)
}

func (s *stack) tryCallContext(ctx context.Context, c *http.Client, method, url, authorization, body string) (a answer, err error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader([]byte(body)))
	if err != nil {
		return a, err
	}
	req.Header.Set("Content-Type", "application/json")
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	res, err := c.Do(req)
	if err != nil {
		return a, err
	}
	defer func() { _ = res.Body.Close() }()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		return a, err
	}
	a = answer{status: res.StatusCode, header: res.Header, raw: string(raw)}
	if len(raw) > 0 && raw[0] == '{' {
		err = json.Unmarshal(raw, &a)
	}
	return a, err
}

func (s *stack) register(token, body string) answer {
	s.t.Helper()
	return s.call(s.client(), http.MethodPost, s.users.URL()+"/api/v1/collectors/register", "Bearer "+token, body)
}

// collector is an enrolled one, with what it keeps.
type collector struct {
	id   uuid.UUID
	cert tls.Certificate
}

func (s *stack) enrol(name string) collector {
	s.t.Helper()
	key := newKey(s.t)
	a := s.register(s.enrolmentToken(authsvc.EnrollmentRequest{}), registerBody(name, newCSR(s.t, &x509.CertificateRequest{}, key)))
	require.Equal(s.t, http.StatusCreated, a.status, a.raw)
	c := collector{id: a.CollectorID, cert: keyPair(s.t, a.Certificate, key)}
	s.known(func(identity.Collector) bool { return true }, c.id)
	return c
}

func (s *stack) renew(cert tls.Certificate, key crypto.Signer) answer {
	s.t.Helper()
	body, err := json.Marshal(map[string]string{"csr": newCSR(s.t, &x509.CertificateRequest{}, key)})
	require.NoError(s.t, err)
	return s.call(s.client(cert), http.MethodPost, s.collectors.URL()+"/api/v1/collectors/renew", "", string(body))
}

func (s *stack) token(cert tls.Certificate) answer {
	s.t.Helper()
	return s.call(s.client(cert), http.MethodPost, s.collectors.URL()+"/api/v1/collectors/token", "", "")
}

// query reads one value from the database.
func query[T any](s *stack, sql string, args ...any) T {
	s.t.Helper()
	conn, err := pgx.Connect(s.t.Context(), s.databaseURL)
	require.NoError(s.t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	var v T
	require.NoError(s.t, conn.QueryRow(s.t.Context(), sql, args...).Scan(&v))
	return v
}

func (s *stack) exec(sql string, args ...any) error {
	conn, err := pgx.Connect(s.t.Context(), s.databaseURL)
	require.NoError(s.t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	_, err = conn.Exec(s.t.Context(), sql, args...)
	return err
}

func newKey(tb testing.TB) crypto.Signer {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(tb, err)
	return key
}

func newCSR(tb testing.TB, template *x509.CertificateRequest, key crypto.Signer) string {
	tb.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	require.NoError(tb, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func registerBody(name, csr string) string {
	raw, _ := json.Marshal(map[string]string{"name": name, "hostname": name + ".example", "version": "1.0", "csr": csr})
	return string(raw)
}

func keyPair(tb testing.TB, certificate string, key crypto.Signer) tls.Certificate {
	tb.Helper()
	block, rest := pem.Decode([]byte(certificate))
	require.NotNil(tb, block)
	require.Empty(tb, rest)
	leaf, err := x509.ParseCertificate(block.Bytes)
	require.NoError(tb, err)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}
