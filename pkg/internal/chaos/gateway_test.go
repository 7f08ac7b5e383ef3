package chaos

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/authsvc/pgstore"
	"pganalytics/pkg/batch"
	"pganalytics/pkg/bus"
	"pganalytics/pkg/collector/uplink"
	"pganalytics/pkg/identity/ca"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/internal/testnet"
)

// Gateway, stream and ingester die together, and with them every push that is
// under way: it was taken, or not, or is taken and nobody was told.
func TestPushesThroughAGatewayThatIsKilledAreStoredOnce(t *testing.T) {
	t.Parallel()
	slow(t)
	const collectors = 20
	s := bareSite(t, testdb.Empty(t))
	dir := t.TempDir()
	users, pushes, nats := testnet.FreeAddress(t), testnet.FreeAddress(t), testnet.FreeAddress(t)
	serve := s.serve(dir, users, pushes, nats)
	endpoints := serve.ready()
	s.connectBus(bus.Config{URL: endpoints.NATS, User: "operator", PasswordFile: filepath.Join(dir, "nats", "password")})

	var senders [collectors]*pusher
	var ids []uuid.UUID
	for i := range senders {
		senders[i] = s.enrol(dir, endpoints.Users, fmt.Sprint("collector-", i))
		ids = append(ids, senders[i].id.CollectorID)
	}
	f := s.collect(fleetConfig{ids: ids, send: func(ctx context.Context, i int, b *batch.Batch, rows []row) error {
		return senders[i].push(ctx, b, rows)
	}})
	for range 5 {
		s.flowing(100)
		serve.kill()
		serve = s.serve(dir, users, pushes, nats)
		serve.ready()
	}
	s.flowing(100)
	f.stop()
	s.verify()
	require.Positive(t, f.refused.Load(), "no collector noticed")
}

func (s *site) serve(dir, users, pushes, nats string) *process {
	s.t.Helper()
	return run(s.t, s.db, "pganalytics", append([]string{"serve", "--data-dir", dir, "--hosts", "127.0.0.1",
		"--users-listen", users, "--collectors-listen", pushes, "--nats-listen", nats}, quick(s.catalogue)...)...)
}

// enrol returns a collector that may push.
func (s *site) enrol(dir, url, name string) *pusher {
	s.t.Helper()
	store, err := pgstore.Open(s.t.Context(), s.db)
	require.NoError(s.t, err)
	defer store.Close()
	token, err := authsvc.CreateEnrollmentToken(s.t.Context(), store, authsvc.EnrollmentRequest{Actor: "cli:chaos"})
	require.NoError(s.t, err)
	anchors, err := ca.LoadCertificates(filepath.Join(dir, "pki", ca.ServerCAFile))
	require.NoError(s.t, err)
	id, err := uplink.Enroll(s.t.Context(), uplink.Enrollment{
		URL: url, CAFingerprint: ca.Fingerprint(anchors[0]), Token: token.Token,
		Name: name, Hostname: name, Version: "chaos", StateDir: s.t.TempDir(),
	})
	require.NoError(s.t, err)
	roots := x509.NewCertPool()
	for _, c := range id.ServerCAs {
		roots.AddCert(c)
	}
	p := &pusher{id: id, http: &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{id.Certificate}, MinVersion: tls.VersionTLS13},
	}}}
	s.t.Cleanup(p.http.CloseIdleConnections)
	return p
}

// pusher is a collector that knows nothing but to push.
type pusher struct {
	id    *uplink.Identity
	http  *http.Client
	token string
}

// push returns nil once the gateway has said that it takes all rows.
func (p *pusher) push(ctx context.Context, b *batch.Batch, rows []row) error {
	if p.token == "" {
		var answer struct{ Token string }
		if err := p.post(ctx, "/api/v1/collectors/token", struct{}{}, http.StatusOK, &answer); err != nil {
			return err
		}
		p.token = answer.Token
	}
	var answer struct {
		Rows int `json:"rows_accepted"`
	}
	if err := p.post(ctx, "/api/v1/metrics/push", p.body(b, rows), http.StatusAccepted, &answer); err != nil {
		return err
	}
	if answer.Rows != len(rows) {
		return fmt.Errorf("%d of %d rows are taken", answer.Rows, len(rows))
	}
	return nil
}

type item struct {
	Type      string    `json:"type"`
	Server    string    `json:"server"`
	Timestamp time.Time `json:"timestamp"`
	Columns   []string  `json:"columns"`
	Rows      [][]any   `json:"rows"`
}

// body says the same as the batch, in the form of a push.
func (p *pusher) body(b *batch.Batch, rows []row) any {
	var names []string
	for _, c := range columns {
		names = append(names, c.Name)
	}
	type key struct {
		family int
		at     time.Time
	}
	byKey := map[key]int{}
	var items []item
	for i := range rows {
		r := &rows[i]
		k := key{r.family, r.at}
		n, there := byKey[k]
		if !there {
			n = len(items)
			byKey[k] = n
			items = append(items, item{Type: families[r.family], Server: "db1", Timestamp: r.at, Columns: names})
		}
		items[n].Rows = append(items[n].Rows, []any{r.batch, r.n, r.body, r.extra})
	}
	return map[string]any{
		"collector_id": p.id.CollectorID, "hostname": p.id.Hostname, "version": "chaos", "timestamp": b.SentAt,
		"batch_id": b.ID, "metrics_count": len(items), "metrics": items,
	}
}

func (p *pusher) post(ctx context.Context, path string, body any, want int, answer any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.id.CollectorURL+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+p.token)
	res, err := p.http.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != want {
		return fmt.Errorf("%s: %s", res.Status, data)
	}
	return json.Unmarshal(data, answer)
}
