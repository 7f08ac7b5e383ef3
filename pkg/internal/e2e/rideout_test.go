package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/internal/testpg"
)

// Names of the servers that get into trouble, one by one, beside one that does
// not.
const (
	steady  = "steady"
	mortal  = "mortal"  // is stopped, restarted and killed
	heir    = "heir"    // steady's standby, promoted
	crowded = "crowded" // out of connections
	locked  = "locked"  // locks, databases that come, go and refuse
)

// One collector watches them all, and each trouble must stay where it is.
func TestACollectorRidesOutWhatBecomesOfItsServers(t *testing.T) {
	t.Parallel()
	for _, major := range testpg.Versions(released) {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			w := newWatch(t)
			start := func(settings ...string) *testpg.Server {
				return testpg.Start(t, major, append(logging(major), settings...)...)
			}
			r := &ride{watch: w, servers: map[string]*testpg.Server{
				steady: start(), mortal: start(), crowded: start("max_connections = 12"), locked: start(),
			}}
			for _, s := range r.servers {
				s.Furnish()
				w.prepare(s, "postgres", testpg.Shop, testpg.Books)
			}
			r.servers[heir] = r.servers[steady].Standby("heir")
			w.collect(r.servers, "here", r.faultyFamilies())
			for name := range r.servers {
				w.goesOn(name, "pg_instance")
				w.sees("tables of "+name, name, "pg_stat_user_tables", "count(distinct datname) = 2 from f")
			}
			t.Run("troubles", func(t *testing.T) {
				r.trouble(t, "a server that stops, restarts and is killed", (*ride).stopsRestartsAndIsKilled)
				r.trouble(t, "a standby that is promoted", (*ride).isPromoted)
				r.trouble(t, "no connection is free", (*ride).hasNoConnectionFree)
				r.trouble(t, "databases come, go and refuse, and everything is locked", (*ride).locksAndLosesDatabases)
			})
			r.slowAndFaultyFamiliesStoppedNothing()
			require.Contains(t, string(w.command("pganalytics", "stream", "status", "--data-dir", w.data(), "--output", "json")),
				`"dead_letters":0`)
		})
	}
}

// ride is a watch of servers in trouble.
type ride struct {
	*watch
	servers map[string]*testpg.Server
}

// trouble runs one of the troubles beside the others, and then looks whether the
// steady server was read all the time.
func (r *ride) trouble(t *testing.T, name string, f func(*ride)) {
	t.Run(name, func(t *testing.T) {
		t.Parallel()
		own, system := *r.watch, *r.watch.system
		system.t = t
		own.system = &system
		conn, err := pgx.Connect(t.Context(), r.db)
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		own.conn = conn
		servers := map[string]*testpg.Server{}
		for name, s := range r.servers {
			servers[name] = s.For(t)
		}
		mine := &ride{watch: &own, servers: servers}
		f(mine)
		mine.keepsReading(steady, "beside "+name)
	})
}

// keepsReading waits for what only now is there to be read from the server and
// from a database of it.
func (r *ride) keepsReading(server, when string) {
	r.t.Helper()
	r.goesOn(server, "pg_instance")
	table := fmt.Sprintf("mark_%d", now().UnixMicro())
	r.servers[server].Exec("postgres", "create table "+table+" (n int)")
	r.sees("reading of "+server+" goes on "+when, server, "pg_stat_user_tables", "exists (select from f where relname = $2)", table)
}

// isDown waits for the row that says so.
func (r *ride) isDown(server string, since time.Time) {
	r.t.Helper()
	r.sees(server+" is said to be down", server, "pg_instance", "exists (select from f where not is_up and time > $2)", since)
}

// isUpAgain waits for the server to be read anew, with its new start.
func (r *ride) isUpAgain(server string) {
	r.t.Helper()
	r.sees(server+" is read again", server, "pg_instance", "exists (select from f where is_up and time > $2 and postmaster_start_time = $3)",
		now(), testpg.Value[time.Time](r.servers[server], "postgres", "select pg_postmaster_start_time()"))
	r.keepsReading(server, "after that")
}

func (r *ride) stopsRestartsAndIsKilled() {
	s := r.servers[mortal]
	s.Stop()
	r.isDown(mortal, now())
	s.Start()
	r.isUpAgain(mortal)
	s.Restart()
	r.isUpAgain(mortal)
	s.Kill()
	r.isDown(mortal, now())
	s.Start()
	r.isUpAgain(mortal)
}

func (r *ride) isPromoted() {
	r.sees("a standby", heir, "pg_instance", "bool_and(in_recovery and timeline = 1) from f where is_up")
	r.servers[heir].Promote()
	r.sees("a primary on a new timeline", heir, "pg_instance",
		"exists (select from f where time > $2 and not in_recovery and timeline = 2)", now())
	r.servers[heir].Exec(testpg.Shop, "create table own (n int)", "insert into own values (1)")
	r.sees("what it does on its own", heir, "pg_stat_user_tables", "exists (select from f where relname = 'own')")
}

// hasNoConnectionFree takes even the connections that the collector had.
func (r *ride) hasNoConnectionFree() {
	s := r.servers[crowded]
	s.Exec("postgres", "create role crowd login")
	var leave []func()
	r.eventually("the crowd has all 9 that are not for superusers", func() bool {
		leave = append(leave, s.Crowd("crowd"))
		s.Exec("postgres", "select pg_terminate_backend(pid) from pg_stat_activity where usename = '"+watcher+"'")
		return testpg.Value[int](s, "postgres", "select count(*) from pg_stat_activity where usename = 'crowd'") == 9
	})
	r.isDown(crowded, now())
	for _, l := range leave {
		l()
	}
	r.isUpAgain(crowded)
}

func (r *ride) locksAndLosesDatabases() {
	s := r.servers[locked]
	s.Exec("postgres", "create database passing", "create database refusing")
	s.Exec("passing", "create table here (n int)")
	s.Exec("refusing", "create table closed (n int)")
	r.sees("a new database", locked, "pg_stat_user_tables", "exists (select from f where datname = 'passing')")
	r.sees("another", locked, "pg_stat_user_tables", "exists (select from f where datname = 'refusing')")
	s.Exec("postgres", "drop database passing") // fails if the collector stays in it
	s.Allow("local refusing all reject")
	r.keepsReading(locked, "after a database was dropped and another refuses")

	r.lock(s, testpg.Shop, "table accounts in access exclusive mode", "accounts")
	r.lock(s, testpg.Books, "table pg_catalog.pg_class, pg_catalog.pg_attribute in access exclusive mode", "pg_catalog.pg_class")
}

// lock takes a lock in a database as long as reading goes on elsewhere, lets
// another session wait for a lock of the same kind, and watches that the
// collector neither waits long nor makes the other one wait longer.
func (r *ride) lock(s *testpg.Server, database, what, awaited string) {
	r.t.Helper()
	observer, holder, other := s.Connect(database), s.Connect(database), s.Connect(database)
	waits := r.observe(observer, holder, other)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := holder.Exec(ctx, "begin; lock "+what)
	require.NoError(r.t, err)
	got := make(chan error, 1) // one result
	go func() {
		_, err := other.Exec(ctx, "begin; lock table "+awaited+" in access exclusive mode; rollback")
		got <- err
	}()
	r.keepsReading(locked, "while "+what+" is locked")
	r.goesOn(locked, "pg_stat_database")

	longest := waits()
	require.Less(r.t, longest, 2*time.Second, "the collector waits for %s", what)
	released := time.Now()
	_, err = holder.Exec(ctx, "rollback")
	require.NoError(r.t, err)
	require.NoError(r.t, <-got)
	require.Less(r.t, time.Since(released), 2*time.Second, "the other session waited for the collector")
	r.keepsReading(locked, "once "+what+" is free")
}

// observe watches, until the returned function is called, how long a session of
// the collector waits for a lock. One that is only beginning counts for nothing:
// it heeds no setting yet, and where the catalogs are locked it waits for as long
// as connecting may take, like anybody's.
func (r *ride) observe(observer, holder, other *pgx.Conn) (longest func() time.Duration) {
	const sql = `select coalesce(array_agg(distinct l.pid), '{}') from pg_locks l join pg_stat_get_activity(null) a on a.pid = l.pid
		where not l.granted and a.application_name = 'pganalytics-collector' and l.pid <> all ($1)`
	known := []int32{int32(holder.PgConn().PID()), int32(other.PgConn().PID())}
	waiting := func() (pids []int32, err error) {
		return pids, observer.QueryRow(context.Background(), sql, known).Scan(&pids)
	}
	_, err := waiting() // plans the query while nothing is locked
	require.NoError(r.t, err)
	stop, done := make(chan struct{}), make(chan time.Duration, 1)
	go func() {
		since, most := map[int32]time.Time{}, time.Duration(0)
		for {
			select {
			case <-stop:
				done <- most
				return
			case <-time.After(20 * time.Millisecond):
			}
			pids, err := waiting()
			if err != nil {
				done <- time.Hour
				return
			}
			still := map[int32]time.Time{}
			for _, pid := range pids {
				still[pid] = since[pid]
				if still[pid].IsZero() {
					still[pid] = time.Now()
				}
				most = max(most, time.Since(still[pid]))
			}
			since = still
		}
	}()
	return func() time.Duration { close(stop); return <-done }
}

// faultyFamilies are an operator's own: one takes longer than a statement may,
// one asks for what is not there.
func (r *ride) faultyFamilies() string {
	r.t.Helper()
	dir := r.t.TempDir()
	for name, sql := range map[string]string{
		"own_slow":   "select 'x'::text as datname, 1::bigint as v from pg_catalog.pg_sleep(60)",
		"own_faulty": "select 'x'::text as datname, v::bigint as v from pg_catalog.nothing_of_the_kind",
	} {
		for _, scope := range []string{"instance", "database"} {
			own := name + "_" + scope
			text := fmt.Sprintf(`name: %s
description: A number.
scope: %s
interval: 1s
retention: 30d
chunk: 1d
key: [datname]
columns:
  - {name: datname, type: text, help: A database.}
  - {name: v, type: bigint, kind: gauge, help: A number.}
queries:
  - {min_version: 13, sql: %q}
`, own, scope, sql)
			require.NoError(r.t, os.WriteFile(filepath.Join(dir, own+".yaml"), []byte(text), 0o600))
		}
	}
	return dir
}

// slowAndFaultyFamiliesStoppedNothing looks whether they did run and fail.
func (r *ride) slowAndFaultyFamiliesStoppedNothing() {
	r.t.Helper()
	log := r.collector.log.Tail(1 << 20)
	for _, failure := range []string{
		`"family":"own_slow_instance".*57014`, `"family":"own_slow_database".*57014`,
		`"family":"own_faulty_instance".*42P01`, `"family":"own_faulty_database".*42P01`,
	} {
		require.Regexp(r.t, failure, log)
	}
}
