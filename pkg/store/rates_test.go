package store_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/store"
)

const (
	busyYAML = `
name: busy
description: Counters with a time of reset.
scope: instance
interval: 60s
retention: 30d
chunk: 1d
key: [db]
columns:
  - {name: db, type: text}
  - {name: calls, type: bigint, kind: counter, unit: calls, help: Calls.}
  - {name: ms, type: double precision, kind: counter}
  - {name: open, type: integer, kind: gauge}
  - {name: stats_reset, type: timestamptz, kind: info}
`
	rareYAML = `
name: rare
description: Sent when it changed and hourly, with no time of reset.
scope: instance
interval: 60s
retention: 30d
chunk: 1d
key: [db, user]
changed_by: [calls]
columns:
  - {name: db, type: text}
  - {name: user, type: text}
  - {name: calls, type: integer, kind: counter}
`
)

// midnight is where these tests' rows begin; some lie on its other side, in
// another chunk.
var midnight = now.Truncate(day)

func at(d time.Duration) time.Time { return midnight.Add(d) }

type rate struct {
	At      time.Duration // since midnight
	Seconds *float64
	Calls   *float64
}

func some(v float64) *float64 { return &v }

// rates reads a family's rates both ways, which must agree.
func rates(f *fixture, family, where string, args ...any) []rate {
	f.Helper()
	read := func(from string) []rate {
		rows, err := f.conn.Query(f.Context(), "select time, seconds, calls from "+from+" where "+where+" order by time", args...)
		require.NoError(f, err)
		list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (rate, error) {
			var t time.Time
			var r rate
			err := row.Scan(&t, &r.Seconds, &r.Calls)
			r.At = t.Sub(midnight)
			return r, err
		})
		require.NoError(f, err)
		return list
	}
	view := read("metrics." + family + "_rates")
	require.Equal(f, view, read("metrics."+family+"_rates('-infinity')"))
	return view
}

func ratesSetup(tb testing.TB) *fixture {
	tb.Helper()
	url := testdb.Empty(tb)
	cat := families(tb, busyYAML, rareYAML, keyedYAML, textsYAML)
	migrate(tb, url, cat)
	return open(tb, url, cat)
}

func (f *fixture) busy(server uuid.UUID, db string, at time.Time, calls, reset any) {
	f.Helper()
	f.exec("insert into metrics.busy (time, server_id, db, calls, ms, open, stats_reset) values ($1, $2, $3, $4::bigint, $4::bigint, 7, $5)", at, server, db, calls, reset)
}

func TestRatesArePerSecondSinceTheRowBeforeOfTheSameServerAndKey(t *testing.T) {
	t.Parallel()
	f := ratesSetup(t)
	a, b := uuid.New(), uuid.New()
	for i := range 3 {
		d := time.Duration(i-1) * time.Minute // across midnight
		f.busy(a, "x", at(d), 1000+60*i, nil)
		f.busy(a, "y", at(d), 5000+600*i, nil)
		f.busy(b, "x", at(d+time.Second), 9-i, nil) // would be resets of a's
	}
	require.Equal(t, []rate{{-time.Minute, nil, nil}, {0, some(60), some(1)}, {time.Minute, some(60), some(1)}}, rates(f, "busy", "server_id = $1 and db = 'x'", a))
	require.Equal(t, []rate{{-time.Minute, nil, nil}, {0, some(60), some(10)}, {time.Minute, some(60), some(10)}}, rates(f, "busy", "server_id = $1 and db = 'y'", a))
	require.Equal(t, [2]int{7, 2}, [2]int{ask[int](f, "select min(open) from metrics.busy_rates"), ask[int](f, "select count(distinct db) from metrics.busy_rates")}, "the rest as it is")

	window := "select array_agg(calls order by calls) from metrics.busy_rates($1, $2) where server_id = $3"
	require.Equal(t, []float64{1, 10}, ask[[]float64](f, window, at(0), at(time.Minute), a), "the row before comes from before the range, which ends before its end")
}

func TestCounterThatFellHasNoRateUnlessTheResetIsKnown(t *testing.T) {
	t.Parallel()
	f := ratesSetup(t)
	s := uuid.New()
	first, reset := at(-day), at(150*time.Second)
	f.busy(s, "x", at(0), 1000, first)
	f.busy(s, "x", at(60*time.Second), 1600, first)
	f.busy(s, "x", at(120*time.Second), 100, first) // wrapped, or a failover: who knows
	f.busy(s, "x", at(180*time.Second), 90, reset)  // 90 in the 30 s since the reset
	f.busy(s, "x", at(240*time.Second), 150, reset) //
	f.busy(s, "x", at(300*time.Second), 300, nil)   // a crash: statistics begin anew, without a time
	f.busy(s, "x", at(360*time.Second), 360, nil)   //
	f.busy(s, "x", at(420*time.Second), 400, first) // another server took over, its counters are its own
	f.busy(s, "x", at(480*time.Second), 4000, at(490*time.Second))
	require.Equal(t, []rate{
		{0, nil, nil},
		{60 * time.Second, some(60), some(10)},
		{120 * time.Second, some(60), nil},
		{180 * time.Second, some(30), some(3)},
		{240 * time.Second, some(60), some(1)},
		{300 * time.Second, nil, nil},
		{360 * time.Second, some(60), some(1)},
		{420 * time.Second, nil, nil},
		{480 * time.Second, nil, nil}, // its reset is yet to come: a clock is wrong
	}, rates(f, "busy", "true"))
	require.Equal(t, 0, ask[int](f, "select count(*) from metrics.busy_rates where calls < 0 or ms < 0"))
}

func TestNoRateIsTakenOverAGapOrFromNothing(t *testing.T) {
	t.Parallel()
	f := ratesSetup(t)
	s := uuid.New()
	f.busy(s, "x", at(0), 0, nil)
	f.busy(s, "x", at(180*time.Second), 180, nil) // two samples missing
	f.busy(s, "x", at(361*time.Second), 361, nil) // a second more
	f.busy(s, "x", at(420*time.Second), nil, nil)
	f.busy(s, "x", at(480*time.Second), 480, nil)
	f.busy(s, "x", at(540*time.Second), -60, nil) // no counter
	f.busy(s, "x", at(600*time.Second), 0, nil)
	f.busy(s, "x", at(600*time.Second), 0, nil) // the same time twice
	require.Equal(t, []rate{
		{0, nil, nil},
		{180 * time.Second, some(180), some(1)},
		{361 * time.Second, nil, nil},
		{420 * time.Second, some(59), nil},
		{480 * time.Second, some(60), nil},
		{540 * time.Second, some(60), nil},
	}, rates(f, "busy", "time < $1", at(600*time.Second)))
	require.Equal(t, 2, ask[int](f, "select count(*) from metrics.busy_rates('-infinity') where time = $1 and calls is null", at(600*time.Second)), "no division by zero")
}

func TestRateOfWhatIsSentOnChangeReachesBackAnHour(t *testing.T) {
	t.Parallel()
	f := ratesSetup(t)
	s := uuid.New()
	for d, calls := range map[time.Duration]int{0: 10, 61 * time.Minute: 10, 62 * time.Minute: 70, 3 * time.Hour: 71} {
		f.exec(`insert into metrics.rare (time, server_id, db, "user", calls) values ($1, $2, 'x', 'u', $3)`, at(d), s, calls)
	}
	require.Equal(t, []rate{
		{0, nil, nil}, {61 * time.Minute, some(3660), some(0)}, {62 * time.Minute, some(60), some(1)}, {3 * time.Hour, nil, nil},
	}, rates(f, "rare", "true"))
}

func TestCountersOfExtremesBreakNoQuery(t *testing.T) {
	t.Parallel()
	f := ratesSetup(t)
	s := uuid.New()
	for i, calls := range []string{"-9223372036854775808", "9223372036854775807", "-9223372036854775808", "0", "9223372036854775807"} {
		f.exec("insert into metrics.busy (time, server_id, db, calls, ms) values ($1, $2, 'x', $3::text::bigint, $4)", at(time.Duration(i)*time.Minute), s, calls, 1.7e308)
	}
	require.Len(t, rates(f, "busy", "true"), 5)
	require.Equal(t, 1, ask[int](f, "select count(calls) from metrics.busy_rates"))
	require.Equal(t, 4, ask[int](f, "select count(*) from metrics.busy_rates where ms = 0"))
}

// What both ways promise about speed: chunks that a time rules out are not even
// opened, and no other server's rows are read.
func TestRatesReadOnlyTheChunksAndServersThatAreAskedFor(t *testing.T) {
	t.Parallel()
	f := ratesSetup(t)
	for i := range 4 {
		f.busy(uuid.New(), "x", now.Add(-time.Duration(2*i)*day), 1, nil)
	}
	scanned := regexp.MustCompile(`_chunk [cf](_\d+)? `) // not those of predecessors, which are known only row by row
	server := "server_id = '" + uuid.Nil.String() + "'"
	for _, from := range []string{"busy_rates where time >= now() - interval '1 hour' and", "busy_rates(now() - interval '1 hour') where"} {
		rows, err := f.conn.Query(t.Context(), "explain select calls from metrics."+from+" "+server)
		require.NoError(t, err)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		plan := strings.Join(lines, "\n")
		require.Len(t, scanned.FindAllString(plan, -1), 1, plan)
		require.Contains(t, plan, "Index Cond: (("+server, plan)
	}
}

func TestRatesGrowWithTheirFamilyAndKeepWhatBuildsOnThem(t *testing.T) {
	t.Parallel()
	f := ratesSetup(t)
	f.exec("create view public.mine as select time, calls from metrics.busy_rates")
	wider := strings.Replace(busyYAML, "  - {name: calls,", "  - {name: added, type: bigint, kind: counter}\n  - {name: calls,", 1)
	require.NoError(t, store.EnsureSchema(t.Context(), f.url, families(t, wider)))
	s := uuid.New()
	for i := range 2 {
		f.exec("insert into metrics.busy (time, server_id, db, calls, added) values ($1, $2, 'x', 0, $3)", at(time.Duration(i)*time.Minute), s, 120*i)
	}
	const added = "select max(added)::int from metrics.busy_rates"
	require.Equal(t, 2, ask[int](f, added))
	require.Equal(t, 2, ask[int](f, added+"('-infinity')"))

	forbidDDL(f)
	require.NoError(t, store.EnsureSchema(t.Context(), f.url, families(t, busyYAML)), "an older version leaves a newer one's alone")
	require.NoError(t, store.EnsureSchema(t.Context(), f.url, families(t, wider)))
	require.Equal(t, 2, ask[int](f, added))
	require.Equal(t, 2, ask[int](f, "select count(*) from public.mine"))
}

func TestRatesFollowTheKindAndTheIntervalOfTheirFamily(t *testing.T) {
	t.Parallel()
	f := ratesSetup(t)
	before := ask[string](f, "select obj_description('metrics.busy_rates'::regclass)")
	require.Contains(t, before, "at most 180 s")
	require.Equal(t, "Calls. Per second. [calls/s]", ask[string](f, "select col_description('metrics.busy_rates'::regclass, 5)"))
	changed := strings.NewReplacer("interval: 60s", "interval: 120s", "type: integer, kind: gauge", "type: integer, kind: counter").Replace(busyYAML)
	require.NoError(t, store.EnsureSchema(t.Context(), f.url, families(t, changed)))
	require.Contains(t, ask[string](f, "select obj_description('metrics.busy_rates'::regclass)"), "at most 360 s")
	require.Equal(t, "double precision", ask[string](f, "select pg_typeof(open)::text from metrics.busy_rates union all select 'double precision' limit 1"))
	require.Equal(t, 0, ask[int](f, "select count(open) from metrics.busy_rates('-infinity')"))
}

func TestFamiliesWithoutCountersHaveNoRates(t *testing.T) {
	t.Parallel()
	f := ratesSetup(t)
	require.Equal(t, []string{"busy_rates", "rare_rates"}, ask[[]string](f, "select array_agg(viewname::text order by viewname) from pg_views where schemaname = 'metrics'"))
	f.exec("drop view metrics.busy_rates cascade; create table metrics.busy_rates (n int)")
	require.ErrorContains(t, store.EnsureSchema(t.Context(), f.url, families(t, busyYAML)), "metrics.busy_rates exists and is no view")
}

// A reader that takes its time must not hold up the loads through the view.
func TestRatesAreReplacedUnderReadersAndLoads(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	reader, err := f.conn.Begin(t.Context())
	require.NoError(t, err)
	_, err = reader.Exec(t.Context(), "select * from metrics.narrow_rates")
	require.NoError(t, err)
	wider := families(t, strings.Replace(narrowYAML, "interval: 60s", "interval: 61s", 1))
	var g errgroup.Group
	g.Go(func() error { return store.EnsureSchema(t.Context(), f.url, wider) })
	watcher := open(t, f.url, wider)
	require.Eventually(t, func() bool {
		return ask[bool](watcher, `select exists (select from pg_stat_activity where datname = current_database()
			and application_name = 'pganalytics-schema' and wait_event_type = 'Lock')`)
	}, eventually, tick)
	f.load(item(c, now, narrow(c, "db1", now, 1)))
	require.NoError(t, reader.Rollback(t.Context()))
	require.NoError(t, g.Wait())
	require.Contains(t, ask[string](watcher, "select obj_description('metrics.narrow_rates'::regclass)"), "at most 183 s")
}

func TestTheWidestFamilyHasRates(t *testing.T) {
	t.Parallel()
	f := ratesSetup(t)
	widest := strings.Replace(narrowYAML, "name: narrow", "name: widest", 1)
	for n := range 799 {
		widest += fmt.Sprintf("  - {name: %s%04d, type: bigint, kind: counter}\n", strings.Repeat("c", 59), n) // as long as names may be
	}
	require.NoError(t, store.EnsureSchema(t.Context(), f.url, families(t, widest)))
	for i := range 2 {
		f.exec(fmt.Sprintf("insert into metrics.widest values ($1, $2%s)", strings.Repeat(fmt.Sprintf(", %d", 60*i), 800)), at(time.Duration(i)*time.Minute), uuid.Nil)
	}
	for _, from := range []string{"widest_rates", "widest_rates('-infinity')"} {
		f.exec("create temporary table read as select * from metrics." + from)
		require.Equal(t, 800, ask[int](f, "select count(*) from jsonb_each((select to_jsonb(r) - 'seconds' from read r where seconds = 60)) e where e.value = '1'"))
		f.exec("drop table read")
	}
}

// forbidDDL makes every later statement that changes the schema fail.
func forbidDDL(f *fixture) {
	f.Helper()
	f.exec(`create function forbid() returns event_trigger language plpgsql as $$ begin raise 'ddl'; end $$;
		create event trigger forbid on ddl_command_start execute function forbid()`)
}
