package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/collector/uplink"
	"pganalytics/pkg/internal/testdb"
)

func TestAFullStreamRefusesAtOnceAndTakesAgainOnceTrimmed(t *testing.T) {
	t.Parallel()
	cluster := testdb.StartCluster(t)
	s := newSystem(t, cluster.URL(), "--nats-batches-max-bytes", "4194304", "--trim-interval", "200ms")
	s.startServe()
	s.enrol("sender", s.state())
	c := s.client()
	cluster.Stop() // nothing is stored, so nothing may be purged

	taken := map[string]bool{}
	for range 200 {
		id, start := uuid.Must(uuid.NewV7()).String(), time.Now()
		res := c.push(id, 50)
		if res.StatusCode == http.StatusAccepted {
			taken[id] = true
			continue
		}
		require.Equal(t, http.StatusServiceUnavailable, res.StatusCode)
		require.NotEmpty(t, res.Header.Get("Retry-After"))
		require.Less(t, time.Since(start), 2*time.Second, "a full stream is told at once")
		break
	}
	require.Greater(t, len(taken), 20)
	require.Less(t, len(taken), 200, "the stream never became full")
	for range 5 {
		<-time.After(200 * time.Millisecond) // rounds of the trimmer
		require.Equal(t, http.StatusServiceUnavailable, c.push(uuid.Must(uuid.NewV7()).String(), 50).StatusCode, "what is not stored is not purged")
	}

	cluster.Start()
	s.eventually("every accepted batch is stored", func() bool {
		return s.number("select count(*) from ingest.batch") >= len(taken)
	})
	s.eventually("pushes are taken again", func() bool {
		id := uuid.Must(uuid.NewV7()).String()
		ok := c.push(id, 50).StatusCode == http.StatusAccepted
		if ok {
			taken[id] = true
		}
		return ok
	})
	s.eventually("that one is stored too", func() bool { return s.number("select count(*) from ingest.batch") == len(taken) })
	require.Equal(t, 50*len(taken), s.number("select count(*) from metrics.pg_settings"))
	ids := make([]string, 0, len(taken))
	for id := range taken {
		ids = append(ids, id)
	}
	require.Equal(t, len(taken), s.number("select count(*) from ingest.batch where batch_id = any($1::uuid[])", ids))
	s.serve.stop(t)
}

// client pushes bodies of the test's own making as the enrolled collector.
type client struct {
	t     *testing.T
	id    *uplink.Identity
	http  *http.Client
	token string
}

func (s *system) client() *client {
	s.t.Helper()
	return s.clientOf(s.state())
}

func (s *system) clientOf(state string) *client {
	s.t.Helper()
	id, err := uplink.LoadIdentity(state)
	require.NoError(s.t, err)
	anchors := x509.NewCertPool()
	for _, ca := range id.ServerCAs {
		anchors.AddCert(ca)
	}
	c := &client{t: s.t, id: id, http: &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: anchors, Certificates: []tls.Certificate{id.Certificate}, MinVersion: tls.VersionTLS13},
	}}}
	s.t.Cleanup(c.http.CloseIdleConnections)
	c.fetchToken()
	return c
}

func (c *client) fetchToken() {
	c.t.Helper()
	c.token = ""
	var answer struct{ Token string }
	res := c.post("/api/v1/collectors/token", nil)
	require.Equal(c.t, http.StatusOK, res.StatusCode)
	require.NoError(c.t, json.NewDecoder(res.Body).Decode(&answer))
	c.token = answer.Token
}

// post returns the answer, whose body has been read.
func (c *client) post(path string, body []byte) *http.Response {
	c.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, c.id.CollectorURL+path, bytes.NewReader(body))
	require.NoError(c.t, err)
	req.Header.Set("Content-Type", "application/json")
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	res, err := c.http.Do(req)
	require.NoError(c.t, err)
	data, err := io.ReadAll(res.Body)
	require.NoError(c.t, err)
	require.NoError(c.t, res.Body.Close())
	res.Body = io.NopCloser(bytes.NewReader(data))
	return res
}

// push sends rows of 1 KiB each.
func (c *client) push(id string, rows int) *http.Response {
	c.t.Helper()
	list := make([]string, rows)
	for i := range list {
		noise := make([]byte, 500) // which takes its room on the stream too
		_, _ = rand.Read(noise)    // never fails
		list[i] = fmt.Sprintf(`["setting%d", "%x"]`, i, noise)
	}
	return c.post("/api/v1/metrics/push", fmt.Appendf(nil,
		`{"collector_id": %q, "hostname": "h", "timestamp": %q, "version": "test", "batch_id": %q, "metrics_count": 1,
"metrics": [{"type": "pg_settings", "columns": ["name", "setting"], "rows": [%s]}]}`,
		c.id.CollectorID, time.Now().UTC().Format(time.RFC3339), id, strings.Join(list, ",")))
}
