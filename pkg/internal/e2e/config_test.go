package e2e

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/collector/uplink"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/policy"
)

// puller pulls as the collector of a state directory does, and keeps what was
// put in force.
type puller struct {
	mu      sync.Mutex
	applied []policy.Document
}

func (p *puller) last() policy.Document {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.applied) == 0 {
		return policy.Document{}
	}
	return p.applied[len(p.applied)-1]
}

// pull starts one that ends with the test.
func (s *system) pull(state string) *puller {
	s.t.Helper()
	id, err := uplink.LoadIdentity(state)
	require.NoError(s.t, err)
	cat, err := catalogue.Default()
	require.NoError(s.t, err)
	client := uplink.NewClient(id, state, prometheus.NewRegistry())
	p := &puller{}
	u := uplink.NewPuller(uplink.PullerConfig{CheckIn: time.Second, File: filepath.Join(state, uplink.PulledName), Apply: func(d policy.Document) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.applied = append(p.applied, d)
	}}, client, cat, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- u.Run(ctx) }()
	s.t.Cleanup(func() {
		cancel()
		require.NoError(s.t, <-done)
		client.Close()
	})
	return p
}

func collectorReadsTooMuch(t *testing.T, b *book) {
	s, _ := sender(t, "")
	p := s.page(b, "A collector weighs on its server, or reads too little")
	out, status := p.run(0)
	require.Zero(t, status, out)
	require.Contains(t, out, "db1: version 1;")
	pulled := s.pull(s.state())
	s.eventually("the collector runs it", func() bool {
		out, status = p.run(1)
		require.Zero(t, status, out)
		return strings.Contains(out, "the collector runs version 1")
	})
	require.Contains(t, out, "# db1: version 1, set ")
	require.Contains(t, out, ": spare db1 during the migration\n")
	require.Contains(t, out, "\n  pg_locks: off\n")
	require.Equal(t, map[string]policy.Setting{
		"pg_locks": {Off: true}, "pg_stat_statements": {Interval: 5 * time.Minute, MaxRows: 200},
	}, pulled.last().Families)
	out, status = p.run(2)
	require.Zero(t, status, out)
	require.Regexp(t, `(?m)^1 .* spare db1`, out)
	require.Contains(t, out, "db1: version 2;")
}

// A gateway begins anew from the bucket, and needs the database for nothing.
func TestGatewaysTellConfigurationsAfterAStartAndWithoutTheDatabase(t *testing.T) {
	t.Parallel()
	cluster := testdb.StartCluster(t)
	s, _ := sender(t, cluster.URL())
	config := func(verb string, args ...string) {
		t.Helper()
		s.command("pganalytics", append([]string{"config", verb, "--data-dir", s.data(), "--comment", "a test"}, args...)...)
	}
	minimal, exhaustive := filepath.Join(s.dir, "minimal.yaml"), filepath.Join(s.dir, "exhaustive.json")
	require.NoError(t, os.WriteFile(minimal, []byte("preset: minimal\n"), 0o600))
	require.NoError(t, os.WriteFile(exhaustive, []byte(`{"preset": "exhaustive"}`), 0o600))

	config("set", "--default", "--file", minimal)
	running := s.pull(s.state())
	s.eventually("the default", func() bool { return running.last().Preset == catalogue.Minimal })
	config("set", "db1", "--file", exhaustive, "--expect-version", "0")
	s.eventually("its own", func() bool { return running.last().Preset == catalogue.Exhaustive })

	s.serve.kill(t)
	s.startServe()
	cluster.Stop()
	anew := filepath.Join(s.dir, "anew")
	require.NoError(t, os.CopyFS(anew, os.DirFS(s.state())))
	require.NoError(t, os.Remove(filepath.Join(anew, uplink.PulledName)))
	second := s.pull(anew)
	s.eventually("without the database", func() bool { return second.last().Preset == catalogue.Exhaustive })

	cluster.Start()
	s.eventually("the database is back", func() bool {
		out, status := s.page(nil, "").paste(`pganalytics config unset db1 --comment "a test"`)
		return status == 0 && strings.Contains(out, "version 3")
	})
	s.eventually("the default again", func() bool {
		return running.last().Preset == catalogue.Minimal && second.last().Preset == catalogue.Minimal
	})
	require.Regexp(t, `(?m)^# the collector runs version 3`, string(s.command("pganalytics", "config", "get", "db1", "--data-dir", s.data())))
}
