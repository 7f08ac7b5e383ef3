package httpserver_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pganalytics/pkg/httpserver"
	"pganalytics/pkg/internal/testlog"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bundle is a running listener.
type bundle struct {
	*httpserver.Server
	log     *testlog.Buffer
	reg     *prometheus.Registry
	stop    context.CancelFunc
	stopped chan error // the result of the part's Run
}

// serve runs a listener until the test ends. Plain HTTP without tlsConfig.
func serve(t *testing.T, h http.Handler, tlsConfig *tls.Config, change func(*httpserver.Config)) *bundle {
	t.Helper()
	cfg := httpserver.Config{Name: "test", Addr: "127.0.0.1:0", AllowPlain: tlsConfig == nil}
	if change != nil {
		change(&cfg)
	}
	b := &bundle{log: &testlog.Buffer{}, reg: prometheus.NewRegistry(), stopped: make(chan error, 1)}
	log := slog.New(slog.NewJSONHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	b.Server, err = httpserver.Listen(cfg, tlsConfig, log, httpserver.NewMetrics(b.reg))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	b.stop = cancel
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		b.stopped <- b.Part(h).Run(ctx, func() {})
	}()
	t.Cleanup(func() { cancel(); <-finished })
	return b
}

// client returns a client whose connections end with the test.
func client(t *testing.T, tlsConfig *tls.Config) *http.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: tlsConfig, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

// do sends a request and returns the answer with its body read.
func do(t *testing.T, c *http.Client, method, url string, body io.Reader, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	require.NoError(t, err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp, string(data)
}

// authority is a throw-away CA.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-365 * 24 * time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &authority{cert, key}
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// issue makes a certificate for 127.0.0.1 and the given use.
func (a *authority) issue(t *testing.T, name string, notAfter time.Time, use x509.ExtKeyUsage) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-90 * 24 * time.Hour), NotAfter: notAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{use},
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// files writes a server certificate where a listener loads it.
func (a *authority) files(t *testing.T, name string) (certFile, keyFile string) {
	t.Helper()
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	a.writeFiles(t, name, certFile, keyFile)
	return certFile, keyFile
}

func (a *authority) writeFiles(t *testing.T, name, certFile, keyFile string) {
	t.Helper()
	c := a.issue(t, name, time.Now().Add(time.Hour), x509.ExtKeyUsageServerAuth)
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}), 0o600))
	require.NoError(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600))
}

func (a *authority) load(t *testing.T) *httpserver.Certificate {
	t.Helper()
	certFile, keyFile := a.files(t, "server")
	c, err := httpserver.LoadCertificate(certFile, keyFile, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	return c
}
