package collector

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/collector/pgread"
	"pganalytics/pkg/collector/spool"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/policy"
)

// database is a server's own, and so tells its connections from others'.
type database struct {
	t        *testing.T
	conninfo string
}

func newDatabase(t *testing.T) database { return database{t, testdb.Empty(t)} }

func (d database) server(name string) Server {
	return Server{Config: pgread.Config{Name: name, Conninfo: d.conninfo}}
}

// sessions returns the collector's connections as "pid".
func (d database) sessions() []string {
	d.t.Helper()
	res, err := execute(d.t, d.conninfo, `select pid from pg_stat_activity
		where datname = current_database() and application_name = 'pganalytics-collector' order by 1`)
	require.NoError(d.t, err)
	var pids []string
	for _, row := range res[0].Rows {
		pids = append(pids, string(row[0]))
	}
	return pids
}

// instanceOnly turns off what opens connections that come and go.
func instanceOnly(cat *catalogue.Catalogue) policy.Policy {
	p := policy.Policy{Preset: catalogue.Minimal, Families: map[string]policy.Setting{"pg_stat_database": {Interval: time.Second}}}
	for _, f := range cat.Families() {
		if f.Scope == catalogue.Database {
			p.Families[f.Name] = policy.Setting{Off: true}
		}
	}
	return p
}

func (l *line) eventually(what string, ok func() bool) {
	l.t.Helper()
	require.Eventually(l.t, ok, time.Minute, 20*time.Millisecond, what)
}

// connected waits for a connection other than before, and returns it.
func (l *line) connected(d database, before ...string) string {
	l.t.Helper()
	var pid string
	l.eventually("a connection", func() bool {
		pids := d.sessions()
		if len(pids) != 1 || slices.Contains(before, pids[0]) {
			return false
		}
		pid = pids[0]
		return true
	})
	return pid
}

const (
	rowsTotal = "pganalytics_collector_rows_total"
	serverUp  = "pganalytics_collector_server_up"
)

// series returns the counters and gauges of a server, "" for all, summed by
// their names.
func series(t *testing.T, reg prometheus.Gatherer, server string) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	sums := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			is := server == ""
			for _, l := range m.GetLabel() {
				is = is || l.GetName() == "server" && l.GetValue() == server
			}
			if is {
				sums[f.GetName()] += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sums
}

// everythingRead compares what readers say they read, also of servers that are
// gone, with what was pushed.
func (l *line) everythingRead() {
	l.t.Helper()
	read, pushed := series(l.t, l.registry, "")[rowsTotal]+l.gone, 0
	batches := l.pushed(1)
	requireNoGap(l.t, batches)
	for _, b := range batches {
		for _, s := range b.Sections {
			pushed += s.Rows
		}
	}
	require.Positive(l.t, pushed)
	stats, err := spool.Inspect(SpoolDir(l.cfg.StateDir))
	require.NoError(l.t, err)
	require.Zero(l.t, stats.Unsent, "stopping sends what is left")
	require.Zero(l.t, testutil.ToFloat64(l.collector.metrics.lostRows))
	require.InDelta(l.t, read, pushed, 0)
}

func TestAReloadTouchesOnlyTheServersThatChange(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	kept, changed, gone, added := newDatabase(t), newDatabase(t), newDatabase(t), newDatabase(t)
	l.cfg.Policy = instanceOnly(l.cat)
	l.cfg.Servers = []Server{kept.server("kept"), changed.server("changed"), gone.server("gone")}
	l.start()
	keptPID, changedPID := l.connected(kept), l.connected(changed)
	l.connected(gone)

	l.pushed(1)
	next := l.cfg
	next.Labels, next.Hostname = map[string]string{"env": "test", "rack": "7"}, "renamed"
	slow := changed.server("changed")
	slow.StatementTimeout = 7 * time.Second
	next.Servers = []Server{kept.server("kept"), slow, added.server("added")}
	l.load = func() (Config, error) { return next, nil }
	l.hangups <- syscall.SIGHUP
	addedPID, slowPID := l.connected(added), l.connected(changed, changedPID)
	l.eventually("the removed server is let go of", func() bool { return len(gone.sessions()) == 0 })
	require.Equal(t, []string{keptPID}, kept.sessions(), "it was not touched")
	l.eventually("its metrics end", func() bool { return len(series(t, l.registry, "gone")) == 0 })
	require.NotEmpty(t, series(t, l.registry, "kept"))

	// A faulty one changes nothing.
	l.load = func() (Config, error) {
		faulty := next
		faulty.Servers = []Server{{Config: pgread.Config{Name: "x", Conninfo: "nonsense"}}, added.server("added"), added.server("added")}
		return faulty, nil
	}
	l.hangups <- syscall.SIGHUP
	l.eventually("it is refused", func() bool { return testutil.ToFloat64(l.collector.metrics.configOK) == 0 })
	require.InDelta(t, 1, testutil.ToFloat64(l.collector.metrics.reloads.WithLabelValues("refused")), 0)
	l.eventually("it is logged", func() bool { return strings.Contains(l.log.String(), `server \"x\": conninfo is not valid`) })
	require.Contains(t, l.log.String(), `server \"added\": name is used twice`)
	l.load = func() (Config, error) { return next, errors.New("cannot be read") }
	l.hangups <- syscall.SIGHUP
	l.eventually("it is refused", func() bool { return strings.Contains(l.log.String(), "cannot be read") })
	require.Equal(t, []string{keptPID, slowPID, addedPID}, slices.Concat(kept.sessions(), changed.sessions(), added.sessions()))

	l.load = func() (Config, error) { return next, nil }
	l.hangups <- syscall.SIGHUP
	l.eventually("it is good again", func() bool { return testutil.ToFloat64(l.collector.metrics.configOK) == 1 })
	require.Equal(t, []string{keptPID, slowPID, addedPID}, slices.Concat(kept.sessions(), changed.sessions(), added.sessions()))
	var last received
	l.eventually("a batch under the new name", func() bool {
		batches := l.pushed(1)
		require.Len(t, batches[0].Labels, 1)
		last = batches[len(batches)-1]
		return last.hostname == "renamed"
	})
	require.Equal(t, []batch.Label{{Name: "env", Value: "test"}, {Name: "rack", Value: "7"}}, last.Labels)
	l.stop()
	l.everythingRead()
}

func TestAPulledPolicyIsAppliedToTheServersItConcerns(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	one, two := newDatabase(t), newDatabase(t)
	l.cfg.Policy = instanceOnly(l.cat)
	l.cfg.Servers = []Server{one.server("one"), two.server("two")}
	l.start()
	onePID, twoPID := l.connected(one), l.connected(two)

	everythingOff := policy.Policy{Families: map[string]policy.Setting{}}
	for _, f := range l.cat.Families() {
		everythingOff.Families[f.Name] = policy.Setting{Off: true}
	}
	l.collector.Apply(policy.Document{Servers: map[string]policy.Policy{"two": everythingOff, "three": {}}})
	l.eventually("nothing is read from two", func() bool { return len(two.sessions()) == 0 })
	require.Equal(t, []string{onePID}, one.sessions())
	l.eventually("it is neither up nor down", func() bool {
		_, told := series(t, l.registry, "two")[serverUp]
		return !told
	})
	require.InDelta(t, 1, series(t, l.registry, "one")[serverUp], 0)
	require.Contains(t, l.log.String(), "server=three")

	// It stays above a file that is read again.
	l.load = func() (Config, error) { return l.cfg, nil }
	l.hangups <- syscall.SIGHUP
	l.eventually("read again", func() bool { return strings.Contains(l.log.String(), "configuration read again") })
	require.Empty(t, two.sessions())

	l.collector.Apply(policy.Document{})
	l.connected(two, twoPID)
	require.Equal(t, []string{onePID}, one.sessions())
	l.stop()
	l.everythingRead()
}

func TestNothingReadIsLostWhileServersComeAndGo(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	databases := []database{newDatabase(t), newDatabase(t)}
	l.cfg.Policy = instanceOnly(l.cat)
	l.cfg.Servers = []Server{databases[0].server("0"), databases[1].server("1")}
	l.start()
	var group sync.WaitGroup
	for n := range databases {
		group.Go(func() {
			for i := range 30 {
				cfg := l.cfg
				cfg.Servers = []Server{databases[n].server(string(rune('0' + n)))}
				cfg.Servers[0].StatementTimeout = time.Duration(1+i) * time.Second
				require.NoError(t, l.collector.Reload(cfg))
				l.collector.Apply(policy.Document{Policy: policy.Policy{Families: map[string]policy.Setting{"pg_instance": {Off: i%2 == 0}}}})
			}
		})
	}
	group.Wait()
	other := l.cfg
	other.Servers = []Server{databases[0].server("0")}
	for range 20 { // and at once as before
		require.NoError(t, l.collector.Reload(other))
		require.NoError(t, l.collector.Reload(l.cfg))
	}
	for _, d := range databases {
		l.connected(d)
	}
	l.stop()
	l.everythingRead()
}

// bareFleet is a fleet whose sections the test takes.
type bareFleet struct {
	*fleet
	t        *testing.T
	registry *prometheus.Registry
	sections chan []batch.Section
	cancel   context.CancelFunc
	ended    chan error
}

func newBareFleet(t *testing.T, cat *catalogue.Catalogue, sources map[place]any) *bareFleet {
	t.Helper()
	b := &bareFleet{t: t, registry: prometheus.NewRegistry(), sections: make(chan []batch.Section), ended: make(chan error, 1)}
	log := slog.New(slog.DiscardHandler)
	b.fleet = newFleet(newDesk(uuid.New(), cat, nil, log, b.registry, b.sections), log, newMetrics(b.registry))
	b.want(sources)
	var ctx context.Context
	ctx, b.cancel = context.WithCancel(t.Context())
	t.Cleanup(b.cancel)
	go func() { b.ended <- b.run(ctx) }()
	return b
}

// untilRead waits until something was read, which nobody takes.
func (b *bareFleet) untilRead() {
	b.t.Helper()
	require.Eventually(b.t, func() bool {
		n, err := testutil.GatherAndCount(b.registry, "pganalytics_collector_rows_total")
		return err == nil && n > 0
	}, time.Minute, 10*time.Millisecond)
}

// wanted waits until the fleet has heeded that so many servers are wanted.
func (b *bareFleet) wanted(servers int) {
	b.t.Helper()
	require.Eventually(b.t, func() bool { return int(testutil.ToFloat64(b.metrics.servers)) == servers }, time.Minute, time.Millisecond)
}

// drain takes what comes until the fleet has ended and returns how much it was.
func (b *bareFleet) drain() (n int) {
	b.t.Helper()
	b.cancel()
	for {
		select {
		case <-b.sections:
			n++
		case err := <-b.ended:
			require.NoError(b.t, err)
			return n
		}
	}
}

func TestAFleetHasEndedOnceAllThatWasReadIsTaken(t *testing.T) {
	t.Parallel()
	cat := defaultCatalogue(t)
	cfg := Config{Host: Host{Off: true}, Policy: instanceOnly(cat), Servers: []Server{newDatabase(t).server("one")}}
	b := newBareFleet(t, cat, cfg.sources(cat, policy.Document{}))
	b.untilRead()
	b.cancel()
	select {
	case err := <-b.ended:
		require.Fail(t, "what was read is lost", "%v", err)
	case <-time.After(100 * time.Millisecond):
	}
	require.Equal(t, 1, b.drain())
}

func TestAServerThatIsWantedAgainBeforeItHasEndedIsReadOn(t *testing.T) {
	t.Parallel()
	cat := defaultCatalogue(t)
	cfg := Config{Host: Host{Off: true}, Policy: instanceOnly(cat), Servers: []Server{newDatabase(t).server("one")}}
	sources := cfg.sources(cat, policy.Document{})
	b := newBareFleet(t, cat, sources)
	b.untilRead()
	b.want(nil)
	b.wanted(0)
	b.want(sources)
	b.wanted(1)
	for range 4 { // more than the one that was held
		select {
		case <-b.sections:
		case <-time.After(time.Minute):
			require.Fail(t, "nothing is read any more")
		}
	}
	b.drain()
}

// The attempt is broken off by us: whether the server is there is not known.
func TestAServerThatIsRemovedWhileItIsConnectedToIsNotCalledDown(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = silent.Close() }()
	cat := defaultCatalogue(t)
	host, port, err := net.SplitHostPort(silent.Addr().String())
	require.NoError(t, err)
	server := Server{Config: pgread.Config{Name: "one", Conninfo: "sslmode=disable host=" + host + " port=" + port}}
	server.ConnectTimeout = time.Minute
	cfg := Config{Host: Host{Off: true}, Policy: instanceOnly(cat), Servers: []Server{server}}
	cfg.Policy.Families["pg_instance"] = policy.Setting{Interval: time.Second}
	b := newBareFleet(t, cat, cfg.sources(cat, policy.Document{}))
	conn, err := silent.Accept()
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	require.Zero(t, b.drain())
}
