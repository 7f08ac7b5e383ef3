package catalogue_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/internal/testpg"
)

// onOwnServer runs f on a server of each version that no other test uses.
func onOwnServer(t *testing.T, f func(t *testing.T, s *testpg.Server), settings ...string) {
	for _, major := range several {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			f(t, testpg.Start(t, major, settings...))
		})
	}
}

// one returns the only row of a family.
func one(t *testing.T, conn *pgx.Conn, name string) row {
	t.Helper()
	rows := read(t, conn, family(t, name))
	require.Len(t, rows, 1)
	return rows[0]
}

func TestArchiverThatFailsIsSeenAndTheWALIsCounted(t *testing.T) {
	t.Parallel()
	onOwnServer(t, func(t *testing.T, s *testpg.Server) {
		conn := monitor(t, s.URL("postgres"))
		write := func() { // and begin the next WAL file
			s.Exec("postgres", "create table written as select generate_series(1, 1000)", "drop table written", "select pg_switch_wal()")
		}
		write()
		require.Eventually(t, func() bool { return one(t, conn, "pg_stat_archiver")["failed_count"].(int64) > 0 }, waitFor, tick)
		write()
		archiver, dir := one(t, conn, "pg_stat_archiver"), one(t, conn, "pg_wal_dir")
		require.Equal(t, []any{true, int64(0), nil}, []any{archiver["archiving"], archiver["archived_count"], archiver["last_archived_wal"]})
		require.NotNil(t, archiver["last_failed_time"])
		require.Regexp(t, "^[0-9A-F]{24}$", archiver["last_failed_wal"])
		require.EqualValues(t, 2, dir["ready_files"])
		require.Positive(t, dir["oldest_ready_seconds"])
		require.InDelta(t, number(t, conn, "select count(*) from pg_ls_waldir() where length(name) = 24"), dir["files"], 0)
		require.InDelta(t, number(t, conn, "select sum(size) from pg_ls_waldir()"), dir["bytes"], 0)

		s.Exec("postgres", "alter system set archive_command = 'true'", "select pg_reload_conf()")
		write()
		require.Eventually(t, func() bool { return one(t, conn, "pg_wal_dir")["ready_files"] == int64(0) }, waitFor, tick)
		require.Nil(t, one(t, conn, "pg_wal_dir")["oldest_ready_seconds"])
		require.Eventually(t, func() bool { return one(t, conn, "pg_stat_archiver")["archived_count"].(int64) >= 3 }, waitFor, tick)
		require.Regexp(t, "^[0-9A-F]{24}$", one(t, conn, "pg_stat_archiver")["last_archived_wal"])

		write()
		require.Eventually(t, func() bool { return one(t, conn, "pg_wal_dir")["ready_files"] == int64(0) }, waitFor, tick)
		s.Exec("postgres", "checkpoint", "checkpoint") // makes old files ready to be written to
		dir = one(t, conn, "pg_wal_dir")
		require.Positive(t, dir["spare_files"])
		require.InDelta(t, number(t, conn, "select count(*) from pg_ls_waldir() where length(name) = 24 and name > pg_walfile_name(pg_current_wal_insert_lsn())"),
			dir["spare_files"], 0)
	}, "archive_mode = on", "archive_command = 'false'", "wal_keep_size = 0", "min_wal_size = 160MB")
}

func TestStandbyAnswersToo(t *testing.T) {
	t.Parallel()
	onOwnServer(t, func(t *testing.T, s *testpg.Server) {
		s.Exec("postgres", family(t, "pg_sequences").Setup, family(t, "pg_bloat_estimate").Setup,
			"create sequence counted", "select nextval('counted')", "create table t (id int primary key)", "insert into t values (1)", "vacuum analyze t")
		if s.Major() >= 15 {
			s.Exec("postgres", "create unlogged sequence forgotten")
		}
		role := "watcher"
		s.Exec("postgres", "create role "+role+" login in role pg_monitor")
		standby := s.Standby("second")
		at := testpg.Value[string](s, "postgres", "select pg_current_wal_lsn()::text")
		conn := connect(t, standby.URLAs(role, "postgres"))
		require.Eventually(t, func() bool {
			return number(t, conn, "select (pg_last_wal_replay_lsn() >= $1::text::pg_lsn)::int", at) == 1
		}, waitFor, tick)
		execute(t, conn, "set lock_timeout = '100ms'")

		require.Equal(t, false, one(t, conn, "pg_stat_archiver")["archiving"], "archive_mode is on, and not always")
		require.Zero(t, one(t, conn, "pg_wal_dir")["ready_files"])
		require.Positive(t, one(t, conn, "pg_wal_dir")["files"])
		require.Len(t, read(t, conn, family(t, "pg_wraparound")), 3)
		sequences := read(t, conn, family(t, "pg_sequences"))
		require.Positive(t, find(t, sequences, "sequencename", "counted")["last_value"])
		if s.Major() >= 15 {
			require.Nil(t, find(t, sequences, "sequencename", "forgotten")["used_ratio"])
		}
		require.Len(t, read(t, conn, family(t, "pg_bloat_estimate")), 2)
		require.Len(t, read(t, conn, family(t, "pg_stat_user_indexes")), 1)
	}, "archive_mode = on", "archive_command = 'true'")
}

func TestWhoHoldsTheOldestXminIsNamed(t *testing.T) {
	t.Parallel()
	f := family(t, "pg_wraparound")
	onOwnServer(t, func(t *testing.T, s *testpg.Server) {
		s.Exec("postgres", "create database other", "create table t (id int)")
		conn := monitor(t, s.URL("postgres"))
		holder := func(database string) row {
			t.Helper()
			return find(t, read(t, conn, f), "datname", database)
		}
		burn := func() { // some transaction ids
			for range 5 {
				s.Exec("postgres", "insert into t values (1)")
			}
		}
		r := holder("postgres")
		require.Equal(t, []any{int64(0), nil, nil, nil}, []any{r["oldest_xmin_age"], r["oldest_xmin_holder"], r["oldest_xmin_pid"], r["oldest_xmin_name"]})

		s.Exec("postgres", "begin; insert into t values (2); prepare transaction 'forgotten one'")
		burn()
		r = holder("postgres")
		require.Equal(t, []any{"prepared transaction", nil, "forgotten one"}, []any{r["oldest_xmin_holder"], r["oldest_xmin_pid"], r["oldest_xmin_name"]})
		require.GreaterOrEqual(t, r["oldest_xmin_age"], int64(5))
		require.NotNil(t, r["oldest_xmin_seconds"])
		require.Nil(t, holder("other")["oldest_xmin_holder"], "a transaction of another database")

		s.Exec("postgres", "rollback prepared 'forgotten one'")
		idle, err := pgx.Connect(t.Context(), s.URL("postgres")+"&application_name=sleeper")
		require.NoError(t, err)
		execute(t, idle, "begin isolation level repeatable read", "select 1")
		burn()
		r = holder("postgres")
		require.Equal(t, []any{"backend", int32(idle.PgConn().PID()), "sleeper"}, []any{r["oldest_xmin_holder"], r["oldest_xmin_pid"], r["oldest_xmin_name"]})
		require.Positive(t, r["oldest_xmin_seconds"])
		require.NoError(t, idle.Close(context.Background()))

		s.Exec("postgres", "select pg_create_logical_replication_slot('stuck', 'pgoutput')")
		burn()
		require.Eventually(t, func() bool { return holder("postgres")["oldest_xmin_holder"] == "replication slot" }, waitFor, tick)
		for _, database := range []string{"postgres", "other"} {
			r = holder(database)
			require.Equal(t, []any{nil, "stuck", nil}, []any{r["oldest_xmin_pid"], r["oldest_xmin_name"], r["oldest_xmin_seconds"]})
		}

		age := number(t, conn, "select age(datfrozenxid) from pg_database where datname = 'postgres'")
		require.InDelta(t, age, r["datfrozenxid_age"], 50)
		require.InDelta(t, 100*age/2147483648, r["wraparound_percent"], 0.001)
		require.InDelta(t, 100*age/200e6, r["autovacuum_percent"], 0.001)
		if s.Major() >= 14 {
			require.InDelta(t, 100*age/1600e6, r["failsafe_percent"], 0.001)
		} else {
			require.Nil(t, r["failsafe_percent"])
		}
	}, "max_prepared_transactions = 2", "autovacuum = off")
}

func TestStandbyThatFeedsBackHoldsAllDatabases(t *testing.T) {
	t.Parallel()
	onOwnServer(t, func(t *testing.T, s *testpg.Server) {
		standby := s.Standby("second", "hot_standby_feedback = on")
		s.Exec("postgres", "create table t (id int)")
		at := testpg.Value[string](s, "postgres", "select pg_current_wal_lsn()::text")
		reader := connect(t, standby.URL("postgres"))
		require.Eventually(t, func() bool {
			return number(t, reader, "select (pg_last_wal_replay_lsn() >= $1::text::pg_lsn)::int", at) == 1
		}, waitFor, tick)
		execute(t, reader, "begin isolation level repeatable read", "select * from t")
		for range 5 {
			s.Exec("postgres", "insert into t values (1)")
		}
		conn := monitor(t, s.URL("postgres"))
		require.Eventually(t, func() bool {
			r := find(t, read(t, conn, family(t, "pg_wraparound")), "datname", "template1")
			return r["oldest_xmin_holder"] == "replication slot" && r["oldest_xmin_name"] == "second" && r["oldest_xmin_age"].(int64) >= 5
		}, waitFor, tick)
		standby.Configure("primary_slot_name = ''") // its feedback is then the sender's own
		standby.Reload()
		s.Exec("postgres", "select pg_terminate_backend(pid) from pg_stat_replication")
		require.Eventually(t, func() bool {
			return number(t, conn, "select count(*) from pg_replication_slots where active") == 0
		}, waitFor, tick)
		s.Exec("postgres", "select pg_drop_replication_slot('second')")
		require.Eventually(t, func() bool {
			r := find(t, read(t, conn, family(t, "pg_wraparound")), "datname", "template1")
			return r["oldest_xmin_holder"] == "standby" && r["oldest_xmin_name"] == "second" && r["oldest_xmin_pid"] != nil
		}, waitFor, tick)
	}, "autovacuum = off")
}

func TestInputAndOutputIsCountedByWhoDoesIt(t *testing.T) {
	t.Parallel()
	onEveryServer(t, func(t *testing.T, databaseURL string) {
		owner := connect(t, databaseURL)
		if major(t, owner) < 16 {
			return // the version has no such view: TestEverySupportedVersionHasEveryFamilyThatItsViewsAllow
		}
		conn := monitor(t, databaseURL)
		backends := func() (r row) {
			for _, r = range read(t, conn, family(t, "pg_stat_io")) {
				if r["backend_type"] == "client backend" && r["object"] == "relation" && r["context"] == "normal" {
					return r
				}
			}
			return nil
		}
		before := backends()
		execute(t, owner, "create table grown as select g, repeat('x', 1000) from generate_series(1, 2000) g", "insert into grown select * from grown")
		_ = owner.Close(t.Context())
		require.Eventually(t, func() bool {
			now := backends()
			return now["extends"].(int64) > before["extends"].(int64) && now["extend_bytes"].(int64) >= before["extend_bytes"].(int64)+1<<20
		}, waitFor, tick)
		now := backends()
		require.InDelta(t, number(t, conn, "select current_setting('block_size')::int")*float64(now["reads"].(int64)), now["read_bytes"],
			float64(now["reads"].(int64))*8192*15+1, "a read is of one block to sixteen")
		require.GreaterOrEqual(t, now["read_bytes"], now["reads"].(int64)*8192)
	})
}
