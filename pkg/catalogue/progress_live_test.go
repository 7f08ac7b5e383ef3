package catalogue_test

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/internal/testpg"
)

// progress returns the row of a session's command once it is as wanted.
func progress(t *testing.T, conn *pgx.Conn, pid int32, command string, ok func(row) bool) row {
	t.Helper()
	return eventually(t, conn, family(t, "pg_progress"), command, func(r row) bool {
		return r["pid"] == pid && r["command"] == command && ok(r)
	})
}

// anything is that a command is shown at all.
func anything(row) bool { return true }

// onlyHas requires that of the figures of all commands the row has those of its own.
func onlyHas(t *testing.T, r row, figures ...string) {
	t.Helper()
	for _, c := range family(t, "pg_progress").Columns {
		if c.Unit == "" || c.Name == "query_age" {
			continue
		}
		require.Equal(t, slices.Contains(figures, c.Name), r[c.Name] != nil, "%s of %v", c.Name, r)
	}
}

// direct returns what the command's view has in a column.
func direct(s *testpg.Server, view, column string, pid int32) int64 {
	return testpg.Value[int64](s, "postgres", fmt.Sprintf("select %s from %s where pid = %d", column, view, pid))
}

func TestCommandsThatRunShowTheirProgress(t *testing.T) {
	t.Parallel()
	onEachVersion(t, func(t *testing.T, major int) {
		s := testpg.Start(t, major, "autovacuum = off", "track_activities = on")
		s.Exec("postgres", "create table big (id int, body text)",
			"insert into big select g, repeat('x', 500) from generate_series(1, 5000) g", "create index big_id on big (id)", "delete from big where id % 2 = 0")
		conn := watcher(t, s, s)
		require.Empty(t, read(t, conn, family(t, "pg_progress")))

		t.Run("vacuum", func(t *testing.T) { vacuumShows(t, s, conn) })
		t.Run("analyze", func(t *testing.T) { analyzeShows(t, s, conn) })
		t.Run("create index", func(t *testing.T) { createIndexShows(t, s, conn) })
		t.Run("vacuum full", func(t *testing.T) { vacuumFullShows(t, s, conn) })
		t.Run("copy", func(t *testing.T) { copyShows(t, s, conn) })
		t.Run("base backup", func(t *testing.T) { baseBackupShows(t, s, conn) })
	})
}

// slowed opens a session whose vacuum and analyze rest 400 ms, the most there
// is, after each block.
func slowed(t *testing.T, s *testpg.Server) session {
	t.Helper()
	c := open(t, s, "slowed")
	execute(t, c.Conn, "set vacuum_cost_delay = 100", "set vacuum_cost_limit = 1", "set vacuum_cost_page_hit = 100", "set vacuum_cost_page_miss = 100")
	if s.Major() >= 18 {
		execute(t, c.Conn, "set track_cost_delay_timing = on")
	}
	return c
}

func vacuumShows(t *testing.T, s *testpg.Server, conn *pgx.Conn) {
	began := time.Now()
	c := slowed(t, s)
	c.start(t, s, "vacuum (parallel 0) big")
	r := progress(t, conn, c.pid, "VACUUM", func(r row) bool { return r["heap_blks_scanned"].(int64) > 0 })
	require.Equal(t, "postgres", r["datname"])
	require.Equal(t, "postgres", r["username"])
	require.Equal(t, "client backend", r["backend_type"])
	require.Equal(t, "public.big", r["relation"])
	require.Nil(t, r["index_relation"])
	require.Equal(t, "scanning heap", r["phase"])
	require.Equal(t, testpg.Value[int64](s, "postgres", "select pg_relation_size('big') / 8192"), r["heap_blks_total"])
	require.LessOrEqual(t, r["heap_blks_scanned"], direct(s, "pg_stat_progress_vacuum", "heap_blks_scanned", c.pid))
	require.Equal(t, int64(0), r["heap_blks_vacuumed"])
	require.Equal(t, int64(0), r["index_vacuum_count"])
	require.Greater(t, r["query_age"], 0.0)
	require.Less(t, r["query_age"], time.Since(began).Seconds())
	figures := []string{"heap_blks_total", "heap_blks_scanned", "heap_blks_vacuumed", "index_vacuum_count"}
	if s.Major() < 17 {
		figures = append(figures, "max_dead_tuples", "num_dead_tuples")
	} else {
		figures = append(figures, "max_dead_tuple_bytes", "dead_tuple_bytes", "num_dead_item_ids", "indexes_total", "indexes_processed")
	}
	if s.Major() >= 18 {
		figures = append(figures, "delay_time")
		progress(t, conn, c.pid, "VACUUM", func(r row) bool { return r["delay_time"].(float64) > 0 })
	}
	onlyHas(t, r, figures...)
	require.Equal(t, s.Major() >= 19, r["mode"] == "normal" && r["started_by"] == "manual", "%v", r)

	elsewhere := connect(t, s.URLAs("watcher", "template1"))
	oid := testpg.Value[string](s, "postgres", "select 'big'::regclass::oid::text")
	require.Equal(t, oid, progress(t, elsewhere, c.pid, "VACUUM", anything)["relation"])
}

func analyzeShows(t *testing.T, s *testpg.Server, conn *pgx.Conn) {
	s.Exec("postgres", "create table sampled as table big")
	c := slowed(t, s)
	c.start(t, s, "analyze sampled")
	r := progress(t, conn, c.pid, "ANALYZE", func(r row) bool { return r["sample_blks_scanned"].(int64) > 0 })
	require.Equal(t, "public.sampled", r["relation"])
	require.Equal(t, "acquiring sample rows", r["phase"])
	require.Equal(t, testpg.Value[int64](s, "postgres", "select pg_relation_size('sampled') / 8192"), r["sample_blks_total"])
	require.Equal(t, s.Major() >= 19, r["started_by"] == "manual")
	figures := []string{"sample_blks_total", "sample_blks_scanned", "ext_stats_total", "ext_stats_computed", "child_tables_total", "child_tables_done"}
	if s.Major() >= 18 {
		figures = append(figures, "delay_time")
	}
	onlyHas(t, r, figures...)
}

// createIndexShows makes an index wait for a transaction that writes.
func createIndexShows(t *testing.T, s *testpg.Server, conn *pgx.Conn) {
	s.Exec("postgres", "create table indexed (id int)")
	writer, builder := open(t, s, "writer"), open(t, s, "builder")
	execute(t, writer.Conn, "begin", "insert into indexed values (1)")
	builder.start(t, s, "create index concurrently indexed_id on indexed (id)")
	r := progress(t, conn, builder.pid, "CREATE INDEX CONCURRENTLY", func(r row) bool { return r["lockers_total"] == int64(1) })
	require.Equal(t, "public.indexed", r["relation"])
	require.Equal(t, "public.indexed_id", r["index_relation"])
	require.Equal(t, "waiting for writers before build", r["phase"])
	require.Equal(t, int64(0), r["lockers_done"])
	require.Equal(t, writer.pid, r["current_locker_pid"])
	onlyHas(t, r, "lockers_total", "lockers_done", "blocks_total", "blocks_done", "tuples_total", "tuples_done", "partitions_total", "partitions_done")
	execute(t, writer.Conn, "rollback")
}

// vacuumFullShows rewrites a table whose index calls a function that takes its time.
func vacuumFullShows(t *testing.T, s *testpg.Server, conn *pgx.Conn) {
	s.Exec("postgres",
		`create function slow(int) returns int immutable language plpgsql as $$
		   begin perform pg_catalog.pg_sleep(pg_catalog.current_setting('test.pause')::float8); return $1; end $$`,
		"set test.pause = '0'; create table rewritten (id int); insert into rewritten select generate_series(1, 7); create index on rewritten (slow(id))")
	c := open(t, s, "rewriter")
	execute(t, c.Conn, "set test.pause = '100'")
	c.start(t, s, "vacuum full rewritten")
	r := progress(t, conn, c.pid, "VACUUM FULL", func(r row) bool { return r["phase"] == "rebuilding index" })
	require.Nil(t, r["index_relation"], "none gives the order")
	require.Equal(t, testpg.Value[string](s, "postgres", "select 'rewritten'::regclass::oid::text"),
		testpg.Value[string](s, "postgres", "select relid::text from pg_stat_progress_cluster"))
	require.Equal(t, "public.rewritten", r["relation"], "also while it is locked")
	require.Equal(t, int64(7), r["heap_tuples_scanned"])
	require.Equal(t, int64(7), r["heap_tuples_written"])
	require.Equal(t, int64(0), r["index_rebuild_count"])
	figures := []string{"heap_tuples_scanned", "heap_tuples_written", "heap_blks_total", "heap_blks_scanned", "index_rebuild_count"}
	if s.Major() >= 19 {
		figures = append(figures, "heap_tuples_updated", "heap_tuples_deleted")
	}
	onlyHas(t, r, figures...)
}

// copyShows copies into a table what is still to come.
func copyShows(t *testing.T, s *testpg.Server, conn *pgx.Conn) {
	s.Exec("postgres", "create table copied (id int)")
	c := open(t, s, "copier")
	from, to := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := c.PgConn().CopyFrom(context.Background(), from, "copy copied from stdin where id > 1")
		done <- err
	}()
	t.Cleanup(func() {
		require.NoError(t, to.Close())
		require.NoError(t, <-done)
	})
	var lines strings.Builder
	const rows = 5000 // they are counted when some are inserted
	for id := range rows {
		fmt.Fprintln(&lines, id+1)
	}
	_, err := io.WriteString(to, lines.String())
	require.NoError(t, err)
	if s.Major() >= 14 {
		r := progress(t, conn, c.pid, "COPY FROM", func(r row) bool { return r["tuples_processed"].(int64) >= 1000 })
		require.Less(t, r["tuples_processed"], int64(rows))
		require.Equal(t, "public.copied", r["relation"])
		require.Equal(t, "PIPE", r["type"])
		require.Nil(t, r["phase"])
		require.Equal(t, int64(lines.Len()), r["bytes_processed"])
		require.Equal(t, int64(0), r["bytes_total"])
		require.Equal(t, int64(1), r["tuples_excluded"])
		figures := []string{"bytes_processed", "bytes_total", "tuples_processed", "tuples_excluded"}
		if s.Major() >= 17 {
			figures = append(figures, "tuples_skipped")
		}
		onlyHas(t, r, figures...)
	}
}

// baseBackupShows begins a backup and takes nothing of it.
func baseBackupShows(t *testing.T, s *testpg.Server, conn *pgx.Conn) {
	command := "BASE_BACKUP (PROGRESS, CHECKPOINT 'fast')"
	if s.Major() < 15 {
		command = "BASE_BACKUP PROGRESS FAST"
	}
	pid := replicate(t, s, "backup", command)
	r := progress(t, conn, pid, "BASE BACKUP", func(r row) bool {
		return r["phase"] == "streaming database files" && r["backup_streamed"].(int64) > 0
	})
	require.Equal(t, "walsender", r["backend_type"])
	require.Nil(t, r["relation"])
	require.Greater(t, r["backup_total"], int64(1<<20))
	require.Less(t, r["backup_streamed"], r["backup_total"])
	require.Equal(t, int64(1), r["tablespaces_total"])
	require.Equal(t, int64(0), r["tablespaces_streamed"])
	require.Equal(t, s.Major() >= 19, r["backup_type"] == "full")
	onlyHas(t, r, "backup_total", "backup_streamed", "tablespaces_total", "tablespaces_streamed")

	// To whom a backup is sent nothing is behind.
	require.Nil(t, find(t, read(t, conn, family(t, "pg_stat_replication")), "pid", pid)["sent_lag_bytes"])
}
