package pgread

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/internal/testdb"
)

// sessions are those of one role: other collectors of other tests may read the
// same server.
const sessions = "select count(*)::int from pg_stat_activity where application_name = 'pganalytics-collector' and usename = $1"

// reader makes a role for one collector alone and returns its name and the
// database's URL for it.
func (d *database) reader() (role, conninfo string) {
	d.t.Helper()
	role = fmt.Sprintf("pganalytics_test_%d", time.Now().UnixNano())
	d.execute("create role "+role+" login password 'reader'", "grant select on all tables in schema public to "+role)
	d.t.Cleanup(func() { d.execute("drop owned by "+role, "drop role "+role) })
	u, err := url.Parse(d.url)
	require.NoError(d.t, err)
	u.User = url.UserPassword(role, "reader")
	return role, u.String()
}

func TestAtMostTwoConnectionsAreOpen(t *testing.T) {
	t.Parallel()
	d := open(t, testdb.Empty(t))
	first := d.conn.Config().Database
	for i := range 3 {
		name := fmt.Sprintf("%s_%d", first, i)
		d.execute("create database " + name)
		t.Cleanup(func() { d.execute("drop database " + name + " with (force)") })
	}
	role, conninfo := d.reader()
	slow := "select current_database()::text as datname, 1::bigint as v from pg_sleep(0.2)"
	r := start(t, Config{Name: "db1", Conninfo: conninfo, Include: []string{first + "*"}},
		load(t, family("theirs", "database", slow), family("one", "instance", slow), family("two", "instance", slow)))
	most, read := 0, map[string]bool{}
	// Long enough for a few attempts, each after twice the pause: an ordinary role
	// is the first to be refused when many tests use the server.
	require.Eventually(t, func() bool {
		n := d.number(sessions, role)
		require.LessOrEqual(t, n, 2)
		most = max(most, n)
		select {
		case got := <-r.out:
			for i := range got {
				read[got[i].Family+table(t, &got[i])[0][0]] = true
			}
		default:
		}
		return most == 2 && len(read) == 6
	}, 4*time.Minute, 20*time.Millisecond, "all families of all databases over two connections")
}

// requiring is a family that needs something.
func requiring(name, needs, sql string) string {
	return strings.Replace(family(name, "instance", sql), "interval: 1s\n", "interval: 1s\nrequires: {"+needs+"}\n", 1)
}

func TestAFamilyWhoseNeedsAreNotThereIsOffUntilTheyAre(t *testing.T) {
	t.Parallel()
	d := open(t, testdb.Empty(t))
	role, conninfo := d.reader()
	cat := load(t, requiring("extended", "extension: pg_stat_statements", "select 'x'::text as datname, count(*) as v from pg_stat_statements(false)"),
		requiring("helped", "function: helpers.helper", "select 'x'::text as datname, helpers.helper() as v"), family("good", "instance", number))
	cfg := Config{Name: "db1", Conninfo: conninfo, LookAgain: 100 * time.Millisecond}
	s, err := NewServer(cfg, cat, slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry()), nil)
	require.NoError(t, err)
	check := func() map[string]*Off {
		report, err := s.Check(t.Context())
		require.NoError(t, err)
		off := map[string]*Off{}
		for _, f := range report.Families {
			require.NoError(t, f.Err, f.Family)
			off[f.Family] = f.Off
		}
		return off
	}
	require.Equal(t, map[string]*Off{
		"extended": {NoExtension, "pg_stat_statements"}, "helped": {NoFunction, "helpers.helper"}, "good": nil,
	}, check())

	r := start(t, cfg, cat)
	unread := func(family string) float64 {
		return testutil.ToFloat64(r.metrics.unread.WithLabelValues("db1", family, missing))
	}
	r.eventually(func() bool { return unread("extended") >= 3 && unread("helped") >= 3 }, "both are off")
	require.Equal(t, 1, strings.Count(r.log(), `reason="extension pg_stat_statements is not in this database"`), r.log())
	require.Equal(t, 1, strings.Count(r.log(), `reason="function helpers.helper is not in this database"`), r.log())
	require.NotContains(t, r.log(), "attempt failed")

	d.execute("create extension pg_stat_statements", "create schema helpers", "create function helpers.helper() returns bigint language sql as 'select 7::bigint'")
	require.Equal(t, map[string]*Off{"extended": nil, "helped": {NoPrivilege, "helpers.helper"}, "good": nil}, check())
	r.of("extended")
	d.execute("grant usage on schema helpers to " + role)
	require.Equal(t, [][]string{{"x", "7"}}, table(t, r.of("helped")))

	// What goes is noticed by the failure, long before it is looked for again.
	cfg.LookAgain = time.Hour
	r = start(t, cfg, cat)
	r.of("helped")
	d.execute("drop function helpers.helper()")
	r.eventually(func() bool { return unread("helped") > 0 }, "it is off again")
	require.Equal(t, 1, strings.Count(r.log(), `reason="function helpers.helper is not in this database"`), r.log())
}

func TestASlowFamilyIsReadLessOftenUntilItIsFaster(t *testing.T) {
	t.Parallel()
	d := open(t, testdb.Empty(t))
	d.execute("create table pace (seconds double precision)", "insert into pace values (0.3)")
	slow := "select 'x'::text as datname, 1::bigint as v from public.pace, pg_sleep(seconds)"
	r := start(t, Config{Name: "db1", Conninfo: d.url, SlowAfter: 250 * time.Millisecond}, load(t, family("slow", "instance", slow), family("good", "instance", number)))
	backed := func(family string) float64 {
		return testutil.ToFloat64(r.metrics.unread.WithLabelValues("db1", family, backedOff))
	}
	for range maxSlow {
		require.Zero(t, backed("slow"))
		r.of("slow")
	}
	r.eventually(func() bool { return backed("slow") > 0 }, "it is left out")
	require.Equal(t, 1, strings.Count(r.log(), "takes too long"), r.log())
	d.execute("update pace set seconds = 0")
	r.eventually(func() bool { return strings.Contains(r.log(), "works again") }, "it is fast again")
	r.of("slow")
	require.Zero(t, backed("good"))
}

// A query that times out counts as slow too, and is left out from the first
// time on.
func TestATimeoutBacksOffAtOnce(t *testing.T) {
	t.Parallel()
	r := start(t, Config{Name: "db1", Conninfo: testdb.Empty(t), StatementTimeout: 200 * time.Millisecond},
		load(t, family("slow", "instance", "select 'x'::text as datname, 1::bigint as v from pg_sleep(60)")))
	r.eventually(func() bool {
		return testutil.ToFloat64(r.metrics.unread.WithLabelValues("db1", "slow", backedOff)) > 0
	}, "it is left out")
	require.Contains(t, r.log(), "57014")
}

func TestStoppingLeavesNoStatementRunning(t *testing.T) {
	t.Parallel()
	d := open(t, testdb.Empty(t))
	cat := load(t, family("long", "instance", "select 'x'::text as datname, 1::bigint as v from pg_sleep(300)"),
		family("longer", "database", "select 'x'::text as datname, 1::bigint as v from pg_sleep(300)"))
	role, conninfo := d.reader()
	s, err := NewServer(Config{Name: "db1", Conninfo: conninfo, Include: []string{d.conn.Config().Database}, StatementTimeout: 5 * time.Minute},
		cat, slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry()), make(chan []batch.Section))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	active := func() int {
		return d.number(sessions+" and state = 'active' and query like '%pg_sleep%'", role)
	}
	require.Eventually(t, func() bool { return active() == 2 }, 60*time.Second, 20*time.Millisecond)
	stopped := time.Now()
	cancel()
	require.NoError(t, <-done)
	require.Less(t, time.Since(stopped), 20*time.Second)
	require.Zero(t, active())
}

func TestALostConnectionIsNotTheFamilysFault(t *testing.T) {
	t.Parallel()
	d := open(t, testdb.Empty(t))
	d.execute("create table pace (seconds double precision)", "insert into pace values (100)")
	slow := "select 'x'::text as datname, 1::bigint as v from public.pace, pg_sleep(seconds)"
	role, conninfo := d.reader()
	r := start(t, Config{Name: "db1", Conninfo: conninfo, StatementTimeout: 2 * time.Minute}, load(t, family("slow", "instance", slow)))
	r.eventually(func() bool { return d.number(sessions+" and state = 'active' and query like '%pg_sleep%'", role) == 1 }, "it is being read")
	d.execute("update pace set seconds = 0")
	require.Equal(t, 1, d.number("select count(pg_terminate_backend(pid))::int from pg_stat_activity where usename = $1", role))
	r.of("slow")
	require.Contains(t, r.log(), "connection lost while reading")
	require.Zero(t, testutil.ToFloat64(r.metrics.unread.WithLabelValues("db1", "slow", backedOff)))
}

func TestFamiliesBeyondWhatIsReadNowWaitAndAreCounted(t *testing.T) {
	t.Parallel()
	preset := func(name, preset string) string {
		return strings.Replace(family(name, "instance", number), "interval: 1s\n", "interval: 1s\npreset: "+preset+"\n", 1)
	}
	r := start(t, Config{Name: "db1", Conninfo: testdb.Empty(t), UpTo: func() catalogue.Preset { return catalogue.Minimal }},
		load(t, preset("a_small", "minimal"), preset("b_large", "standard")))
	unread := func(family string) float64 {
		return testutil.ToFloat64(r.metrics.unread.WithLabelValues("db1", family, pressure))
	}
	r.of("a_small")
	r.eventually(func() bool { return unread("b_large") >= 2 }, "the other waits")
	require.Zero(t, unread("a_small"))
	require.Zero(t, testutil.ToFloat64(r.metrics.rows.WithLabelValues("db1", "b_large")))
}

func TestAnUnknownNewVersionGetsTheNewestQueriesAndOneWarning(t *testing.T) {
	t.Parallel()
	var logged strings.Builder
	two := strings.Replace(family("number", "instance", "select 1"), "queries:\n", "queries:\n", 1) + "  - {min_version: 18, sql: \"select 2\"}\n"
	s, err := NewServer(Config{Name: "db1", Conninfo: "host=127.0.0.1"}, load(t, two), slog.New(slog.NewTextHandler(&logged, nil)), NewMetrics(prometheus.NewRegistry()), nil)
	require.NoError(t, err)
	tasks := s.tasks(catalogue.Instance)
	for range 3 {
		s.choose(tasks, catalogue.NewestServer+6)
	}
	require.Equal(t, "select 2", tasks[0].query.SQL)
	require.Equal(t, 1, strings.Count(logged.String(), "level=WARN"), logged.String())
	s.choose(tasks, catalogue.OldestServer)
	require.Equal(t, "select 1", tasks[0].query.SQL)
}
