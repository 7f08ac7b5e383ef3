package authsvc_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/bus"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/gateway"
	"pganalytics/pkg/httpserver"
	"pganalytics/pkg/identity"
	"pganalytics/pkg/identity/ca"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/policy/pulled"
)

// gate is a gateway of its own: another connection to NATS, another snapshot,
// another listener than authsvc's.
type gate struct {
	url      string
	snapshot *identity.Snapshot
	verifier *identity.Verifier
}

func (s *stack) gateway() *gate {
	s.t.Helper()
	log, reg := slog.New(slog.NewTextHandler(s.logs, nil)), prometheus.NewRegistry()
	b, err := bus.Connect(s.t.Context(), bus.Config{URL: s.nats.URL(), ConfirmEvery: 100 * time.Millisecond}, log, reg)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { _ = b.Close(context.Background()) })
	g := &gate{}
	g.snapshot, err = identity.NewSnapshot(s.authority.Roots(), log, reg)
	require.NoError(s.t, err)
	g.verifier, err = identity.NewVerifier(identity.VerifierConfig{
		CollectorCAs: s.authority.CollectorCAs(), TrustDomain: trustDomain, Now: s.clock.now,
	}, g.snapshot)
	require.NoError(s.t, err)
	cat, err := catalogue.Default()
	require.NoError(s.t, err)
	gw, err := gateway.New(gateway.Config{}, b.Publisher(), g.verifier, b.Quarantine(0), pulled.NewSnapshot(b.ConfigBucket()), cat, reg)
	require.NoError(s.t, err)
	certificate, err := httpserver.LoadCertificate(filepath.Join(s.dir, ca.ServerCertFile), filepath.Join(s.dir, ca.ServerKeyFile), log)
	require.NoError(s.t, err)
	server, err := httpserver.Listen(httpserver.Config{Name: "gateway", Addr: "127.0.0.1:0"},
		httpserver.CollectorTLS(certificate, g.verifier.CollectorCAs, identity.RenewalGrace), log, httpserver.NewMetrics(reg))
	require.NoError(s.t, err)
	router := httpserver.NewRouter()
	gw.Routes(router)
	s.background(func(ctx context.Context) error { return b.IdentityBucket().Follow(ctx, following{g.snapshot, s.clock}) })
	s.background(func(ctx context.Context) error { return server.Part(router).Run(ctx, func() {}) })
	s.eventually(func() bool { return g.verifier.Ready() == nil }, "gateway is ready")
	g.url = server.URL()
	return g
}

// push sends a row and returns the answer and whether the connection was used before.
func (s *stack) push(client *http.Client, g *gate, id uuid.UUID, token string) (a answer, reused bool, err error) {
	at := time.Now().UTC() // the gateway looks at batches by the machine's clock
	body := fmt.Sprintf(`{"collector_id":%q,"hostname":"h","timestamp":%q,"version":"t","metrics_count":1,
		"metrics":[{"type":"pg_settings","columns":["name","setting"],"rows":[[%q,"x"]]}]}`, id, at.Format(time.RFC3339Nano), uuid.NewString())
	trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused }}
	ctx := httptrace.WithClientTrace(context.Background(), trace)
	a, err = s.tryCallContext(ctx, client, http.MethodPost, g.url+"/api/v1/metrics/push", "Bearer "+token, body)
	return a, reused, err
}

// clients are the ways a connection can be kept alive.
func (s *stack) clients(cert tls.Certificate) map[string]*http.Client {
	h2 := s.client(cert)
	h1 := s.client(cert)
	h1.Transport.(*http.Transport).ForceAttemptHTTP2 = false
	h1.Transport.(*http.Transport).TLSClientConfig.NextProtos = []string{"http/1.1"}
	resumed := s.client(cert)
	resumed.Transport.(*http.Transport).TLSClientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	return map[string]*http.Client{"http/1.1": h1, "http/2": h2, "resumed": resumed}
}

func TestRevocationEndsLiveConnectionsEverywhereWithinTwoSeconds(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	g := s.gateway()
	operator := s.as(identity.Operator)
	for operation, code := range map[string]string{"disable": "collector_disabled", "delete": "certificate_revoked"} {
		c := s.enrol("db " + operation)
		token := s.token(c.cert).Token
		clients := s.clients(c.cert)
		for name, client := range clients {
			s.eventually(func() bool {
				a, _, err := s.push(client, g, c.id, token)
				return err == nil && a.status == http.StatusAccepted
			}, "pushes go through: "+name)
		}
		url := s.users.URL() + "/api/v1/collectors/" + c.id.String()
		var a answer
		if operation == "delete" {
			a = s.call(s.client(), http.MethodDelete, url, operator, "")
			require.Equal(t, http.StatusNoContent, a.status, a.raw)
		} else {
			a = s.call(s.client(), http.MethodPost, url+"/"+operation, operator, "")
			require.Equal(t, http.StatusOK, a.status, a.raw)
		}
		done := time.Now()
		for name, client := range clients {
			require.Eventually(t, func() bool {
				if name == "resumed" { // a new connection each time, with whatever the last one left
					client.CloseIdleConnections()
				}
				a, reused, err := s.push(client, g, c.id, token)
				require.NoError(t, err)
				require.Equal(t, name != "resumed", reused, "%s: the connection is the one from before", name)
				return a.Code == code
			}, 2*time.Second, 5*time.Millisecond, name)
			require.Less(t, time.Since(done), 2*time.Second, name)
			s.eventually(func() bool {
				return s.call(client, http.MethodPost, s.collectors.URL()+"/api/v1/collectors/token", "", "").Code == code
			}, "and gets no token")
		}
	}
}

func TestLiveConnectionsEndWithTheirCertificate(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	g := s.gateway()
	c := s.enrol("db1")
	token := s.token(c.cert).Token
	clients := s.clients(c.cert)
	delete(clients, "resumed") // a new handshake goes by the machine's clock
	for name, client := range clients {
		s.eventually(func() bool {
			a, _, err := s.push(client, g, c.id, token)
			return err == nil && a.status == http.StatusAccepted
		}, name)
	}
	s.clock.advance(8 * 24 * time.Hour)
	s.eventually(func() bool { return g.verifier.Ready() == nil && s.verifier.Ready() == nil }, "fresh again")
	for name, client := range clients {
		a, reused, err := s.push(client, g, c.id, token)
		require.NoError(t, err)
		require.True(t, reused, name)
		require.Equal(t, "certificate_expired", a.Code, name)
		a = s.call(client, http.MethodPost, s.collectors.URL()+"/api/v1/collectors/token", "", "")
		require.Equal(t, "certificate_expired", a.Code, name)
	}
}

// The listener offers no tickets, so there is nothing to resume.
func TestConnectionsOfCollectorsAreNeverResumed(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	g := s.gateway()
	c := s.enrol("db1")
	config := s.client(c.cert).Transport.(*http.Transport).TLSClientConfig.Clone()
	config.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	for range 3 {
		conn, err := tls.Dial("tcp", g.url[len("https://"):], config)
		require.NoError(t, err)
		_, err = fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		require.NoError(t, err)
		_, _ = conn.Read(make([]byte, 1<<10)) // a ticket would have come by now
		require.False(t, conn.ConnectionState().DidResume)
		require.NoError(t, conn.Close())
	}
}

func TestBucketMadeAnewIsNoticedAndForgetsNoRefusal(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	g := s.gateway()
	operator := s.as(identity.Operator)
	good, bad := s.enrol("good"), s.enrol("bad")
	token, badToken := s.token(good.cert).Token, s.token(bad.cert).Token
	a := s.call(s.client(), http.MethodDelete, s.users.URL()+"/api/v1/collectors/"+bad.id.String(), operator, "")
	require.Equal(t, http.StatusNoContent, a.status, a.raw)
	client, badClient := s.client(good.cert), s.client(bad.cert)
	s.eventually(func() bool {
		a, _, err := s.push(badClient, g, bad.id, badToken)
		return err == nil && a.Code == "certificate_revoked"
	}, "revoked")
	// And the database comes back from a backup of before the revocation.
	require.NoError(t, s.exec(`update identity.certificate set revoked_at = null`))
	require.NoError(t, s.exec(`update identity.collector set status = 'registered', deleted_at = null, updated_at = created_at where id = $1`, bad.id))

	conn, err := nats.Connect(s.nats.URL())
	require.NoError(t, err)
	defer conn.Close()
	js, err := jetstream.New(conn)
	require.NoError(t, err)
	require.NoError(t, js.DeleteKeyValue(t.Context(), "identity"))
	s.clock.advance(14 * time.Minute)
	a, _, err = s.push(client, g, good.id, token)
	require.NoError(t, err)
	require.Equal(t, http.StatusAccepted, a.status, "for a while the gateway goes by what it knows: %s", a.raw)
	s.clock.advance(2 * time.Minute)
	a, _, err = s.push(client, g, good.id, token)
	require.NoError(t, err)
	require.Equal(t, "identity_stale", a.Code, "it has noticed")

	require.NoError(t, s.bus.EnsureStreams(t.Context()))
	token = ""
	s.eventually(func() bool {
		if token == "" {
			token = s.token(good.cert).Token
		}
		a, _, err := s.push(client, g, good.id, token)
		return err == nil && a.status == http.StatusAccepted
	}, "filled and believed again")
	o, ok := g.snapshot.Observed()
	require.True(t, ok)
	require.Len(t, o.Collectors, 2)
	a, _, err = s.push(badClient, g, bad.id, badToken)
	require.NoError(t, err)
	require.Equal(t, "certificate_revoked", a.Code, "neither bucket nor database knew it any more")
	require.NoError(t, s.service.Reconcile(t.Context()))
	require.Equal(t, "certificate_revoked", s.token(bad.cert).Code)
}
