package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/internal/testpg"
)

// slow families have rows only if the test goes on for as long as with WATCH=all,
// and why. All others must have some, whoever adds them.
var slow = map[string]string{"pg_long_running": "it tells of what takes longer than a minute"}

// released is the newest version that is not a release candidate.
const released = 18

// Names of the servers of a version.
const (
	primary = "primary"
	standby = "standby"
)

// From the views of a busy server and its standby, through the collector's
// program, gateway, stream and ingester, to the tables.
func TestEveryFamilyOfAVersionIsStoredWithItsValues(t *testing.T) {
	t.Parallel()
	for _, major := range testpg.Versions(catalogue.OldestServer, released) {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			w := newWatch(t)
			b := w.busy(major)
			w.collect(map[string]*testpg.Server{primary: b.Server, standby: b.standby}, primary, "")
			w.messagesAreCounted(b)
			w.everyFamilyIsStored(major)
			w.valuesAreTheServers(b)
			w.valuesAreTheHosts()
			require.Contains(t, string(w.command("pganalytics", "stream", "status", "--data-dir", w.data(), "--output", "json")),
				`"dead_letters":0`)
		})
	}
}

func (w *watch) everyFamilyIsStored(major int) {
	w.t.Helper()
	var lacking []string
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		lacking = slices.DeleteFunc(w.lacking(major, primary, standby), func(name string) bool {
			return slow[name] != "" && os.Getenv("WATCH") != "all"
		})
		if len(lacking) == 0 {
			break
		}
	}
	require.Empty(w.t, lacking, "families without rows")
}

// busyServer has a standby and something of everything that families tell of.
type busyServer struct {
	*testpg.Server
	standby  *testpg.Server
	blocking testpg.Blocking
}

func (w *watch) busy(major int) *busyServer {
	w.t.Helper()
	b := &busyServer{Server: testpg.Start(w.t, major, logging(major)...)}
	b.Furnish()
	w.prepare(b.Server, "postgres", testpg.Shop, testpg.Books)
	b.standby = b.Standby("second")
	b.Linger(testpg.Shop)
	b.Work()
	b.Deadlock()
	b.blocking = b.Block()
	b.Toil()
	return b
}

// valuesAreTheServers compares what is stored with what the server itself says.
func (w *watch) valuesAreTheServers(b *busyServer) {
	w.t.Helper()
	w.counterLiesBetweenDirectReadings(b)
	w.sees("the instance", primary, "pg_instance",
		"bool_or(is_up and version_num = $2 and postmaster_start_time = $3 and not in_recovery and max_connections = 100) from f",
		testpg.Value[int](b.Server, "postgres", "select current_setting('server_version_num')::int"),
		testpg.Value[time.Time](b.Server, "postgres", "select pg_postmaster_start_time()"))
	w.sees("the standby", standby, "pg_instance", "bool_and(in_recovery) from f where is_up")
	w.sees("the deadlock", primary, "pg_stat_database", "max(deadlocks) = 1 from f where datname = $2", testpg.Shop)
	w.sees("a table's size", primary, "pg_stat_user_tables",
		"bool_or(table_bytes >= $2 and total_bytes = $3) from f where datname = 'books' and relname = 'books'",
		testpg.Value[int64](b.Server, testpg.Books, "select pg_relation_size('books')"),
		testpg.Value[int64](b.Server, testpg.Books, "select pg_total_relation_size('books')"))
	w.sees("a setting", primary, "pg_settings", "count(*) = 1 from f where name = 'max_wal_senders' and setting = '8'")
	b.Exec("postgres", "alter system set work_mem = '5MB'", "select pg_reload_conf()")
	w.sees("a setting that changed", primary, "pg_settings", "count(distinct setting) = 2 from f where name = 'work_mem' and setting in ('4096', '5120')")
	w.sees("a statement with its text", primary, "pg_stat_statements",
		`count(*) > 0 from f join metrics.pg_stat_statements_text x using (server_id, datname, queryid)
		where datname = 'books' and f.username = 'postgres' and f.calls > 0 and x.query = 'select title from books where id = $1'`)
	w.sees("both slots", primary, "pg_replication_slots",
		"array_agg(distinct slot_name) = '{second,unread}' and bool_and(active = (slot_name = 'second')) from f")
	w.sees("who waits for whom", primary, "pg_blocking",
		"bool_or(blocked_pid = $2 and blocking_pid = $3 and blocked_query not like '%3%') from f", b.blocking.Blocked, b.blocking.Blocking)
	w.sees("the standby from the primary", primary, "pg_stat_replication", "bool_and(application_name = 'second' and state = 'streaming') from f")
	w.sees("the primary from the standby", standby, "pg_standby", "bool_or(status = 'streaming' and slot_name = 'second') from f")
	w.sees("a sequence", primary, "pg_sequences",
		"bool_or(last_value between 1 and $2) from f where sequencename = 'tickets'",
		testpg.Value[int64](b.Server, testpg.Shop, "select last_value from tickets"))
}

// valuesAreTheHosts compares what does not change while the host runs.
func (w *watch) valuesAreTheHosts() {
	w.t.Helper()
	meminfo, err := os.ReadFile("/proc/meminfo")
	require.NoError(w.t, err)
	var kib int64
	_, err = fmt.Sscanf(string(meminfo), "MemTotal: %d kB", &kib)
	require.NoError(w.t, err)
	w.sees("the host's memory", primary, "host_memory",
		"bool_and(total_bytes = $2 and available_bytes between 1 and total_bytes) from f", kib*1024)
	var root unix.Statfs_t
	require.NoError(w.t, unix.Statfs("/", &root))
	w.sees("the root's file system", primary, "host_filesystem",
		"bool_and(total_bytes = $2 and used_bytes + free_bytes between 1 and total_bytes) from f where mount = '/'", int64(root.Blocks)*root.Bsize)
}

// messagesAreCounted provokes messages once the collector follows the log, and
// looks that each was counted once when one that came later is.
func (w *watch) messagesAreCounted(b *busyServer) {
	w.t.Helper()
	conn := b.Connect("postgres")
	raise := func(level, state string) {
		_, err := conn.Exec(context.Background(), fmt.Sprintf("do $$ begin raise %s 'a message' using errcode = '%s'; end $$", level, state))
		require.Equal(w.t, level == "exception", err != nil, "%v", err)
	}
	counted := func(severity, state string) int64 {
		n, _ := stored[int64](w, primary, "pg_log_summary",
			"select coalesce(sum(count), 0)::bigint from f where severity = $2 and sqlstate = $3", severity, state)
		return n
	}
	w.eventually("the log is followed", func() bool {
		raise("warning", "01Z01")
		return counted("WARNING", "01Z01") > 0
	})
	for range 5 {
		raise("warning", "01Z02")
	}
	for range 7 {
		raise("exception", "ZZ001")
	}
	raise("warning", "01Z03")
	w.eventually("the last message is counted", func() bool { return counted("WARNING", "01Z03") == 1 })
	require.EqualValues(w.t, 5, counted("WARNING", "01Z02"))
	require.EqualValues(w.t, 7, counted("ERROR", "ZZ001"))
}

// counterLiesBetweenDirectReadings reads a counter that grows before and after
// the collector does.
func (w *watch) counterLiesBetweenDirectReadings(b *busyServer) {
	w.t.Helper()
	read := func() int64 {
		return testpg.Value[int64](b.Server, testpg.Shop, "select xact_commit from pg_stat_database where datname = current_database()")
	}
	low, begin := read(), now()
	var value int64
	w.eventually("a reading in between", func() (ok bool) {
		value, ok = stored[int64](w, primary, "pg_stat_database", "select xact_commit from f where datname = 'shop' and time > $2 order by time", begin)
		return ok
	})
	high := read()
	require.GreaterOrEqual(w.t, value, low)
	require.LessOrEqual(w.t, value, high)
	require.Greater(w.t, high, low, "the counter stands still")
}
