package collector

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/native"
	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/collector/internal/farend"
	"pganalytics/pkg/collector/pgread"
	"pganalytics/pkg/collector/spool"
	"pganalytics/pkg/collector/uplink"
	"pganalytics/pkg/daemon"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/internal/testlog"
	"pganalytics/pkg/policy"
)

// line is a collector between a real server and a far end.
type line struct {
	t      *testing.T
	far    *farend.Backend
	cfg    Config
	cat    *catalogue.Catalogue
	cancel context.CancelFunc
	done   chan error

	collector *Collector
	registry  *prometheus.Registry
	log       testlog.Buffer
	gone      float64 // rows read from servers whose metrics have ended
	hangups   chan os.Signal
	load      func() (Config, error) // what a reload reads
}

func newLine(t *testing.T) *line {
	t.Helper()
	l := &line{t: t, far: farend.New(t, nil, farend.OK)}
	var err error
	l.cat, err = catalogue.Default()
	require.NoError(t, err)
	dir := filepath.Join(t.TempDir(), "state")
	_, err = uplink.Enroll(t.Context(), uplink.Enrollment{
		URL: l.far.URL, CAFingerprint: l.far.Servers.Fingerprint(), Token: "t", Name: "c1", Hostname: "h1", StateDir: dir,
	})
	require.NoError(t, err)
	l.cfg = Config{
		StateDir: dir,
		Labels:   map[string]string{"env": "test"},
		Host:     Host{Off: true},
		Policy: policy.Policy{Families: map[string]policy.Setting{
			"pg_stat_database": {Interval: time.Second}, "pg_instance": {Interval: time.Second},
		}},
		Servers: []Server{{Config: pgread.Config{Name: "db1", Conninfo: testdb.Empty(t)}}},
		Pusher:  uplink.PusherConfig{MinBackoff: time.Millisecond, MaxBackoff: 20 * time.Millisecond, Grace: 2 * time.Second},
	}
	return l
}

func (l *line) start() {
	l.t.Helper()
	l.registry, l.hangups = prometheus.NewRegistry(), make(chan os.Signal, 1)
	log := slog.New(slog.NewTextHandler(&l.log, nil))
	c, err := New(l.cfg, l.cat, log, l.registry)
	require.NoError(l.t, err)
	l.collector = c
	forget, registry := c.fleet.forget, l.registry
	c.fleet.forget = func(at place) {
		l.gone += series(l.t, registry, at.server)[rowsTotal]
		forget(at)
	}
	ctx, cancel := context.WithCancel(l.t.Context())
	l.cancel, l.done = cancel, make(chan error, 1)
	parts := append(c.Parts(), c.Reloading(l.hangups, func() (Config, error) { return l.load() }))
	go func() {
		err := daemon.Run(ctx, log, 20*time.Second, parts...)
		if closeErr := c.Close(); err == nil {
			err = closeErr
		}
		l.done <- err
	}()
}

func (l *line) stop() {
	l.t.Helper()
	l.cancel()
	require.NoError(l.t, <-l.done)
}

// received is a batch and who sent it.
type received struct {
	*batch.Batch
	hostname string
}

// pushed waits for n different batches and returns them decoded by the
// gateway's own decoder, in the order in which they first came.
func (l *line) pushed(n int) []received {
	l.t.Helper()
	var batches []received
	require.Eventually(l.t, func() bool {
		seen := map[string]bool{}
		for _, p := range l.far.Seen().Pushes {
			seen[p.Body] = true
		}
		return len(seen) >= n
	}, 60*time.Second, 20*time.Millisecond)
	seen := map[string]bool{}
	for _, p := range l.far.Seen().Pushes {
		if seen[p.Body] {
			continue
		}
		seen[p.Body] = true
		require.Equal(l.t, "application/x-protobuf zstd", p.Kind+" "+p.Encoding)
		b, report, err := native.Decode(bytes.NewReader(inflate(l.t, []byte(p.Body))), l.far.ID, l.cat, push.DefaultLimits(), time.Now())
		require.NoError(l.t, err)
		require.Empty(l.t, report.Rejected)
		require.Equal(l.t, batch.Label{Name: "env", Value: "test"}, b.Labels[0])
		batches = append(batches, received{b, report.Hostname})
	}
	return batches
}

func requireNoGap(t *testing.T, batches []received) {
	t.Helper()
	for i, b := range batches {
		require.Equal(t, batches[0].Epoch, b.Epoch)
		require.Equal(t, uint64(i+1), b.Sequence)
	}
}

func TestWhatServersSayReachesTheGatewayWithoutAGap(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.start()
	families := map[string]bool{}
	for _, b := range l.pushed(3) {
		for _, s := range b.Sections {
			require.Equal(t, "db1", s.Server)
			families[s.Family] = true
		}
	}
	require.Contains(t, families, "pg_stat_database")

	// The gateway goes away, the collector is stopped and started, the
	// gateway comes back: every batch arrives, in order.
	l.far.Answer(farend.Refusal(http.StatusServiceUnavailable, "unavailable"))
	held := len(l.pushed(1))
	require.Eventually(t, func() bool {
		stats, err := spool.Inspect(SpoolDir(l.cfg.StateDir))
		return err == nil && stats.Unsent >= 3
	}, 30*time.Second, 20*time.Millisecond)
	l.stop()
	l.start()
	l.far.Answer(farend.OK)
	requireNoGap(t, l.pushed(held+4))
	l.stop()

	accepted, err := spool.ReadAccepted(SpoolDir(l.cfg.StateDir))
	require.NoError(t, err)
	batches := l.pushed(1)
	require.Len(t, accepted, len(batches), "stopping sends what is left")
	for i, a := range accepted {
		require.Equal(t, batches[i].ID, a.BatchID)
	}
}

func TestHostAndLogFilesReachTheGatewayUnderTheirServers(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	log := filepath.Join(t.TempDir(), "pg.json")
	require.NoError(t, os.WriteFile(log, nil, 0o600))
	l.cfg.Host = Host{}
	l.cfg.Servers[0].LogFiles = log
	l.cfg.Policy.Families["host_memory"] = policy.Setting{Interval: time.Second}
	l.cfg.Policy.Families["host_load"] = policy.Setting{Off: true}
	l.cfg.Policy.Families["pg_log_summary"] = policy.Setting{Interval: time.Second}
	l.start()
	l.pushed(1) // the log is followed
	seen := map[string]int{}
	l.eventually("host and log", func() bool {
		f, err := os.OpenFile(log, os.O_APPEND|os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = f.WriteString(`{"error_severity":"ERROR","state_code":"42601","message":"x"}` + "\n")
		require.NoError(t, errors.Join(err, f.Close()))
		for _, b := range l.pushed(1) {
			for _, s := range b.Sections {
				seen[s.Server+" "+s.Family]++
			}
		}
		return seen["db1 pg_log_summary"] > 0 && seen["h1 host_memory"] > 0
	})
	l.stop()
	require.Zero(t, seen["h1 host_load"], "it is off")
	require.Zero(t, seen["h1 pg_log_summary"]+seen["db1 host_memory"])
}

func TestACollectorThatIsNotEnrolledDoesNotRun(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.cfg.StateDir = t.TempDir()
	_, err := New(l.cfg, l.cat, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.ErrorIs(t, err, uplink.ErrNotEnrolled)
}
