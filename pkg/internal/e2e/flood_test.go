package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

func TestAFloodOfLoginsDoesNotDisturbPushes(t *testing.T) {
	t.Parallel()
	s := newSystem(t, "")
	s.startServe()
	s.enrol("sender", s.state())
	c := s.client()

	anchors := x509.NewCertPool()
	for _, ca := range c.id.ServerCAs {
		anchors.AddCert(ca)
	}
	stranger := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: anchors, MinVersion: tls.VersionTLS13}}}
	defer stranger.CloseIdleConnections()
	var flood sync.WaitGroup
	var answered, under atomic.Int32
	for range 500 {
		flood.Go(func() {
			req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, s.endpoints.Users+"/api/v1/auth/login",
				bytes.NewReader([]byte(`{"username": "admin", "password": "wrong wrong wrong"}`)))
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("Content-Type", "application/json")
			under.Add(1)
			res, err := stranger.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			_ = res.Body.Close()
			if res.StatusCode != http.StatusUnauthorized && res.StatusCode != http.StatusTooManyRequests && res.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("a login was answered %s", res.Status)
			}
			answered.Add(1)
		})
	}
	s.eventually("the flood is under way", func() bool { return under.Load() == 500 })
	pushed, slowest := 0, time.Duration(0)
	for answered.Load() < 500 && pushed < 200 {
		began := time.Now()
		require.Equal(t, http.StatusAccepted, c.push(uuid.Must(uuid.NewV7()).String(), 10).StatusCode)
		slowest = max(slowest, time.Since(began))
		pushed++
	}
	t.Logf("%d pushes in the flood, the slowest took %s", pushed, slowest)
	flood.Wait()
	require.Positive(t, pushed)
	s.eventually("every push is stored", func() bool { return s.number("select count(*) from metrics.pg_settings") == 10*pushed })
	s.serve.stop(t)
}
