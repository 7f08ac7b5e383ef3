package service

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/authsvc/pgstore"
	"pganalytics/pkg/bus"
	"pganalytics/pkg/cmdline"
	"pganalytics/pkg/identity"
	"pganalytics/pkg/identity/access"
	"pganalytics/pkg/identity/ca"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/internal/testnats"
)

// town is one running installation and everybody who might knock.
type town struct {
	t         *testing.T
	endpoints []Endpoints
	nats      string // URL of the stream, if it has processes of its own
	database  string // URL
	store     *pgstore.Store
	bus       *bus.Bus
	signer    *identity.Signer
	servers   *x509.CertPool
	users     map[identity.Role]authsvc.User

	collector   uuid.UUID
	certificate tls.Certificate
}

// fill parses args into cfg as the programs do.
func fill(t *testing.T, cfg any, args ...string) {
	t.Helper()
	_, err := cmdline.Parse("test", "", cfg, args, io.Discard, io.Discard)
	require.NoError(t, err)
}

// start runs a process until the test ends and returns its addresses.
func start(t *testing.T, run func(ctx context.Context, onReady func(Endpoints)) error) Endpoints {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan Endpoints, 1), make(chan error, 1)
	go func() { ended <- run(ctx, func(e Endpoints) { ready <- e }) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	select {
	case e := <-ready:
		return e
	case err := <-ended:
		ended <- err
		require.NoError(t, err)
	case <-time.After(time.Minute):
		require.Fail(t, "not ready")
	}
	return Endpoints{}
}

// serveTown runs all services in one process.
func serveTown(t *testing.T) *town {
	t.Helper()
	dir, database := t.TempDir(), testdb.Empty(t)
	urlFile := filepath.Join(dir, "url")
	require.NoError(t, os.WriteFile(urlFile, []byte(database), 0o600))
	cfg := struct{ Serve }{}
	fill(t, &cfg, "--data-dir", filepath.Join(dir, "data"), "--hosts", "127.0.0.1", "--database-url-file", urlFile,
		"--users-listen", "127.0.0.1:0", "--collectors-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0",
		"--nats-batches-max-bytes", "67108864", "--nats-dead-letters-max-bytes", "16777216", "--log-level", "error")
	e := start(t, func(ctx context.Context, onReady func(Endpoints)) error {
		return RunServe(ctx, cfg.Serve, io.Discard, onReady)
	})
	b, err := (&Installation{DataDir: cfg.DataDir, Timeout: 10 * time.Second}).Bus(t.Context(), io.Discard)
	require.NoError(t, err)
	t.Cleanup(func() { _ = b.Close(context.Background()) })
	return newTown(t, filepath.Join(cfg.DataDir, pkiDir), database, b, e)
}

// splitTown runs authsvc and gateway as processes of their own would.
func splitTown(t *testing.T) *town {
	t.Helper()
	dir, database, nats := t.TempDir(), testdb.New(t), testnats.Start(t)
	urlFile, pki := filepath.Join(dir, "url"), filepath.Join(dir, "pki")
	require.NoError(t, os.WriteFile(urlFile, []byte(database), 0o600))
	_, err := ca.Init(ca.Options{Dir: pki, TrustDomain: "pganalytics", ServerNames: []string{"127.0.0.1"}})
	require.NoError(t, err)
	stream := []string{"--nats-url", nats.URL(), "--nats-batches-max-bytes", "67108864", "--nats-dead-letters-max-bytes", "16777216",
		"--admin-listen", "127.0.0.1:0", "--log-level", "error"}
	listener := func(name string) []string {
		return []string{"--" + name + "-listen", "127.0.0.1:0", "--" + name + "-tls-cert", filepath.Join(pki, ca.ServerCertFile),
			"--" + name + "-tls-key", filepath.Join(pki, ca.ServerKeyFile)}
	}
	b, err := bus.Connect(t.Context(), bus.Config{URL: nats.URL(), BatchesMaxBytes: 67108864, DeadLettersMaxBytes: 16777216}, commandLog(io.Discard), prometheus.NewRegistry())
	require.NoError(t, err)
	t.Cleanup(func() { _ = b.Close(context.Background()) })
	require.NoError(t, b.EnsureStreams(t.Context()))
	authCfg, gatewayCfg := struct{ Auth }{}, struct{ Gateway }{}
	fill(t, &authCfg, slices.Concat(stream, listener("users"), listener("collectors"),
		[]string{"--database-url-file", urlFile, "--pki-dir", pki, "--collector-url", "https://127.0.0.1:1"})...)
	fill(t, &gatewayCfg, slices.Concat(stream, listener("collectors"),
		[]string{"--collector-ca", filepath.Join(pki, ca.CollectorCAFile), "--issuer-root", filepath.Join(pki, ca.RootFile)})...)
	auth := start(t, func(ctx context.Context, onReady func(Endpoints)) error {
		return RunAuth(ctx, authCfg.Auth, io.Discard, onReady)
	})
	gateway := start(t, func(ctx context.Context, onReady func(Endpoints)) error {
		return RunGateway(ctx, gatewayCfg.Gateway, io.Discard, onReady)
	})
	n := newTown(t, pki, database, b, auth, gateway)
	n.nats = nats.URL()
	return n
}

func newTown(t *testing.T, pki, database string, b *bus.Bus, endpoints ...Endpoints) *town {
	t.Helper()
	n := &town{t: t, endpoints: endpoints, database: database, bus: b, users: map[identity.Role]authsvc.User{}, servers: x509.NewCertPool()}
	authority, err := ca.Init(ca.Options{Dir: pki, TrustDomain: "pganalytics"})
	require.NoError(t, err)
	for _, c := range authority.ServerCAs() {
		n.servers.AddCert(c)
	}
	key, record := authority.SigningKey()
	n.signer, err = identity.NewSigner(identity.Tokens{}, key, record, nil)
	require.NoError(t, err)
	n.store, err = pgstore.Open(t.Context(), database)
	require.NoError(t, err)
	t.Cleanup(n.store.Close)
	for _, role := range []identity.Role{identity.Viewer, identity.Operator, identity.Admin} {
		u, err := n.store.CreateUser(t.Context(), authsvc.NewUser{
			User:         authsvc.User{ID: uuid.New(), Username: "the-" + role.String(), Role: role},
			PasswordHash: "$2a$12$" + strings.Repeat("x", 53),
		}, authsvc.Act{Actor: "cli:test", At: time.Now()})
		require.NoError(t, err)
		n.users[role] = u
		k, value, err := u.Known().Record()
		require.NoError(t, err)
		require.NoError(t, b.IdentityBucket().Put(t.Context(), k, value))
	}
	n.enrol()
	return n
}

func (n *town) enrolmentToken() string {
	n.t.Helper()
	made, err := authsvc.CreateEnrollmentToken(n.t.Context(), n.store, authsvc.EnrollmentRequest{Actor: "cli:test"})
	require.NoError(n.t, err)
	return made.Token
}

// enrol gives the town its collector.
func (n *town) enrol() {
	n.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(n.t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	require.NoError(n.t, err)
	body, err := json.Marshal(map[string]string{
		"name": "c1", "hostname": "h1", "csr": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})),
	})
	require.NoError(n.t, err)
	status, raw, err := n.request(n.client(nil), n.endpoints[0].Users, http.MethodPost, "/api/v1/collectors/register", n.enrolmentToken(), string(body))
	require.NoError(n.t, err)
	require.Equal(n.t, http.StatusCreated, status, raw)
	var answer struct {
		CollectorID uuid.UUID `json:"collector_id"`
		Certificate string    `json:"certificate"`
	}
	require.NoError(n.t, json.Unmarshal([]byte(raw), &answer))
	n.collector = answer.CollectorID
	block, _ := pem.Decode([]byte(answer.Certificate))
	leaf, err := x509.ParseCertificate(block.Bytes)
	require.NoError(n.t, err)
	n.certificate = tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	n.eventually(func() bool {
		status, _, err := n.request(n.client(&n.certificate), n.endpoints[0].Collectors, http.MethodPost, "/api/v1/collectors/token", "", "{}")
		return err == nil && status == http.StatusOK
	})
}

func (n *town) eventually(ok func() bool) {
	n.t.Helper()
	require.Eventually(n.t, ok, 20*time.Second, 20*time.Millisecond)
}

func (n *town) client(certificate *tls.Certificate) *http.Client {
	cfg := &tls.Config{RootCAs: n.servers, MinVersion: tls.VersionTLS13}
	if certificate != nil {
		cfg.Certificates = []tls.Certificate{*certificate}
	}
	transport := &http.Transport{TLSClientConfig: cfg}
	n.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

func (n *town) request(c *http.Client, base, method, path, token, body string) (int, string, error) {
	req, err := http.NewRequestWithContext(context.Background(), method, base+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = res.Body.Close() }()
	raw, err := io.ReadAll(res.Body)
	return res.StatusCode, string(raw), err
}

// visitor is one credential. make gives a fresh one: some routes use it up.
type visitor struct {
	name string
	make func() string
	lets func(access.Access) bool // whether the table lets it in, on the listener for users
}

func (n *town) visitors() []visitor {
	session := func(role identity.Role) identity.Session {
		u := n.users[role]
		return identity.Session{ID: uuid.New(), UserID: u.ID, Username: u.Username, Role: role, Generation: u.Generation}
	}
	user := func(role identity.Role) visitor {
		return visitor{role.String(), func() string {
			token, _, err := n.signer.UserToken(session(role))
			require.NoError(n.t, err)
			return token
		}, func(a access.Access) bool { return a.User != 0 && role >= a.User }}
	}
	apiToken := func(name string, scopes identity.Scopes, lets func(access.Access) bool) visitor {
		return visitor{name, func() string {
			id, token := identity.NewAPIToken()
			sum := sha256.Sum256([]byte(token))
			k, value, err := identity.APIToken{ID: id, Hash: hex.EncodeToString(sum[:]), Scopes: scopes, ExpiresAt: time.Now().Add(time.Hour)}.Record()
			require.NoError(n.t, err)
			require.NoError(n.t, n.bus.IdentityBucket().Put(n.t.Context(), k, value))
			return token
		}, lets}
	}
	nothing := func(access.Access) bool { return false }
	return []visitor{
		{"anonymous", func() string { return "" }, nothing},
		user(identity.Viewer), user(identity.Operator), user(identity.Admin),
		{"user who must change the password", func() string {
			s := session(identity.Admin)
			s.MustChangePassword = true
			token, _, err := n.signer.UserToken(s)
			require.NoError(n.t, err)
			return token
		}, func(a access.Access) bool { return a.User != 0 && a.BeforePassword }},
		{"refresh token", func() string {
			now := time.Now().Truncate(time.Second)
			token, err := n.signer.RefreshToken(session(identity.Admin), uuid.New(), now, now.Add(time.Hour))
			require.NoError(n.t, err)
			return token
		}, nothing},
		{"collector token", n.collectorToken, nothing},
		{"enrolment token", n.enrolmentToken, func(a access.Access) bool { return a.Enrollment }},
		apiToken("API token to read", identity.Scopes{"read"}, func(a access.Access) bool { return a.Read }),
		apiToken("API token to push", identity.Scopes{"push:" + n.collector.String()}, func(a access.Access) bool { return a.Push }),
	}
}

func (n *town) collectorToken() string {
	token, _, err := n.signer.CollectorToken(n.collector, "h1", n.certificate.Leaf)
	require.NoError(n.t, err)
	return token
}

// route is one that a router has, with its parameters filled in.
type route struct {
	base, method, pattern, path string
	access                      access.Access
}

func (n *town) routes() (all []route) {
	for _, e := range n.endpoints {
		for base, routes := range e.routes {
			require.NoError(n.t, chi.Walk(routes, func(method, pattern string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
				path := strings.NewReplacer("{id}", uuid.NewString(), "{collector_id}", n.collector.String()).Replace(pattern)
				require.NotContains(n.t, path, "{")
				all = append(all, route{base, method, pattern, path, access.To(method, pattern)})
				return nil
			}))
		}
	}
	return all
}

// refused reports whether the answer lets nobody in.
func refused(status int) bool {
	return status == http.StatusUnauthorized || status == http.StatusForbidden
}

func TestEveryRouteLetsInWhomTheTableNamesAndNobodyElse(t *testing.T) {
	t.Parallel()
	for name, build := range map[string]func(*testing.T) *town{"in one process": serveTown, "in processes of their own": splitTown} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := build(t)
			routes := n.routes()
			require.Greater(t, len(routes), 25, "the routers were walked")
			mounted := map[string]bool{}
			for _, r := range routes {
				mounted[r.method+" "+r.pattern] = true
			}
			for row := range access.All() {
				require.True(t, mounted[row], "%s is in the table and nowhere else", row)
			}
			onCollectors := map[string]bool{}
			for _, e := range n.endpoints {
				onCollectors[e.Collectors] = true
			}
			for _, r := range routes {
				require.NotEqual(t, access.Access{}, r.access, "%s %s is not in the table", r.method, r.pattern)
				for _, v := range n.visitors() {
					if onCollectors[r.base] {
						n.knockOnCollectors(r, v)
					} else {
						n.knockOnUsers(r, v)
					}
				}
			}
		})
	}
}

func (n *town) knockOnUsers(r route, v visitor) {
	n.t.Helper()
	what := fmt.Sprintf("%s: %s %s", v.name, r.method, r.pattern)
	require.False(n.t, r.access.Certificate || r.access.Collector, "%s: not on this listener", what)
	token, status, raw := v.make(), 0, ""
	n.eventually(func() bool { // a user or token that was made a moment ago may not be known yet
		var err error
		// A certificate that nobody asks for changes nothing.
		status, raw, err = n.request(n.client(&n.certificate), r.base, r.method, r.path, token, "{}")
		require.NoError(n.t, err, what)
		return status != http.StatusServiceUnavailable && (!refused(status) || !v.lets(r.access))
	})
	switch {
	case r.access.Anyone && r.pattern != "/api/v1/auth/login", v.lets(r.access):
		require.False(n.t, refused(status), "%s: %d %s", what, status, raw)
	case r.access.Anyone, r.access.Refresh: // the credential stands in the body, which holds none
		require.GreaterOrEqual(n.t, status, 400, "%s: %s", what, raw)
	default:
		require.True(n.t, refused(status), "%s: %d %s", what, status, raw)
	}
}

// knockOnCollectors tries without a certificate, which must not even connect,
// and with one, beside the visitor's token.
func (n *town) knockOnCollectors(r route, v visitor) {
	n.t.Helper()
	what := fmt.Sprintf("%s: %s %s", v.name, r.method, r.pattern)
	_, _, err := n.request(n.client(nil), r.base, r.method, r.path, v.make(), "{}")
	require.Error(n.t, err, "%s: no connection without a certificate", what)
	status, raw, err := n.request(n.client(&n.certificate), r.base, r.method, r.path, v.make(), "{}")
	require.NoError(n.t, err, what)
	if r.access.Anyone || r.access.Certificate || r.access.Collector && v.name == "collector token" {
		require.False(n.t, refused(status), "%s: %d %s", what, status, raw)
		return
	}
	require.True(n.t, refused(status), "%s: %d %s", what, status, raw)
}

// A route that somebody mounts and forgets to put into the table.
func TestListenerWithARouteThatIsNotInTheTableDoesNotStart(t *testing.T) {
	t.Parallel()
	p := &process{}
	router := chi.NewRouter()
	router.Get("/api/v1/new", func(http.ResponseWriter, *http.Request) {})
	require.ErrorContains(t, p.serveRoutes(nil, router), "nobody may use GET /api/v1/new")
}
