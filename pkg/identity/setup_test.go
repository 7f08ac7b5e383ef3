package identity_test

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/identity"
	"pganalytics/pkg/identity/ca"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const trustDomain = "test.example"

// bundle is a verifier with a complete and confirmed snapshot that knows one
// registered collector and one signing key.
type bundle struct {
	clock     *clock
	authority *ca.Authority
	snapshot  *identity.Snapshot
	verifier  *identity.Verifier
	signer    *identity.Signer
	registry  *prometheus.Registry

	id    uuid.UUID
	cert  tls.Certificate
	state tls.ConnectionState // of a connection that presented cert
	token string              // good for id and cert
}

type clock struct{ offset atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.offset.Load())) }
func (c *clock) advance(d time.Duration) { c.offset.Add(int64(d)) }

func setup(tb testing.TB) *bundle {
	tb.Helper()
	b := &bundle{clock: &clock{}, id: uuid.New(), registry: prometheus.NewRegistry()}
	var err error
	b.authority, err = ca.Init(ca.Options{
		Dir: filepath.Join(tb.TempDir(), "identity"), TrustDomain: trustDomain,
		ServerNames: []string{"127.0.0.1"}, Now: b.clock.now,
	})
	require.NoError(tb, err)
	b.snapshot, err = identity.NewSnapshot(b.authority.Roots(), slog.New(slog.DiscardHandler), b.registry)
	require.NoError(tb, err)
	b.verifier, err = identity.NewVerifier(identity.VerifierConfig{
		CollectorCAs: b.authority.CollectorCAs(), TrustDomain: trustDomain, Now: b.clock.now,
	}, b.snapshot)
	require.NoError(tb, err)
	key, record := b.authority.SigningKey()
	b.signer, err = identity.NewSigner(identity.Tokens{}, key, record, b.clock.now)
	require.NoError(tb, err)

	b.cert = issue(tb, b.authority, b.id)
	b.state = connect(tb, b.cert)
	b.token, _, err = b.signer.CollectorToken(b.id, "db1", b.cert.Leaf)
	require.NoError(tb, err)

	b.snapshot.Begin()
	b.put(tb, b.collector(identity.Registered))
	b.putKey(tb, record)
	b.put(tb, identity.Meta{Generation: 1, Collectors: 1, Keys: 1})
	b.snapshot.Complete()
	b.snapshot.Confirm(b.clock.now())
	return b
}

func (b *bundle) collector(s identity.Status) identity.Collector {
	return identity.Collector{ID: b.id, Status: s, Generation: 1, Thumbprint: ca.Fingerprint(b.cert.Leaf), Hostname: "db1", ChangedAt: b.clock.now()}
}

func (b *bundle) put(tb testing.TB, r interface {
	Record() (string, []byte, error)
}) {
	tb.Helper()
	key, value, err := r.Record()
	require.NoError(tb, err)
	require.NoError(tb, b.snapshot.Apply(key, value))
}

func (b *bundle) putKey(tb testing.TB, k ca.SigningKey) {
	tb.Helper()
	key, value, err := identity.KeyRecord(k)
	require.NoError(tb, err)
	require.NoError(tb, b.snapshot.Apply(key, value))
}

func (b *bundle) verify() error {
	_, err := b.verifier.VerifyCollector(b.state, "Bearer "+b.token)
	return err
}

// issue makes a key and a certificate of the profile over it.
func issue(tb testing.TB, a *ca.Authority, id uuid.UUID) tls.Certificate {
	tb.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(tb, err)
	return issueOver(tb, a, id, key)
}

func issueOver(tb testing.TB, a *ca.Authority, id uuid.UUID, key crypto.Signer) tls.Certificate {
	tb.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	require.NoError(tb, err)
	r, err := ca.ParseRequest(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})))
	require.NoError(tb, err)
	leaf, err := a.IssueCollector(id, r)
	require.NoError(tb, err)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// connect returns the server's state of a TLS connection whose listener lets in
// any client certificate: what the verifier must do without.
func connect(tb testing.TB, cert tls.Certificate) tls.ConnectionState {
	tb.Helper()
	serverSide, clientSide := net.Pipe()
	defer func() { _ = serverSide.Close(); _ = clientSide.Close() }()
	server := tls.Server(serverSide, &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert, SessionTicketsDisabled: true})
	client := tls.Client(clientSide, &tls.Config{InsecureSkipVerify: true, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &cert, nil
	}})
	done := make(chan error, 1)
	go func() { done <- client.Handshake() }()
	require.NoError(tb, server.Handshake())
	require.NoError(tb, <-done)
	return server.ConnectionState()
}

// forge signs any header and payload with any key.
func forge(header, payload string, sign func([]byte) []byte) string {
	enc := base64.RawURLEncoding.EncodeToString
	text := enc([]byte(header)) + "." + enc([]byte(payload))
	return text + "." + enc(sign([]byte(text)))
}

// parts returns the header and payload of a token as JSON objects.
func parts(tb testing.TB, token string) (header, payload map[string]any) {
	tb.Helper()
	for i, p := range strings.Split(token, ".")[:2] {
		raw, err := base64.RawURLEncoding.DecodeString(p)
		require.NoError(tb, err)
		require.NoError(tb, json.Unmarshal(raw, []any{&header, &payload}[i]))
	}
	return header, payload
}

func requireFault(tb testing.TB, err error, class fault.Class, code string) {
	tb.Helper()
	require.Error(tb, err)
	f, ok := errors.AsType[*fault.Error](err)
	require.True(tb, ok, "%v", err)
	require.Equal(tb, class, f.Class, "%v", err)
	require.Equal(tb, code, f.Code, "%v", err)
}
