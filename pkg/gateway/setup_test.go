package gateway_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/bus"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/gateway"
	"pganalytics/pkg/httpserver"
	"pganalytics/pkg/identity"
	"pganalytics/pkg/identity/ca"
	"pganalytics/pkg/internal/testnats"
	"pganalytics/pkg/policy/pulled"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

const family = `
name: narrow
description: One value.
scope: instance
interval: 60s
retention: 2d
chunk: 1d
columns:
  - {name: v, type: bigint, kind: gauge, help: A value.}
queries:
  - {min_version: 13, sql: "select 1"}
`

// stack is a gateway on a real listener, before a real stream, with real
// identities.
type stack struct {
	t         *testing.T
	nats      *testnats.Server
	bus       *bus.Bus
	authority *ca.Authority
	signer    *identity.Signer
	server    *httpserver.Server
	serverCA  *x509.CertPool
	reg       *prometheus.Registry
	stop      context.CancelFunc // stops the listener
	stopped   chan error         // the result of the listener's part

	generation int64
	changed    time.Time // of the newest collector record
}

// options change a stack before it starts.
type options struct {
	gateway   gateway.Config
	bus       bus.Config
	server    httpserver.Config
	quota     uint64                                 // dead letters; 0: no quarantine
	publisher func(*bus.Publisher) gateway.Publisher // wraps the real one
}

func newStack(t *testing.T, o options) *stack {
	t.Helper()
	s := &stack{t: t, nats: testnats.Start(t), reg: prometheus.NewRegistry(), stopped: make(chan error, 1)}
	log := slog.New(slog.DiscardHandler)
	dir := t.TempDir()
	var err error
	s.authority, err = ca.Init(ca.Options{Dir: dir, TrustDomain: "test.example", ServerNames: []string{"127.0.0.1"}})
	require.NoError(t, err)
	key, record := s.authority.SigningKey()
	s.signer, err = identity.NewSigner(identity.Tokens{}, key, record, nil)
	require.NoError(t, err)
	s.serverCA = x509.NewCertPool()
	for _, c := range s.authority.ServerCAs() {
		s.serverCA.AddCert(c)
	}

	o.bus.URL = s.nats.URL()
	s.bus, err = bus.Connect(t.Context(), o.bus, log, s.reg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.bus.Close(context.Background()) })
	require.NoError(t, s.bus.EnsureStreams(t.Context()))

	verifier := s.follow(log)
	cat, err := catalogue.Load(fstest.MapFS{"narrow.yaml": {Data: []byte(family)}})
	require.NoError(t, err)
	var publisher gateway.Publisher = s.bus.Publisher()
	if o.publisher != nil {
		publisher = o.publisher(s.bus.Publisher())
	}
	quarantine := s.bus.Quarantine(o.quota)
	if o.quota > 0 {
		var stop context.CancelFunc
		s.run(func(ctx context.Context) { _ = quarantine.Run(ctx) }, &stop) // nil always
	}
	configs := pulled.NewSnapshot(s.bus.ConfigBucket())
	var stopConfigs context.CancelFunc
	s.run(func(ctx context.Context) { _ = s.bus.ConfigBucket().Follow(ctx, configs) }, &stopConfigs) // nil always
	gw, err := gateway.New(o.gateway, publisher, verifier, quarantine, configs, cat, s.reg)
	require.NoError(t, err)

	certificate, err := httpserver.LoadCertificate(filepath.Join(dir, ca.ServerCertFile), filepath.Join(dir, ca.ServerKeyFile), log)
	require.NoError(t, err)
	o.server.Name, o.server.Addr = "collectors", "127.0.0.1:0"
	s.server, err = httpserver.Listen(o.server,
		httpserver.CollectorTLS(certificate, verifier.CollectorCAs, identity.RenewalGrace), log, httpserver.NewMetrics(s.reg))
	require.NoError(t, err)
	router := httpserver.NewRouter()
	gw.Routes(router)
	s.run(func(ctx context.Context) { s.stopped <- s.server.Part(router).Run(ctx, func() {}) }, &s.stop)
	return s
}

// run runs f until the test ends, or until stop is called.
func (s *stack) run(f func(ctx context.Context), stop *context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { f(ctx) })
	*stop = cancel
	s.t.Cleanup(func() { cancel(); wg.Wait() })
}

// follow returns a verifier that follows the identity bucket and is ready.
func (s *stack) follow(log *slog.Logger) *identity.Verifier {
	s.t.Helper()
	snapshot, err := identity.NewSnapshot(s.authority.Roots(), log, s.reg)
	require.NoError(s.t, err)
	verifier, err := identity.NewVerifier(identity.VerifierConfig{
		CollectorCAs: s.authority.CollectorCAs(), TrustDomain: s.authority.TrustDomain(),
	}, snapshot)
	require.NoError(s.t, err)
	s.put(identity.KeyRecord(s.signer.Record()))
	s.generation++
	s.put(identity.Meta{Generation: s.generation, Keys: 1}.Record())
	var stop context.CancelFunc
	s.run(func(ctx context.Context) { _ = s.bus.IdentityBucket().Follow(ctx, snapshot) }, &stop)
	require.Eventually(s.t, func() bool { return verifier.Ready() == nil }, 10*time.Second, 5*time.Millisecond)
	return verifier
}

func (s *stack) put(key string, value []byte, err error) {
	s.t.Helper()
	require.NoError(s.t, err)
	require.NoError(s.t, s.bus.IdentityBucket().Put(s.t.Context(), key, value))
}

// sender is an enrolled collector.
type sender struct {
	stack  *stack
	id     uuid.UUID
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	token  string
	client *http.Client
}

// enrol makes a collector that the gateway knows.
func (s *stack) enrol() *sender {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(s.t, err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	require.NoError(s.t, err)
	request, err := ca.ParseRequest(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})))
	require.NoError(s.t, err)
	c := &sender{stack: s, id: uuid.New(), key: key}
	c.cert, err = s.authority.IssueCollector(c.id, request)
	require.NoError(s.t, err)
	c.token, _, err = s.signer.CollectorToken(c.id, "db1.example", c.cert)
	require.NoError(s.t, err)
	c.set(identity.Active)
	c.client = c.newClient()
	require.Eventually(s.t, func() bool {
		status, _, _ := c.push("{}")
		return status == http.StatusBadRequest // known, and its body is looked at
	}, 10*time.Second, 5*time.Millisecond)
	return c
}

// set writes the collector's status where verifiers see it.
func (c *sender) set(status identity.Status) {
	c.stack.t.Helper()
	c.stack.changed = c.stack.changed.Add(time.Second)
	c.stack.put(identity.Collector{
		ID: c.id, Status: status, Generation: 1, Thumbprint: ca.Fingerprint(c.cert), Hostname: "db1.example",
		ChangedAt: c.stack.changed,
	}.Record())
}

func (c *sender) tlsConfig() *tls.Config {
	return &tls.Config{
		RootCAs:      c.stack.serverCA,
		Certificates: []tls.Certificate{{Certificate: [][]byte{c.cert.Raw}, PrivateKey: c.key}},
	}
}

func (c *sender) newClient() *http.Client {
	transport := &http.Transport{TLSClientConfig: c.tlsConfig(), ForceAttemptHTTP2: true, DisableCompression: true}
	c.stack.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

// request makes a push of body, to be changed by header pairs; an empty value
// removes the header.
func (c *sender) request(ctx context.Context, body io.Reader, header ...string) *http.Request {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.stack.server.URL()+"/api/v1/metrics/push", body)
	require.NoError(c.stack.t, err)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+c.token)
	req.Header.Set("X-Request-Id", "request-1")
	for i := 0; i < len(header); i += 2 {
		if req.Header.Set(header[i], header[i+1]); header[i+1] == "" {
			req.Header.Del(header[i])
		}
	}
	return req
}

// push sends a body and returns the answer.
func (c *sender) push(body string, header ...string) (int, http.Header, string) {
	c.stack.t.Helper()
	return c.send(c.request(c.stack.t.Context(), bytes.NewBufferString(body), header...))
}

func (c *sender) send(req *http.Request) (int, http.Header, string) {
	c.stack.t.Helper()
	resp, err := c.client.Do(req)
	require.NoError(c.stack.t, err)
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	require.NoError(c.stack.t, err)
	return resp.StatusCode, resp.Header, string(text)
}

// body makes a body with an item of each of the given texts.
func (c *sender) body(items ...string) string {
	var list bytes.Buffer
	for i, item := range items {
		if i > 0 {
			list.WriteByte(',')
		}
		list.WriteString(item)
	}
	return fmt.Sprintf(`{"collector_id":%q,"hostname":"db1","timestamp":%q,"version":"1.0","metrics_count":%d,"metrics":[%s]}`,
		c.id, time.Now().UTC().Format("2006-01-02T15:04:05.000000Z"), len(items), &list)
}

// rows makes an item with n rows.
func rows(n int) string {
	var list bytes.Buffer
	for i := range n {
		if i > 0 {
			list.WriteByte(',')
		}
		list.WriteString("[0]")
	}
	return `{"type":"narrow","columns":["v"],"rows":[` + list.String() + `]}`
}

// batches returns what lies on the stream, which must be n batches.
func (s *stack) batches(n int) []*batch.Batch {
	s.t.Helper()
	consumer, err := s.bus.Consumer(s.t.Context())
	require.NoError(s.t, err)
	var all []*batch.Batch
	for deadline := time.Now().Add(10 * time.Second); ; {
		got, err := consumer.Fetch(s.t.Context(), 100, 16<<20, 100*time.Millisecond)
		require.NoError(s.t, err)
		for _, d := range got {
			b, err := batch.Unmarshal(d.Payload)
			require.NoError(s.t, err)
			b, err = b.Expand()
			require.NoError(s.t, err)
			require.NoError(s.t, d.Ack(s.t.Context()))
			all = append(all, b)
		}
		if len(got) == 0 && (len(all) >= n || time.Now().After(deadline)) {
			require.Len(s.t, all, n)
			return all
		}
	}
}

// value returns the sum of a metric's samples with the given label values.
func (s *stack) value(name string, labels ...string) float64 {
	s.t.Helper()
	families, err := s.reg.Gather()
	require.NoError(s.t, err)
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			matched := 0
			for _, l := range m.GetLabel() {
				for _, want := range labels {
					if l.GetValue() == want {
						matched++
					}
				}
			}
			if matched == len(labels) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// requireAllGivenBack waits until no push holds anything: a handler may still be
// on its way out when its client has the answer.
func (s *stack) requireAllGivenBack() {
	s.t.Helper()
	require.Eventually(s.t, func() bool { return s.value("pganalytics_gateway_in_flight_bytes") == 0 }, 10*time.Second, time.Millisecond)
}

// answered decodes the answer to an accepted push.
func answered(t *testing.T, text string) map[string]any {
	t.Helper()
	var got map[string]any
	require.NoError(t, json.Unmarshal([]byte(text), &got), text)
	return got
}

// smallLimits are limits that a test reaches quickly.
func smallLimits() push.Limits {
	l := push.DefaultLimits()
	l.MaxBodyBytes = 1 << 20
	l.MaxEncodedBytes = 256 << 10
	return l
}
