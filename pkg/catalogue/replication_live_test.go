package catalogue_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/internal/testpg"
)

// watcher opens a session of a role that has pg_monitor and nothing else, on a
// server or on a standby of it, to which the role may be still on its way.
func watcher(t *testing.T, primary, s *testpg.Server) *pgx.Conn {
	t.Helper()
	const role = "watcher"
	if !testpg.Value[bool](primary, "postgres", "select exists (select from pg_roles where rolname = $1)", role) {
		primary.Exec("postgres", "create role "+role+" login in role pg_monitor")
	}
	url := s.URLAs(role, "postgres")
	var conn *pgx.Conn
	require.Eventually(t, func() bool {
		var err error
		conn, err = pgx.Connect(t.Context(), url)
		return err == nil
	}, waitFor, tick)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// replicate sends a command of the replication protocol and reads nothing of
// what it gives.
func replicate(t *testing.T, s *testpg.Server, application, command string) (pid int32) {
	t.Helper()
	conn, err := pgconn.Connect(t.Context(), s.URL("postgres")+"&replication=true&application_name="+application)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Conn().Close() })
	_, err = conn.Exec(t.Context(), "IDENTIFY_SYSTEM").ReadAll() // 13 wants it first
	require.NoError(t, err)
	conn.Frontend().Send(&pgproto3.Query{String: command})
	require.NoError(t, conn.Frontend().Flush())
	return int32(conn.PID())
}

// eventually reads a family until one of its rows is as wanted, and returns it.
func eventually(t *testing.T, conn *pgx.Conn, f *catalogue.Family, what string, ok func(row) bool) row {
	t.Helper()
	var last []row
	for deadline := time.Now().Add(waitFor); time.Now().Before(deadline); time.Sleep(tick) {
		last = read(t, conn, f)
		for _, r := range last {
			if ok(r) {
				return r
			}
		}
	}
	require.Fail(t, "still not so: "+what, "%v", last)
	return nil
}

func TestAStandbyIsSeenFromBothEnds(t *testing.T) {
	t.Parallel()
	onEachVersion(t, func(t *testing.T, major int) {
		primary := testpg.Start(t, major)
		primary.Exec("postgres", "create table followed (body text)")
		standby := primary.Standby("second", "max_standby_streaming_delay = 10ms", "hot_standby_feedback = off")
		here, there := watcher(t, primary, primary), watcher(t, primary, standby)
		replication, slots, recovery := family(t, "pg_stat_replication"), family(t, "pg_replication_slots"), family(t, "pg_standby")

		require.Empty(t, read(t, here, recovery), "a primary is no standby")
		r := eventually(t, here, replication, "caught up", func(r row) bool { return r["replay_lag_bytes"] == int64(0) })
		require.Equal(t, "second", r["application_name"])
		require.Empty(t, r["client_addr"])
		require.Equal(t, "postgres", r["username"])
		require.Equal(t, "streaming", r["state"])
		require.Equal(t, "async", r["sync_state"])
		require.Equal(t, int32(0), r["sync_priority"])
		require.GreaterOrEqual(t, r["reply_age"], 0.0)
		require.Less(t, r["reply_age"], 60.0)
		require.Nil(t, r["xmin_age"])
		require.Equal(t, testpg.Value[int32](primary, "postgres", "select pid from pg_stat_replication"), r["pid"])

		r = eventually(t, there, recovery, "caught up", func(r row) bool { return r["replay_lag_bytes"] == int64(0) })
		require.Equal(t, "streaming", r["status"])
		require.Contains(t, r["sender_host"], "/")
		require.Equal(t, int32(5432), r["sender_port"])
		require.Equal(t, "second", r["slot_name"])
		require.Equal(t, int32(1), r["received_tli"])
		require.InDelta(t, 0, r["replay_lag"], 0)
		require.Less(t, r["last_msg_age"], 60.0)
		require.Equal(t, false, r["replay_paused"])
		require.Equal(t, int64(0), r["confl_lock"])
		require.Equal(t, major >= 14, r["replay_pause_state"] == "not paused")
		require.Equal(t, major >= 16, r["confl_active_logicalslot"] == int64(0))

		// A reader of the standby is in the way of what the primary did.
		reader := connect(t, standby.URL("postgres"))
		execute(t, reader, "begin", "select count(*) from followed")
		primary.Exec("postgres", "truncate followed")
		r = eventually(t, there, recovery, "a conflict", func(r row) bool { return r["confl_lock"] != int64(0) })
		require.Equal(t, testpg.Value[int64](standby, "postgres", "select sum(confl_lock)::bigint from pg_stat_database_conflicts"), r["confl_lock"])

		// What is received and not replayed is behind.
		standby.Exec("postgres", "select pg_wal_replay_pause()")
		require.Eventually(t, func() bool { return read(t, there, recovery)[0]["replay_paused"] == true }, waitFor, tick)
		const much = 1 << 20
		primary.Exec("postgres", fmt.Sprintf("insert into followed select repeat(md5(g::text), 32) from generate_series(1, %d) g", much/1024))
		r = eventually(t, there, recovery, "behind", func(r row) bool { return r["replay_lag_bytes"].(int64) >= much })
		require.Equal(t, testpg.Value[int64](standby, "postgres",
			"select pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::bigint"), r["replay_lag_bytes"])
		require.Greater(t, r["replay_lag"], 0.0)
		require.Equal(t, major >= 14, r["replay_pause_state"] == "paused")
		r = eventually(t, here, replication, "behind", func(r row) bool {
			return r["replay_lag_bytes"].(int64) >= much && r["flush_lag_bytes"] == int64(0)
		})
		require.Equal(t, int64(0), r["sent_lag_bytes"])
		require.Equal(t, int64(0), r["write_lag_bytes"])

		// The slot keeps what the standby has not said to have flushed, and one that nobody reads keeps all.
		r = find(t, read(t, here, slots), "slot_name", "second")
		require.Equal(t, "physical", r["slot_type"])
		require.Equal(t, true, r["active"])
		require.Equal(t, testpg.Value[int32](primary, "postgres", "select pid from pg_stat_replication"), r["active_pid"])
		require.Equal(t, "reserved", r["wal_status"])
		require.Nil(t, r["inactive_since"])
		require.Nil(t, r["plugin"])
		require.Nil(t, r["total_txns"])

		// On a standby, too, slots keep WAL and receivers are behind.
		standby.Exec("postgres", "select pg_create_physical_replication_slot('third', true)")
		r = find(t, read(t, there, slots), "slot_name", "third")
		require.Equal(t, testpg.Value[int64](standby, "postgres",
			"select pg_wal_lsn_diff(pg_last_wal_receive_lsn(), restart_lsn)::bigint from pg_replication_slots"), r["retained_bytes"])
		position := testpg.Value[string](standby, "postgres", "select pg_last_wal_replay_lsn()::text")
		pid := replicate(t, standby, "cascaded", "START_REPLICATION SLOT third PHYSICAL "+position+" TIMELINE 1")
		r = eventually(t, there, replication, "sending", func(r row) bool { return r["pid"] == pid && r["sent_lag_bytes"] != nil })
		require.Equal(t, "cascaded", r["application_name"])
		require.Equal(t, "catchup", r["state"], "for it takes nothing")
		require.Positive(t, r["sent_lag_bytes"])
		require.Less(t, r["sent_lag_bytes"], int64(2*much))
		require.Nil(t, r["flush_lag_bytes"], "it never answered")
		require.Empty(t, with(ask(t, there, family(t, "pg_long_running"),
			replaced(t, query(t, there, family(t, "pg_long_running")), "interval '60 seconds'", "interval '0 seconds'"), int64(2000)), "pid", pid),
			"a WAL sender always runs")

		standby.Exec("postgres", "select pg_wal_replay_resume()")
		eventually(t, there, recovery, "caught up again", func(r row) bool { return r["replay_lag_bytes"] == int64(0) && r["replay_lag"] == 0.0 })
		instance := read(t, there, family(t, "pg_instance"))[0]
		require.Equal(t, true, instance["in_recovery"])
		require.Equal(t, int32(1), instance["timeline"])
		require.Equal(t, read(t, here, family(t, "pg_instance"))[0]["system_identifier"], instance["system_identifier"])
		standby.Promote()
		require.Empty(t, read(t, there, recovery))
		require.Equal(t, int32(2), read(t, there, family(t, "pg_instance"))[0]["timeline"])
	})
}

func TestALogicalSlotSaysWhatItKeepsAndDecoded(t *testing.T) {
	t.Parallel()
	f := family(t, "pg_replication_slots")
	onEachVersion(t, func(t *testing.T, major int) {
		s := testpg.Start(t, major, "logical_decoding_work_mem = 64kB", "max_slot_wal_keep_size = 1GB", "autovacuum = off")
		s.Exec("postgres", "create table decoded (body text)",
			"select pg_create_logical_replication_slot('logical', 'test_decoding')",
			"select pg_create_physical_replication_slot('unreserved')")
		conn := watcher(t, s, s)
		before := find(t, read(t, conn, f), "slot_name", "logical")
		const much = 1 << 20
		s.Exec("postgres", fmt.Sprintf("insert into decoded select repeat(md5(g::text), 32) from generate_series(1, %d) g", much/1024))
		for range 10 {
			s.Exec("postgres", "insert into decoded values ('small')")
		}
		rows := read(t, conn, f)
		r := find(t, rows, "slot_name", "logical")
		require.Equal(t, "logical", r["slot_type"])
		require.Equal(t, "test_decoding", r["plugin"])
		require.Equal(t, "postgres", r["datname"])
		require.Equal(t, false, r["temporary"])
		require.Equal(t, false, r["active"])
		require.Nil(t, r["active_pid"])
		for column, from := range map[string]string{"retained_bytes": "restart_lsn", "confirmed_flush_lag": "confirmed_flush_lsn"} {
			require.GreaterOrEqual(t, r[column].(int64)-before[column].(int64), int64(much), column)
			require.InDelta(t, testpg.Value[int64](s, "postgres",
				"select pg_wal_lsn_diff(pg_current_wal_lsn(), "+from+")::bigint from pg_replication_slots where slot_name = 'logical'"),
				r[column], 64<<10, column) // running transactions are logged now and then
		}
		require.Nil(t, r["xmin_age"])
		require.GreaterOrEqual(t, r["catalog_xmin_age"], int64(11))
		require.Equal(t, "reserved", r["wal_status"])
		require.Greater(t, r["safe_wal_size"], int64(512<<20))
		require.Equal(t, major >= 14, r["two_phase"] == false)
		require.Equal(t, major >= 16, r["conflicting"] == false)
		require.Equal(t, major >= 17, r["failover"] == false && r["synced"] == false)
		require.Equal(t, major >= 17, r["inactive_since"] != nil)
		require.Equal(t, major >= 14, r["spill_txns"] == int64(0))
		require.Equal(t, major >= 19, r["mem_exceeded_count"] == int64(0) && r["slotsync_skip_count"] == int64(0))
		unreserved := find(t, rows, "slot_name", "unreserved")
		require.Nil(t, unreserved["retained_bytes"])
		require.Nil(t, unreserved["wal_status"])

		s.Exec("postgres", "select count(*) from pg_logical_slot_get_changes('logical', null, null)")
		if major < 14 {
			return // it does not count
		}
		r = eventually(t, conn, f, "decoded", func(r row) bool { return r["total_txns"] != nil && r["total_txns"].(int64) >= 11 })
		require.Equal(t, int64(1), r["spill_txns"])
		require.Positive(t, r["spill_count"])
		require.GreaterOrEqual(t, r["spill_bytes"], int64(much))
		require.GreaterOrEqual(t, r["total_bytes"], int64(much))
		require.Equal(t, int64(0), r["stream_txns"])
		require.Less(t, r["confirmed_flush_lag"], int64(much))
		require.Equal(t, major >= 19, r["mem_exceeded_count"] != nil && r["mem_exceeded_count"].(int64) > 0)
	})
}

func TestSettingsThatMayHoldSecretsAreMasked(t *testing.T) {
	t.Parallel()
	f := family(t, "pg_settings")
	const secret = "hunter2"
	masked := []string{"primary_conninfo", "archive_command", "restore_command", "archive_cleanup_command", "recovery_end_command",
		"ssl_passphrase_command"}
	onEachVersion(t, func(t *testing.T, major int) {
		masked, settings := masked, []string{"session_preload_libraries = postgres_fdw"}
		if major >= 15 { // an extension that we do not know may call a secret anything
			masked = append(slices.Clone(masked), "postgres_fdw.application_name")
		}
		for _, name := range masked {
			settings = append(settings, name+" = 'host=elsewhere password="+secret+"'")
		}
		s := testpg.Start(t, major, append(settings, "work_mem = 5MB", "pg_stat_statements.track = all",
			"search_path = 'one, two'", "log_line_prefix = '%m %q'")...)
		s.Configure("max_connections = 61") // needs a restart
		conn := watcher(t, s, s)
		execute(t, conn, "set statement_timeout = '30s'", "set search_path = pg_catalog")
		s.Reload()
		changed := func(r row) bool { return r["name"] == "max_connections" && r["pending_restart"] == true }
		eventually(t, conn, f, "the file was read", changed)
		rows := read(t, conn, f)
		require.NotContains(t, fmt.Sprint(rows), secret)
		for _, name := range masked {
			require.Equal(t, "********", find(t, rows, "name", name)["setting"], name)
			require.Equal(t, "configuration file", find(t, rows, "name", name)["source"], name)
		}
		for name, want := range map[string]string{"ssl_ca_file": "", "work_mem": "5120", "pg_stat_statements.track": "all",
			"search_path": "one, two", "log_line_prefix": "%m %q", "statement_timeout": "0", "shared_preload_libraries": "pg_stat_statements"} {
			require.Equal(t, want, find(t, rows, "name", name)["setting"], name)
		}
		require.Equal(t, "kB", find(t, rows, "name", "work_mem")["unit"])
		require.Equal(t, "default", find(t, rows, "name", "maintenance_work_mem")["source"])
		require.Equal(t, false, find(t, rows, "name", "work_mem")["pending_restart"])
		direct := testpg.Value[int](s, "postgres", "select count(*) from pg_settings where source <> 'client' and name !~ '^transaction_'")
		require.InDelta(t, direct, len(rows), 5, "all but what the session itself sent")
		for _, r := range rows {
			require.False(t, strings.HasPrefix(r["name"].(string), "transaction_"))
		}
	})
}
