package catalogue_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/internal/testpg"
)

// onEachVersion runs f for each version.
func onEachVersion(t *testing.T, f func(t *testing.T, major int)) {
	for _, major := range several {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			f(t, major)
		})
	}
}

// session is one of a test's own, which can be made to do something that does
// not end by itself.
type session struct {
	*pgx.Conn
	pid int32
}

// open opens a session under an application's name.
func open(t *testing.T, s *testpg.Server, application string) session {
	t.Helper()
	conn := connect(t, s.URL("postgres")+"&application_name="+application)
	return session{conn, int32(conn.PgConn().PID())}
}

// start runs a statement until it ends or the test does.
func (c session) start(t *testing.T, s *testpg.Server, sql string) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		_, err := c.Exec(context.Background(), sql)
		done <- err
	}()
	t.Cleanup(func() {
		s.Exec("postgres", fmt.Sprintf("select pg_terminate_backend(%d)", c.pid))
		if err := <-done; err != nil {
			pgErr, ok := errors.AsType[*pgconn.PgError](err)
			require.True(t, ok && pgErr.Code == "57P01", "%s: %v", sql, err)
		}
	})
}

// waits returns when the session waits for a lock.
func (c session) waits(t *testing.T, s *testpg.Server) {
	t.Helper()
	require.Eventually(t, func() bool {
		return testpg.Value[bool](s, "postgres", "select wait_event_type is not distinct from 'Lock' from pg_stat_activity where pid = $1", c.pid)
	}, waitFor, tick, "session %d waits", c.pid)
}

// with returns the rows whose column has one of the values.
func with(rows []row, column string, values ...any) []row {
	var found []row
	for _, r := range rows {
		for _, v := range values {
			if r[column] == v {
				found = append(found, r)
			}
		}
	}
	return found
}

// query returns the query of a family for the server.
func query(t *testing.T, conn *pgx.Conn, f *catalogue.Family) string {
	t.Helper()
	q, ok := f.Query(major(t, conn))
	require.True(t, ok)
	return q.SQL
}

// replaced returns the text with something else in place of a part that it must have.
func replaced(t *testing.T, text, part, by string) string {
	t.Helper()
	require.Contains(t, text, part)
	return strings.ReplaceAll(text, part, by)
}

func TestWhoWaitsIsShownWithWhomItWaitsFor(t *testing.T) {
	t.Parallel()
	f := family(t, "pg_blocking")
	onEachVersion(t, func(t *testing.T, major int) {
		s := testpg.Shared(t, major)
		s.Exec("postgres", `create table "Contested one" (id int, n int)`, `insert into "Contested one" values (1, 0)`)
		t.Cleanup(func() { s.Exec("postgres", `drop table "Contested one"`) })
		holder, writer, locker, reader := open(t, s, "holder"), open(t, s, "writer"), open(t, s, "locker"), open(t, s, "reader")
		began := time.Now()
		execute(t, holder.Conn, "begin", `update "Contested one" set n = 1`)
		writer.start(t, s, `update "Contested one" set n = 2`)
		writer.waits(t, s)
		execute(t, locker.Conn, "begin")
		locker.start(t, s, `lock table "Contested one" in access exclusive mode`)
		locker.waits(t, s)
		reader.start(t, s, `select n from "Contested one"`)
		reader.waits(t, s)
		own := open(t, s, "pganalytics-collector")
		own.start(t, s, `select n from "Contested one"`)
		own.waits(t, s)
		other, late := open(t, s, "other"), open(t, s, "late")
		execute(t, other.Conn, "select pg_advisory_lock(4711)")
		late.start(t, s, "select pg_advisory_lock(4711)")
		late.waits(t, s)

		conn := monitor(t, s.URL("postgres"))
		var rows []row
		all := read(t, conn, f)
		require.Empty(t, with(all, "blocked_pid", own.pid))
		require.Equal(t, "advisory", find(t, all, "blocked_pid", late.pid)["locktype"])
		waiting := false
		for _, r := range all {
			require.False(t, waiting && r["blocking_wait_event_type"] != "Lock", "whom nobody blocks comes first")
			waiting = r["blocking_wait_event_type"] == "Lock"
		}
		for _, r := range with(all, "blocked_pid", writer.pid, locker.pid, reader.pid) {
			require.Equal(t, "postgres", r["datname"])
			require.Equal(t, `public.Contested one`, r["relation"], "also of a row that is waited for")
			require.Equal(t, "postgres", r["blocked_username"])
			require.Equal(t, "postgres", r["blocking_username"])
			require.Equal(t, "client backend", r["blocking_backend_type"])
			require.Greater(t, r["wait_seconds"], 0.0)
			require.Less(t, r["wait_seconds"], time.Since(began).Seconds())
			require.Greater(t, r["blocking_xact_age"], 0.0)
			require.Less(t, r["blocking_xact_age"], time.Since(began).Seconds())
			require.GreaterOrEqual(t, r["rows_total"], int64(4))
			rows = append(rows, r)
		}

		pairs := map[[2]int32]bool{}
		direct, err := holder.Query(t.Context(), "select p, b from unnest($1::int[]) p, unnest(pg_blocking_pids(p)) b", []int32{writer.pid, locker.pid, reader.pid})
		require.NoError(t, err)
		var blocked, blocking int32
		_, err = pgx.ForEachRow(direct, []any{&blocked, &blocking}, func() error {
			pairs[[2]int32{blocked, blocking}] = true
			return nil
		})
		require.NoError(t, err)
		shown := map[[2]int32]bool{}
		for _, r := range rows {
			shown[[2]int32{r["blocked_pid"].(int32), r["blocking_pid"].(int32)}] = true
		}
		require.Equal(t, pairs, shown)
		require.Len(t, shown, 4, "the reader waits for the locker alone, the locker for both before it")

		byRow := with(rows, "blocked_pid", writer.pid)[0]
		require.Equal(t, "transactionid", byRow["locktype"])
		require.Equal(t, "ShareLock", byRow["mode"])
		require.Equal(t, "writer", byRow["blocked_application_name"])
		require.Equal(t, `update "Contested one" set n = 2`, byRow["blocked_query"])
		require.Equal(t, "holder", byRow["blocking_application_name"])
		require.Equal(t, `update "Contested one" set n = 1`, byRow["blocking_query"])
		require.Equal(t, "idle in transaction", byRow["blocking_state"])
		require.Equal(t, "Client", byRow["blocking_wait_event_type"])
		require.Equal(t, major >= 14, byRow["blocked_queryid"] != nil)
		require.Equal(t, major >= 14, byRow["blocking_queryid"] != nil)
		byQueue := with(rows, "blocked_pid", reader.pid)[0]
		require.Equal(t, locker.pid, byQueue["blocking_pid"])
		require.Equal(t, "relation", byQueue["locktype"])
		require.Equal(t, "AccessShareLock", byQueue["mode"])
		require.Equal(t, "active", byQueue["blocking_state"])
		require.Equal(t, "Lock", byQueue["blocking_wait_event_type"])
		require.Nil(t, byQueue["blocked_queryid"], "it waits before it is analysed")

		elsewhere := monitor(t, s.URL("template1"))
		oid := testpg.Value[string](s, "postgres", `select '"Contested one"'::regclass::oid::text`)
		require.Equal(t, oid, with(read(t, elsewhere, f), "blocked_pid", reader.pid)[0]["relation"])

		few := ask(t, conn, f, replaced(t, replaced(t, query(t, conn, f), "limit 100", "limit 1"), "- 100", "- 1"), int64(2000))
		require.Len(t, with(few, "blocked_pid", few[0]["blocked_pid"]), len(few), "one that waits is looked at")
		require.Greater(t, few[0]["rows_total"], int64(len(few)), "and that there are others is said")
		require.Len(t, readAtMost(t, conn, f, 1), 1)
	})
}

func TestLocksAreReadOnlyWhenSomebodyWaits(t *testing.T) {
	t.Parallel()
	f := family(t, "pg_blocking")
	onEachVersion(t, func(t *testing.T, major int) {
		s := testpg.Start(t, major)
		conn := monitor(t, s.URL("postgres"))
		plan := func() string {
			rows, err := conn.Query(t.Context(), "explain (analyze, costs off) "+replaced(t, query(t, conn, f), "$1", "2000"))
			require.NoError(t, err)
			lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
			require.NoError(t, err)
			return strings.Join(lines, "\n")
		}
		const unread = `Function Scan on pg_lock_status.*never executed`
		require.Regexp(t, unread, plan())
		holder, locker := open(t, s, "holder"), open(t, s, "locker")
		execute(t, holder.Conn, "select pg_advisory_lock(1)")
		locker.start(t, s, "select pg_advisory_lock(1)")
		locker.waits(t, s)
		require.NotRegexp(t, unread, plan())
	})
}

func TestAPreparedTransactionBlocksAsProcessZero(t *testing.T) {
	t.Parallel()
	f := family(t, "pg_blocking")
	s := testpg.Start(t, catalogue.NewestServer, "max_prepared_transactions = 2")
	s.Exec("postgres", "create table prepared (id int)")
	owner, locker := open(t, s, "owner"), open(t, s, "locker")
	execute(t, owner.Conn, "begin", "insert into prepared values (1)", "prepare transaction 'forgotten'")
	execute(t, locker.Conn, "begin")
	locker.start(t, s, "lock table prepared in share mode")
	locker.waits(t, s)
	conn := monitor(t, s.URL("postgres"))
	r := with(read(t, conn, f), "blocked_pid", locker.pid)[0]
	require.Equal(t, int32(0), r["blocking_pid"])
	require.Nil(t, r["blocking_query"])
	execute(t, owner.Conn, "rollback prepared 'forgotten'")
}

func TestWhatRunsLongIsShown(t *testing.T) {
	t.Parallel()
	f := family(t, "pg_long_running")
	onEachVersion(t, func(t *testing.T, major int) {
		s := testpg.Shared(t, major)
		s.Exec("postgres", "create table long_running (id int)")
		t.Cleanup(func() { s.Exec("postgres", "drop table long_running") })
		idle, sleeper, fresh := open(t, s, "idle"), open(t, s, "sleeper"), open(t, s, "fresh")
		waiter, own, silent := open(t, s, "waiter"), open(t, s, "pganalytics-collector"), open(t, s, "silent")
		began := time.Now()
		execute(t, idle.Conn, "begin isolation level repeatable read", "lock table long_running", "select 1")
		const sleep = "select pg_sleep(1000), 'a literal'"
		sleeper.start(t, s, sleep)
		own.start(t, s, sleep)
		parallel := open(t, s, "parallel")
		forced := "debug_parallel_query"
		if major < 16 {
			forced = "force_parallel_mode"
		}
		execute(t, parallel.Conn, "set "+forced+" = on")
		parallel.start(t, s, "select pg_sleep(1000)")
		waiter.start(t, s, "select * from long_running")
		waiter.waits(t, s)
		execute(t, silent.Conn, "select 1")

		conn := monitor(t, s.URL("postgres"))
		all := []any{idle.pid, sleeper.pid, fresh.pid, waiter.pid, own.pid, silent.pid, parallel.pid}
		require.Empty(t, with(read(t, conn, f), "pid", all...), "younger than a minute")

		short := replaced(t, query(t, conn, f), "interval '60 seconds'", "interval '1 second'")
		var rows []row
		require.Eventually(t, func() bool {
			rows = with(ask(t, conn, f, short, int64(2000)), "pid", all...)
			return len(rows) == 4
		}, waitFor, tick)
		execute(t, fresh.Conn, "begin", "select 1")
		rows = with(ask(t, conn, f, short, int64(2000)), "pid", all...)
		require.Len(t, rows, 4, "the others are young, own or without a transaction")
		require.True(t, testpg.Value[bool](s, "postgres", "select exists (select from pg_stat_activity where leader_pid = $1)", parallel.pid))
		require.Empty(t, with(ask(t, conn, f, short, int64(2000)), "backend_type", "parallel worker"))

		r := with(rows, "pid", idle.pid)[0]
		require.Equal(t, "idle in transaction", r["state"])
		require.Equal(t, "select 1", r["query"])
		require.Equal(t, "postgres", r["datname"])
		require.Equal(t, "postgres", r["username"])
		require.Equal(t, "idle", r["application_name"])
		require.Equal(t, "client backend", r["backend_type"])
		require.Nil(t, r["client_addr"], "over a socket")
		require.Nil(t, r["blocked_by"])
		require.GreaterOrEqual(t, r["xmin_age"], int64(0))
		for _, age := range []string{"xact_age", "query_age", "state_age"} {
			require.Greater(t, r[age], 0.0, age)
			require.Less(t, r[age], time.Since(began).Seconds(), age)
		}
		require.Equal(t, testpg.Value[time.Time](s, "postgres", "select backend_start from pg_stat_activity where pid = $1", idle.pid),
			r["backend_start"])

		r = with(rows, "pid", sleeper.pid)[0]
		require.Equal(t, "active", r["state"])
		require.Equal(t, "Timeout", r["wait_event_type"])
		require.Equal(t, "PgSleep", r["wait_event"])
		require.Equal(t, sleep, r["query"])
		if major >= 14 {
			require.Equal(t, testpg.Value[int64](s, "postgres", "select query_id from pg_stat_activity where pid = $1", sleeper.pid), r["queryid"])
		} else {
			require.Nil(t, r["queryid"])
		}
		require.Equal(t, fmt.Sprint(idle.pid), with(rows, "pid", waiter.pid)[0]["blocked_by"])
		unasked := ask(t, conn, f, replaced(t, short, "s.place <= 100", "s.place <= 0"), int64(2000))
		require.Nil(t, with(unasked, "pid", waiter.pid)[0]["blocked_by"])

		one := ask(t, conn, f, short, int64(1))
		require.Len(t, one, 1)
		require.GreaterOrEqual(t, one[0]["rows_total"], int64(3))
	})
}

// A text is in the encoding of its own database, and what is not valid in ours
// must not end the reading of all others.
func TestTextsOfOtherEncodingsAreReadAndLongOnesCut(t *testing.T) {
	t.Parallel()
	onEachVersion(t, func(t *testing.T, major int) {
		s := testpg.Start(t, major, "track_activity_query_size = 32768")
		s.Exec("postgres", "create database bytes template template0 encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C'",
			"create extension pg_stat_statements")
		odd := connect(t, s.URL("bytes")+"&client_encoding=SQL_ASCII&application_name=odd")
		execute(t, odd, "begin", "select pg_backend_pid(), '\xe9'", "select '\xe9'")
		long := open(t, s, "long")
		execute(t, long.Conn, "begin", "select '"+strings.Repeat("€", 5000)+"'")

		conn := monitor(t, s.URL("postgres"))
		f := family(t, "pg_long_running")
		young := replaced(t, query(t, conn, f), "interval '60 seconds'", "interval '0 seconds'")
		rows := ask(t, conn, f, young, int64(2000))
		require.Equal(t, "select '\xe9'", find(t, rows, "application_name", "odd")["query"])
		require.Equal(t, "select '"+strings.Repeat("€", 4096-8), find(t, rows, "application_name", "long")["query"])
		// A text that pg_stat_statements(true) itself fails on leaves the counters alone.
		execute(t, odd, "rollback", "create role \"\xe9\"")
		require.NotEmpty(t, read(t, conn, family(t, "pg_stat_statements")))
	})
}

func TestActivityIsCountedWithoutTheCollectorsOwnSessions(t *testing.T) {
	t.Parallel()
	f := family(t, "pg_stat_activity_summary")
	onEachVersion(t, func(t *testing.T, major int) {
		s := testpg.Start(t, major)
		began := time.Now()
		for range 9 {
			execute(t, open(t, s, "worker").Conn, "begin", "select 1")
		}
		execute(t, open(t, s, "pganalytics-collector").Conn, "begin", "select 1")
		conn := monitor(t, s.URL("postgres"))
		r := eventually(t, conn, f, "all wait for their clients", func(r row) bool {
			return r["state"] == "idle in transaction" && r["count"] == int64(9)
		})
		require.Equal(t, "postgres", r["datname"])
		require.Equal(t, "Client", r["wait_event_type"])
		require.Equal(t, "ClientRead", r["wait_event"])
		for _, age := range []string{"max_xact_age", "max_state_age"} {
			require.Greater(t, r[age], 0.0, age)
			require.Less(t, r[age], time.Since(began).Seconds(), age)
		}
		require.Nil(t, r["max_query_age"], "none runs")
		greatest := readAtMost(t, conn, f, 1)
		require.Len(t, greatest, 1)
		require.Equal(t, "idle in transaction", greatest[0]["state"])
		require.Greater(t, greatest[0]["rows_total"], int64(1))
	})
}

func TestTextsAreReadOnlyForTheStatementsThatAreAskedFor(t *testing.T) {
	t.Parallel()
	counters, texts := family(t, "pg_stat_statements"), family(t, "pg_stat_statements_text")
	onEachVersion(t, func(t *testing.T, major int) {
		s := testpg.Start(t, major)
		s.Exec("postgres", "create database other", "create extension pg_stat_statements")
		s.Exec("postgres", "select 1 as one", "select 1 + 1 as two", "select repeat('x', 10) as text")
		s.Exec("other", "select 1 as one", "select repeat('x', 10)   as text")
		conn := watcher(t, s, s)
		execute(t, conn, "set search_path = pg_catalog, public")

		rows := read(t, conn, counters)
		keys := map[[2]any]bool{}
		for _, r := range rows {
			keys[[2]any{r["datname"], r["queryid"]}] = true
			require.Equal(t, int64(len(rows)), r["rows_total"])
		}
		all := read(t, conn, texts)
		for key := range keys {
			require.Len(t, with(with(all, "datname", key[0]), "queryid", key[1]), 1, "%v", key)
		}
		few := readAtMost(t, conn, counters, 3)
		require.Len(t, few, 3)
		require.GreaterOrEqual(t, few[0]["rows_total"], int64(len(rows)))
		for i := range 2 {
			spent := func(r row) float64 { return r["total_exec_time"].(float64) + r["total_plan_time"].(float64) }
			require.GreaterOrEqual(t, spent(few[i]), spent(few[i+1]), "what took most time comes first")
		}
		require.Len(t, readAtMost(t, conn, texts, 3), 3)

		asked := find(t, all, "query", "select repeat($1, $2) as text")
		require.Equal(t, "postgres", asked["datname"])
		sql := query(t, conn, texts)
		got := ask(t, conn, texts, sql, []string{"other"}, []int64{asked["queryid"].(int64)})
		require.Len(t, got, 1)
		require.Equal(t, "other", got[0]["datname"])
		require.Equal(t, "select repeat($1, $2)   as text", got[0]["query"], "its own, though the hash is the same")
		require.Empty(t, ask(t, conn, texts, sql, []string{}, []int64{}))
	})
}
