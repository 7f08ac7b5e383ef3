package httpserver_test

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/httpserver"
	"pganalytics/pkg/internal/testlog"
)

var hello = httpserver.Handle(func(w http.ResponseWriter, _ *http.Request) error {
	return httpserver.WriteJSON(w, http.StatusOK, "hello")
})

func TestCollectorListenerTakesOnlyCertificatesOfItsAuthority(t *testing.T) {
	t.Parallel()
	server, ours, foreign := newAuthority(t, "server ca"), newAuthority(t, "collector ca"), newAuthority(t, "foreign ca")
	const grace = 30 * 24 * time.Hour
	b := serve(t, hello, httpserver.CollectorTLS(server.load(t), ours.pool, grace), nil)

	day := 24 * time.Hour
	client1 := x509.ExtKeyUsageClientAuth
	for name, tc := range map[string]struct {
		certs []tls.Certificate
		max   uint16
		ok    bool
	}{
		"valid":                          {certs: []tls.Certificate{ours.issue(t, "c", time.Now().Add(day), client1)}, ok: true},
		"expired within the grace":       {certs: []tls.Certificate{ours.issue(t, "c", time.Now().Add(-29*day), client1)}, ok: true},
		"expired before the grace":       {certs: []tls.Certificate{ours.issue(t, "c", time.Now().Add(-31*day), client1)}},
		"none":                           {},
		"of another authority":           {certs: []tls.Certificate{foreign.issue(t, "c", time.Now().Add(day), client1)}},
		"expired, of another authority":  {certs: []tls.Certificate{foreign.issue(t, "c", time.Now().Add(-day), client1)}},
		"of the server authority":        {certs: []tls.Certificate{server.issue(t, "c", time.Now().Add(day), client1)}},
		"a server certificate":           {certs: []tls.Certificate{ours.issue(t, "c", time.Now().Add(day), x509.ExtKeyUsageServerAuth)}},
		"valid, with an old TLS version": {certs: []tls.Certificate{ours.issue(t, "c", time.Now().Add(day), client1)}, max: tls.VersionTLS12},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := client(t, &tls.Config{RootCAs: server.pool(), MaxVersion: tc.max, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if len(tc.certs) == 0 {
					return &tls.Certificate{}, nil
				}
				return &tc.certs[0], nil // whatever authorities the server hints at
			}})
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.URL(), nil)
			require.NoError(t, err)
			resp, err := c.Do(req)
			if !tc.ok {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			defer func() { _ = resp.Body.Close() }()
			require.Equal(t, http.StatusOK, resp.StatusCode)
			require.Equal(t, 2, resp.ProtoMajor, "HTTP/2 is spoken")
		})
	}
}

func TestCollectorConnectionsAreNeverResumed(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "ca")
	cert := ca.issue(t, "c", time.Now().Add(time.Hour), x509.ExtKeyUsageClientAuth)
	for name, tc := range map[string]struct {
		config  *tls.Config
		resumed bool
	}{
		"collectors": {httpserver.CollectorTLS(ca.load(t), ca.pool, 0), false},
		"users":      {httpserver.UserTLS(ca.load(t)), true}, // shows that the check can fail
	} {
		b := serve(t, hello, tc.config, nil)
		config := &tls.Config{
			RootCAs: ca.pool(), Certificates: []tls.Certificate{cert},
			ClientSessionCache: tls.NewLRUClientSessionCache(4),
		}
		var state *tls.ConnectionState
		for range 2 {
			c := client(t, config)
			resp, _ := do(t, c, http.MethodGet, b.URL(), nil)
			c.CloseIdleConnections()
			state = resp.TLS
		}
		require.Equal(t, tc.resumed, state.DidResume, name)
	}
}

func TestAuthorityOfCollectorsIsReplacedLive(t *testing.T) {
	t.Parallel()
	server, before, after := newAuthority(t, "server"), newAuthority(t, "old"), newAuthority(t, "new")
	var roots atomic.Pointer[x509.CertPool]
	b := serve(t, hello, httpserver.CollectorTLS(server.load(t), roots.Load, 0), nil)
	try := func(ca *authority) error {
		c := client(t, &tls.Config{RootCAs: server.pool(), Certificates: []tls.Certificate{
			ca.issue(t, "c", time.Now().Add(time.Hour), x509.ExtKeyUsageClientAuth),
		}})
		resp, err := c.Get(b.URL())
		if err == nil {
			_ = resp.Body.Close()
		}
		c.CloseIdleConnections()
		return err
	}
	require.Error(t, try(before), "no authority known: nobody gets in, least of all by the system's authorities")
	roots.Store(before.pool())
	require.NoError(t, try(before))
	require.Error(t, try(after))
	roots.Store(after.pool())
	require.Error(t, try(before))
	require.NoError(t, try(after))
}

func TestUserListenerSpeaksTLS12AndNothingOlder(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "ca")
	b := serve(t, hello, httpserver.UserTLS(ca.load(t)), nil)
	resp, _ := do(t, client(t, &tls.Config{RootCAs: ca.pool(), MaxVersion: tls.VersionTLS12}), http.MethodGet, b.URL(), nil)
	require.EqualValues(t, tls.VersionTLS12, resp.TLS.Version)
	_, err := client(t, &tls.Config{RootCAs: ca.pool(), MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}).Get(b.URL())
	require.Error(t, err)
}

func TestServerCertificateIsReloadedAndABrokenOneIsNot(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "ca")
	certFile, keyFile := ca.files(t, "first")
	log := &testlog.Buffer{}
	cert, err := httpserver.LoadCertificate(certFile, keyFile, slog.New(slog.NewTextHandler(log, nil)))
	require.NoError(t, err)
	b := serve(t, hello, httpserver.UserTLS(cert), nil)
	served := func() string {
		c := client(t, &tls.Config{RootCAs: ca.pool()})
		resp, _ := do(t, c, http.MethodGet, b.URL(), nil)
		c.CloseIdleConnections()
		return resp.TLS.PeerCertificates[0].Subject.CommonName
	}
	require.Equal(t, "first", served())
	ca.writeFiles(t, "second", certFile, keyFile)
	require.Eventually(t, func() bool { return served() == "second" }, 10*time.Second, 100*time.Millisecond)

	require.NoError(t, os.WriteFile(keyFile, []byte("not a key"), 0o600))
	failed := func() bool {
		return served() != "second" || log.String() != "" && containsLine(log.String(), "not reloaded")
	}
	require.Eventually(t, failed, 10*time.Second, 100*time.Millisecond)
	require.Equal(t, "second", served(), "the former certificate stays in use")
	require.Equal(t, 1, countLines(log.String(), "not reloaded"), "told once")

	ca.writeFiles(t, "third", certFile, keyFile)
	require.Eventually(t, func() bool { return served() == "third" }, 10*time.Second, 100*time.Millisecond)
}

func TestPlainHTTPIsForLoopbackAndOnlyWhenAskedFor(t *testing.T) {
	t.Parallel()
	log, metrics := slog.New(slog.DiscardHandler), httpserver.NewMetrics(newRegistry())
	for name, cfg := range map[string]httpserver.Config{
		"not asked for":      {Name: "x", Addr: "127.0.0.1:0"},
		"all addresses":      {Name: "x", Addr: ":0", AllowPlain: true},
		"all IPv4 addresses": {Name: "x", Addr: "0.0.0.0:0", AllowPlain: true},
		"a name":             {Name: "x", Addr: "metrics.example.com:0", AllowPlain: true},
	} {
		_, err := httpserver.Listen(cfg, nil, log, metrics)
		require.ErrorContains(t, err, "plain HTTP", name)
	}
	taken, err := httpserver.Listen(httpserver.Config{Name: "x", Addr: "127.0.0.1:0", AllowPlain: true}, nil, log, metrics)
	require.NoError(t, err)
	defer func() { _ = taken.Close() }()
	_, err = httpserver.Listen(httpserver.Config{Name: "x", Addr: taken.Addr().String(), AllowPlain: true}, nil, log, metrics)
	require.ErrorContains(t, err, "address already in use")
}

func TestConfigReportsAllFaults(t *testing.T) {
	t.Parallel()
	err := httpserver.Config{
		Addr: "nowhere", BodyTimeout: time.Hour, AnswerTimeout: time.Minute, StallTimeout: -1, MaxHeaderBytes: 10,
	}.Validate()
	for _, want := range []string{"name is empty", `"nowhere"`, "answer timeout 1m0s", "stall timeout -1ns", "max header bytes 10"} {
		require.ErrorContains(t, err, want)
	}
}
