package chaos

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// outage is how long a fault lasts: longer than AckWait, so that nothing is
// saved by the redelivery coming late.
const outage = 3 * ackWait

// last waits until the fault has lasted long enough. Nothing signals it.
func last(d time.Duration) { <-time.After(d) }

const sessions = `from pg_stat_activity where datname = current_database() and application_name = 'pganalytics-store'`

func TestADatabaseServerStoppedAndKilledLosesNothing(t *testing.T) {
	t.Parallel()
	slow(t)
	s, cluster := ownCluster(t)
	f := s.collect(fleetConfig{})
	s.ingest(ingesterConfig{})
	s.ingest(ingesterConfig{})
	for _, end := range []func(){cluster.Stop, cluster.Kill, cluster.Kill, cluster.Kill} {
		s.flowing(100)
		end()
		last(outage)
		cluster.Start()
	}
	s.flowing(100)
	f.stop()
	s.verify()
}

func TestTerminatedSessionsLoseNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t, siteConfig{})
	f := s.collect(fleetConfig{})
	s.ingest(ingesterConfig{})
	s.ingest(ingesterConfig{})
	s.flowing(50)
	conn := s.connect()
	ended := 0
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); last(20 * time.Millisecond) {
		var n int
		require.NoError(t, conn.QueryRow(t.Context(), "select count(*) filter (where pg_terminate_backend(pid)) "+sessions+" and state <> 'idle'").Scan(&n))
		ended += n
	}
	require.Greater(t, ended, 10, "too few sessions were at work to mean anything")
	f.stop()
	s.verify()
}

func TestADatabaseWithoutFreeConnectionsLosesNothing(t *testing.T) {
	t.Parallel()
	slow(t)
	s, cluster := ownCluster(t)
	conn := s.connect()
	sql(t, conn, "alter system set max_connections = 20", "alter system set max_worker_processes = 8")
	cluster.Stop()
	cluster.Start()
	f := s.collect(fleetConfig{})
	s.ingest(ingesterConfig{})
	s.flowing(100)

	conn = s.connect()
	count := func(query string) (n int) {
		require.NoError(t, conn.QueryRow(t.Context(), "select count(*) "+query).Scan(&n))
		return n
	}
	var taken []*pgx.Conn
	for count(sessions) > 0 {
		sql(t, conn, "select pg_terminate_backend(pid) "+sessions)
		taken = append(taken, takeConnections(t, s.db)...)
	}
	before := count("from ingest.batch")
	last(outage)
	require.Equal(t, before, count("from ingest.batch"), "something is still stored")
	for _, c := range taken {
		require.NoError(t, c.Close(context.Background()))
	}
	s.flowing(100)
	f.stop()
	s.verify()
}

// takeConnections takes all that are free.
func takeConnections(t *testing.T, db string) (taken []*pgx.Conn) {
	t.Helper()
	for {
		conn, err := pgx.Connect(t.Context(), db)
		if err != nil {
			require.ErrorContains(t, err, "53300")
			return taken
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		taken = append(taken, conn)
	}
}

func TestADatabaseThatTurnsReadOnlyLosesNothing(t *testing.T) {
	t.Parallel()
	slow(t)
	s, _ := ownCluster(t)
	f := s.collect(fleetConfig{})
	s.ingest(ingesterConfig{})
	conn := s.connect()
	for range 2 {
		s.flowing(100)
		sql(t, conn, "alter system set default_transaction_read_only = on", "select pg_reload_conf()")
		s.standsStill()
		last(outage)
		sql(t, conn, "alter system reset default_transaction_read_only", "select pg_reload_conf()")
	}
	s.flowing(100)
	f.stop()
	s.verify()
}

// standsStill waits until nothing more is stored.
func (s *site) standsStill() {
	s.t.Helper()
	before := -1
	require.Eventually(s.t, func() bool {
		now := s.batches()
		still := now == before
		before = now
		return still
	}, time.Minute, time.Second, "batches are still stored")
}

func TestALockedTableLosesNothing(t *testing.T) {
	t.Parallel()
	slow(t)
	s := newSite(t, siteConfig{})
	f := s.collect(fleetConfig{})
	s.ingest(ingesterConfig{flags: []string{"--database-lock-timeout", "300ms"}})
	s.ingest(ingesterConfig{flags: []string{"--database-lock-timeout", "300ms"}})
	conn := s.connect()
	for _, table := range []string{"metrics.chaos_right", "ingest.batch"} {
		s.flowing(100)
		before := s.batches()
		sql(t, conn, "begin", "lock table "+table+" in access exclusive mode")
		last(2 * outage) // longer than all immediate retries of a load
		sql(t, conn, "commit")
		require.Less(t, s.batches(), before+int(f.taken.Load()), "the lock held nothing up")
	}
	s.flowing(100)
	f.stop()
	s.verify()
}

func TestLoadsThatRunIntoTheStatementTimeoutAreStoredInParts(t *testing.T) {
	t.Parallel()
	slow(t)
	s := newSite(t, siteConfig{})
	conn := s.connect()
	sql(t, conn, `create function metrics.dawdle() returns trigger language plpgsql as $$ begin perform pg_sleep(.004); return new; end $$`,
		`create trigger dawdle before insert on metrics.chaos_right for each row execute function metrics.dawdle()`)
	f := s.collect(fleetConfig{collectors: 20, rows: 10, pace: time.Second})
	s.eventually("loads that are too slow", func() bool { return f.taken.Load() > 100 })
	f.stop()
	in := s.ingest(ingesterConfig{flags: []string{"--database-statement-timeout", "500ms"}})
	s.settled()
	splits := in.value("pganalytics_ingester_splits_total")
	s.verify()
	require.Positive(t, splits, "no load was too slow")
}

func TestLateRowsAgainstTheirRetentionAreStoredOrExpireAndNothingElse(t *testing.T) {
	t.Parallel()
	slow(t)
	s := newSite(t, siteConfig{})
	f := s.collect(fleetConfig{change: func(_ int, r *row) {
		if r.n%4 == 3 { // its chunk is dropped as soon as it is made
			r.at = r.at.Add(-retention - 48*time.Hour)
		}
	}})
	var pair [2]*process
	for i := range pair {
		pair[i] = s.ingest(ingesterConfig{flags: []string{"--maintain-every", "50ms"}})
	}
	last(10 * time.Second)
	f.stop()
	v := s.verify()
	logs := pair[0].log.String() + pair[1].log.String()
	drops, met := strings.Count(logs, "dropped what outlived its retention"), strings.Count(logs, `"msg":"load"`)
	t.Logf("%d rounds dropped chunks, %d loads met one", drops, met)
	require.Greater(t, drops, 10, "too few drops to mean anything")
	require.Positive(t, v.expired)
}
