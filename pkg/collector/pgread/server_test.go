package pgread

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/internal/testlog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var collectorID = uuid.MustParse("5d9e3a52-0f6b-4d6c-9f63-0a4d1f3f6a01")

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

func load(t testing.TB, files ...string) *catalogue.Catalogue {
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
	out     chan []batch.Section
	logged  testlog.Buffer
}

func (r *running) log() string { return r.logged.String() }

func start(t *testing.T, cfg Config, cat *catalogue.Catalogue) *running {
	t.Helper()
	cfg.CollectorID = collectorID
	r := &running{t: t, metrics: NewMetrics(prometheus.NewRegistry()), out: make(chan []batch.Section)}
	s, err := NewServer(cfg, cat, slog.New(slog.NewTextHandler(&r.logged, nil)), r.metrics, r.out)
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
			case <-r.out:
			case <-done:
				return
			}
		}
	})
	return r
}

// next returns the next section for which want is true.
func (r *running) next(what string, want func(*batch.Section) bool) *batch.Section {
	r.t.Helper()
	deadline := time.After(60 * time.Second)
	for {
		select {
		case sections := <-r.out:
			for i := range sections {
				if want(&sections[i]) {
					return &sections[i]
				}
			}
		case <-deadline:
			require.FailNow(r.t, "no such section came: "+what, r.log())
		}
	}
}

func (r *running) of(name string) *batch.Section {
	r.t.Helper()
	return r.next(name, func(s *batch.Section) bool { return s.Family == name })
}

// eventually polls and takes what is read meanwhile, so that reading goes on.
func (r *running) eventually(done func() bool, what string) {
	r.t.Helper()
	deadline := time.After(60 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-r.out:
		case <-tick.C:
		case <-deadline:
			require.FailNow(r.t, "it did not happen: "+what, r.log())
		}
	}
}

// table returns the values of a section's rows as texts, after having looked
// at all that a gateway looks at.
func table(t *testing.T, s *batch.Section) [][]string {
	t.Helper()
	var rows [][]string
	require.NoError(t, s.EachRow(func(_ int, fields [][]byte) error {
		require.Equal(t, s.ServerID[:], fields[1])
		require.Equal(t, s.MinTime.Format(time.RFC3339Nano), batch.ValueText(catalogue.TimestampTZ, fields[0]))
		var row []string
		for i, c := range s.Columns {
			v := fields[batch.LeadFields+i]
			if v == nil {
				row = append(row, "NULL")
				continue
			}
			require.Empty(t, batch.ValueFault(c.Type, v), c.Name)
			row = append(row, batch.ValueText(c.Type, v))
		}
		rows = append(rows, row)
		return nil
	}))
	return rows
}

func TestEveryTypeIsReadAsItIs(t *testing.T) {
	t.Parallel()
	r := start(t, Config{Name: "db1", Conninfo: testdb.Empty(t)}, load(t, allTypes))
	got := r.of("all_types")
	require.Equal(t, "db1", got.Server)
	require.Equal(t, batch.ServerID(collectorID, "db1"), got.ServerID)
	require.WithinDuration(t, time.Now(), got.MinTime, 20*time.Second)
	require.Equal(t, [][]string{{
		"true", "-2", "4", "-8", "9223372036854775807", "1.5", "1e-07", `"a\"b\n€<"`, "c0ffee00-0000-4000-8000-000000000001",
		"2024-05-06T05:08:09.123456Z", "NULL", "NULL", "NULL",
	}}, table(t, got))
	require.InDelta(t, 2, testutil.ToFloat64(r.metrics.fixed.WithLabelValues("db1", "all_types", "nulled")), 0)
}

func TestBuiltInFamiliesAreRead(t *testing.T) {
	t.Parallel()
	cat, err := catalogue.Default()
	require.NoError(t, err)
	url := testdb.Empty(t)
	for _, f := range cat.Families() {
		if f.Setup != "" {
			open(t, url).execute(f.Setup)
		}
	}
	own, err := pgx.ParseConfig(url)
	require.NoError(t, err)
	// Others come and go meanwhile.
	s, err := NewServer(Config{Name: "db1", Conninfo: url, Include: []string{own.Database}}, cat, slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry()), nil)
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
	require.Equal(t, [][]string{{"pganalytics-collector 5s 100ms on", "1"}}, table(t, r.of("settings")))
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
	require.Equal(t, [][]string{{"pg_catalog", "1"}}, table(t, r.of("path")))
	require.Eventually(t, func() bool {
		return testutil.ToFloat64(r.metrics.queryErrors.WithLabelValues("db1", "trap")) == 1
	}, 20*time.Second, 10*time.Millisecond, "the family fails instead")

	execute(`create schema "Our own"`)
	execute(`create extension pg_stat_statements schema "Our own"`)
	r = start(t, Config{Name: "db1", Conninfo: url}, load(t, path))
	require.Equal(t, [][]string{{`"pg_catalog, \"Our own\""`, "1"}}, table(t, r.of("path")))
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
		r.eventually(func() bool {
			return testutil.ToFloat64(r.metrics.queryErrors.WithLabelValues("db1", name)) >= 1
		}, name)
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
		seen[table(t, r.of("per_database"))[0][0]] = true
	}
	require.Equal(t, map[string]bool{name(one): true, name(two): true}, seen)
}

func TestAServerThatGoesAwayIsReadAgainWhenItIsBack(t *testing.T) {
	t.Parallel()
	cluster := testdb.StartCluster(t)
	r := start(t, Config{Name: "db1", Conninfo: cluster.URL()}, load(t, instance, family("per_database", "database", number)))
	r.next("up", up(t, "true"))
	r.of("per_database")
	cluster.Kill()
	r.next("down", up(t, "false"))
	cluster.Start()
	r.next("up again", up(t, "true"))
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
	require.Positive(t, testutil.ToFloat64(r.metrics.unread.WithLabelValues("db1", "number", late)))
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
