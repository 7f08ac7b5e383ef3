package testpg_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pganalytics/pkg/internal/testpg"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAServerOfEachVersionIsBusyFollowedKilledAndStartedAgain(t *testing.T) {
	t.Parallel()
	for _, major := range testpg.Versions(13, 18) {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			s := testpg.Start(t, major, "max_connections = 20")
			require.Equal(t, major, testpg.Value[int](s, "postgres", "select current_setting('server_version_num')::int")/10000)
			s.Furnish()
			isBusy(t, s)
			isFollowed(t, s)
			isStartedAgain(t, s)
			isCrowded(t, s)
		})
	}
}

func isBusy(t *testing.T, s *testpg.Server) {
	load := s.Work()
	defer load.Stop()
	s.Deadlock()
	b := s.Block()
	require.NotEqual(t, b.Blocked, b.Blocking)
	s.Linger(testpg.Books)
	eventually(t, func() bool {
		return testpg.Value[bool](s, testpg.Shop, `
			select xact_commit > 50 and xact_rollback > 1 and deadlocks = 1 and temp_files > 0
			  from pg_stat_database where datname = current_database()`)
	})
	require.True(t, testpg.Value[bool](s, testpg.Shop, "select count(*) > 10 from pg_stat_statements"))
}

func isFollowed(t *testing.T, s *testpg.Server) {
	load := s.Work() // the files change under the copy
	standby := s.Standby("second")
	load.Stop()
	const count = "select count(*) from entries"
	n := testpg.Value[int](s, testpg.Shop, count)
	eventually(t, func() bool { return testpg.Value[int](standby, testpg.Shop, count) == n })
	require.True(t, testpg.Value[bool](standby, "postgres", "select pg_is_in_recovery()"))
	standby.Promote()
	require.False(t, testpg.Value[bool](standby, "postgres", "select pg_is_in_recovery()"))
}

func isStartedAgain(t *testing.T, s *testpg.Server) {
	s.Exec("postgres", "create table kept (n int)", "insert into kept values (7)")
	started := func() time.Time { return testpg.Value[time.Time](s, "postgres", "select pg_postmaster_start_time()") }
	first := started()
	s.Restart()
	second := started()
	require.True(t, second.After(first))
	s.Kill()
	s.Start()
	require.True(t, started().After(second))
	require.Equal(t, 7, testpg.Value[int](s, "postgres", "select n from kept"))
}

func isCrowded(t *testing.T, s *testpg.Server) {
	s.Exec("postgres", "create role someone login")
	leave := s.Crowd("someone")
	require.Positive(t, testpg.Value[int](s, "postgres", "select count(*) from pg_stat_activity where usename = 'someone'"))
	leave()
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		require.True(t, time.Now().Before(deadline), "still not so")
	}
}
