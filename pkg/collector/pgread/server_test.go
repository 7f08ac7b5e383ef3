package pgread

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/internal/testdb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// families are those of the tests, beside which a fault is put.
const allTypes = `
name: all_types
description: One column of each type.
scope: instance
interval: 1s
retention: 30d
chunk: 1d
columns:
  - {name: b, type: boolean, kind: gauge, help: x}
  - {name: i2, type: smallint, kind: gauge, help: x}
  - {name: i4, type: integer, kind: gauge, help: x}
  - {name: i8, type: bigint, kind: gauge, help: x}
  - {name: big, type: bigint, kind: gauge, help: x}
  - {name: f4, type: real, kind: gauge, help: x}
  - {name: f8, type: double precision, kind: gauge, help: x}
  - {name: t, type: text, kind: info, help: x}
  - {name: u, type: uuid, kind: info, help: x}
  - {name: ts, type: timestamptz, kind: info, help: x}
  - {name: n, type: text, kind: info, help: x}
  - {name: nan, type: double precision, kind: gauge, help: x}
  - {name: inf, type: timestamptz, kind: info, help: x}
queries:
  - min_version: 13
    sql: |
      select 'infinity'::timestamptz as inf, 'NaN'::double precision as nan, true::boolean as b, (-2)::smallint as i2, 4::integer as i4,
             (-8)::bigint as i8, 9223372036854775807::bigint as big, 1.5::real as f4, 1e-7::double precision as f8,
             E'a"b\n€<'::text as t, 'c0ffee00-0000-4000-8000-000000000001'::uuid as u,
             '2024-05-06 07:08:09.123456+02'::timestamptz as ts, null::text as n
`

func family(name, scope, sql string) string {
	return `
name: ` + name + `
description: A number.
scope: ` + scope + `
interval: 1s
retention: 30d
chunk: 1d
key: [datname]
columns:
  - {name: datname, type: text, help: x}
  - {name: v, type: bigint, kind: gauge, help: x}
queries:
  - {min_version: 13, sql: "` + sql + `"}
`
}

const number = "select current_database()::text as datname, 7::bigint as v"

func load(t *testing.T, files ...string) *catalogue.Catalogue {
	t.Helper()
	fsys := fstest.MapFS{}
	for _, text := range files {
		name, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(text), "name: "), "\n")
		fsys[name+".yaml"] = &fstest.MapFile{Data: []byte(text)}
	}
	cat, err := catalogue.Load(fsys)
	require.NoError(t, err)
	return cat
}

// running is a server that is being read.
type running struct {
	t       *testing.T
	metrics *Metrics
	items   chan []Item
	mu      sync.Mutex
	logged  bytes.Buffer
}

func (r *running) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.logged.Write(p)
}

func (r *running) log() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.logged.String()
}

func start(t *testing.T, cfg Config, cat *catalogue.Catalogue) *running {
	t.Helper()
	r := &running{t: t, metrics: NewMetrics(prometheus.NewRegistry()), items: make(chan []Item)}
	s, err := NewServer(cfg, cat, slog.New(slog.NewTextHandler(r, nil)), r.metrics, r.items)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		for {
			select {
			case <-r.items:
			case <-done:
				return
			}
		}
	})
	return r
}

// next returns the next item for which want is true.
func (r *running) next(what string, want func(Item) bool) Item {
	r.t.Helper()
	deadline := time.After(40 * time.Second)
	for {
		select {
		case items := <-r.items:
			for _, it := range items {
				if want(it) {
					return it
				}
			}
		case <-deadline:
			require.FailNow(r.t, "no such item came: "+what, r.log())
		}
	}
}

func (r *running) of(name string) Item {
	r.t.Helper()
	return r.next(name, func(it Item) bool { return it.Family == name })
}

func TestEveryTypeIsReadAsItIs(t *testing.T) {
	t.Parallel()
	r := start(t, Config{Name: "db1", Conninfo: testdb.Empty(t)}, load(t, allTypes))
	it := r.of("all_types")
	require.Equal(t, "db1", it.Server)
	require.WithinDuration(t, time.Now(), it.At, 10*time.Second)
	require.Len(t, it.Rows, 1)
	require.Equal(t, `[true,-2,4,-8,"9223372036854775807",1.5,1e-07,"a\"b\n€<","c0ffee00-0000-4000-8000-000000000001","2024-05-06T05:08:09.123456Z",null,null,null]`,
		string(it.Rows[0]))
	require.InDelta(t, 2, testutil.ToFloat64(r.metrics.values.WithLabelValues("nulled")), 0)
}

func TestBuiltInFamiliesAreRead(t *testing.T) {
	t.Parallel()
	cat, err := catalogue.Default()
	require.NoError(t, err)
	s, err := NewServer(Config{Name: "db1", Conninfo: testdb.Empty(t)}, cat, slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry()), nil)
	require.NoError(t, err)
	report, err := s.Check(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, report.Families)
	for _, f := range report.Families {
		if strings.HasPrefix(f.Family, "pg_stat_statements") {
			continue // needs an extension that the test server may not have
		}
		require.NoError(t, f.Err, f.Family)
	}
}

func TestSessionIsReadOnlyAndBounded(t *testing.T) {
	t.Parallel()
	settings := family("settings", "instance",
		"select current_setting('application_name') || ' ' || current_setting('statement_timeout') || ' ' || current_setting('lock_timeout') || ' ' || current_setting('transaction_read_only') as datname, 1::bigint as v")
	r := start(t, Config{Name: "db1", Conninfo: testdb.Empty(t)}, load(t, settings))
	require.JSONEq(t, `["pganalytics-collector 5s 100ms on",1]`, string(r.of("settings").Rows[0]))
}

func TestNoFunctionOfAStrangerIsCalled(t *testing.T) {
	t.Parallel()
	url := testdb.Empty(t)
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer func() { _ = conn.Close(t.Context()) }()
	execute := func(sql string) {
		_, err := conn.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	execute("create function public.pg_stat_statements(boolean) returns bigint language sql as 'select 7::bigint'")
	path := family("path", "instance", "select current_setting('search_path') as datname, 1::bigint as v")
	trap := family("trap", "instance", "select 'x'::text as datname, pg_stat_statements(true) as v")
	r := start(t, Config{Name: "db1", Conninfo: url}, load(t, path, trap))
	require.JSONEq(t, `["pg_catalog",1]`, string(r.of("path").Rows[0]))
	require.Eventually(t, func() bool {
		return testutil.ToFloat64(r.metrics.queryErrors.WithLabelValues("db1", "trap")) == 1
	}, 20*time.Second, 10*time.Millisecond, "the family fails instead")

	execute(`create schema "Our own"`)
	execute(`create extension pg_stat_statements schema "Our own"`)
	r = start(t, Config{Name: "db1", Conninfo: url}, load(t, path))
	require.JSONEq(t, `["pg_catalog, \"Our own\"",1]`, string(r.of("path").Rows[0]))
}

func TestAFailingQueryStopsNothingElse(t *testing.T) {
	t.Parallel()
	r := start(t, Config{Name: "db1", Conninfo: testdb.Empty(t)}, load(t,
		family("a_broken", "instance", "select no_such_column from pg_class"),
		family("b_misfit", "instance", "select 'x'::text as datname, 7::double precision as v"),
		family("c_slow", "instance", "select 'x'::text as datname, 7::bigint as v from pg_sleep(60)"),
		family("d_good", "instance", number),
		family("e_broken", "database", "select 1/0"),
		family("f_good", "database", number),
	))
	r.of("d_good")
	r.of("f_good")
	r.of("d_good")
	for _, name := range []string{"a_broken", "b_misfit", "c_slow", "e_broken"} {
		require.Eventually(t, func() bool {
			select { // keep it going
			case <-r.items:
			default:
			}
			return testutil.ToFloat64(r.metrics.queryErrors.WithLabelValues("db1", name)) >= 1
		}, 30*time.Second, 10*time.Millisecond, name)
	}
	r.of("d_good")
	r.of("f_good")
	require.Equal(t, 1, strings.Count(r.log(), "family=a_broken"), "a repeated failure is logged once:\n"+r.log())
}

func TestEveryConnectableDatabaseIsReadAndNoOther(t *testing.T) {
	t.Parallel()
	one, two := testdb.Empty(t), testdb.Empty(t)
	name := func(url string) string {
		cfg, err := pgx.ParseConfig(url)
		require.NoError(t, err)
		return cfg.Database
	}
	r := start(t, Config{Name: "db1", Conninfo: one, Include: []string{name(one), name(two), "postgres", "template*"}, Exclude: []string{"post*"}},
		load(t, family("per_database", "database", number)))
	seen := map[string]bool{}
	for range 6 {
		it := r.of("per_database")
		var row []any
		require.NoError(t, json.Unmarshal(it.Rows[0], &row))
		seen[row[0].(string)] = true
	}
	require.Equal(t, map[string]bool{name(one): true, name(two): true}, seen)
}

func TestAtMostTwoConnectionsAreOpen(t *testing.T) {
	t.Parallel()
	url := testdb.Empty(t)
	count := "select current_database()::text as datname, (select count(*) from pg_stat_activity where application_name = 'pganalytics-collector' and datname = current_database())::bigint as v"
	r := start(t, Config{Name: "db1", Conninfo: url}, load(t, family("mine", "instance", count), family("theirs", "database", number)))
	for range 3 {
		var row []any
		require.NoError(t, json.Unmarshal(r.of("mine").Rows[0], &row))
		require.LessOrEqual(t, row[1], float64(2))
	}
}

func TestAServerThatGoesAwayIsReadAgainWhenItIsBack(t *testing.T) {
	t.Parallel()
	cluster := testdb.StartCluster(t)
	instance := strings.ReplaceAll(strings.ReplaceAll(family("pg_instance", "instance", "select true::boolean as is_up"),
		"  - {name: datname, type: text, help: x}\n", ""), "{name: v, type: bigint, kind: gauge", "{name: is_up, type: boolean, kind: gauge")
	instance = strings.ReplaceAll(instance, "key: [datname]\n", "")
	r := start(t, Config{Name: "db1", Conninfo: cluster.URL()}, load(t, instance, family("per_database", "database", number)))
	up := func(row string) func(Item) bool {
		return func(it Item) bool { return it.Family == "pg_instance" && string(it.Rows[0]) == row }
	}
	r.next("up", up("[true]"))
	r.of("per_database")
	cluster.Kill()
	r.next("down", up("[false]"))
	cluster.Start()
	r.next("up again", up("[true]"))
	r.of("per_database")
	require.Contains(t, r.log(), `msg="works again" server=db1 what="connect to the server"`)
}

func TestNothingIsReadWhileNobodyTakesIt(t *testing.T) {
	t.Parallel()
	r := start(t, Config{Name: "db1", Conninfo: testdb.Empty(t)}, load(t, family("number", "instance", number)))
	rows := func() float64 { return testutil.ToFloat64(r.metrics.rows.WithLabelValues("db1", "number")) }
	require.Eventually(t, func() bool { return rows() == 1 }, 20*time.Second, 10*time.Millisecond)
	require.Never(t, func() bool { return rows() > 1 }, 2500*time.Millisecond, 100*time.Millisecond)
	r.of("number")
	r.of("number")
	require.Positive(t, testutil.ToFloat64(r.metrics.skipped.WithLabelValues("db1", "number")))
}

func TestConninfoIsNeverShown(t *testing.T) {
	t.Parallel()
	cfg := Config{Name: "db1", Conninfo: "postgres://me:s3cret@127.0.0.1:1/db?bad=%zz"}
	require.NotContains(t, cfg.Validate().Error(), "s3cret")
	cfg.Conninfo = "postgres://me:s3cret@127.0.0.1:1/db"
	r := start(t, cfg, load(t, family("number", "instance", number)))
	require.Eventually(t, func() bool { return strings.Contains(r.log(), "attempt failed") }, 20*time.Second, 10*time.Millisecond)
	require.NotContains(t, r.log(), "s3cret")
}
