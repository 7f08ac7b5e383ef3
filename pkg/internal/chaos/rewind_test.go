package chaos

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/internal/testdb"
)

// held reports whether something is held on the stream.
func (s *site) held() bool {
	s.t.Helper()
	holds, err := s.bus.Holds().List(context.Background())
	require.NoError(s.t, err)
	return len(holds) > 0
}

// filled waits until what the database lost is stored again, which is when
// the hold ends.
func (s *site) filled() {
	s.t.Helper()
	s.eventually("what was lost is stored again", func() bool { return !s.held() })
}

// backup returns the server's files as they are now.
func backup(cluster *testdb.Cluster) testdb.Copy {
	cluster.Stop()
	defer cluster.Start()
	return cluster.Copy()
}

// goBack puts an older copy in the server's place. It lacks what was stored
// since, which had been acknowledged.
func (s *site) goBack(cluster *testdb.Cluster, old testdb.Copy) {
	s.t.Helper()
	before, now := s.batches(), time.Now()
	cluster.Kill()
	cluster.Restore(old)
	cluster.Start()
	require.Less(s.t, s.number("select count(*) from ingest.batch where stored_at < $1", now), before-200, "nothing was lost, so nothing is proved")
}

// An older copy of the server takes over, as a standby would that had fallen
// behind: whatever was committed since is gone, and had been acknowledged.
func TestAStaleStandbyThatTakesOverIsNoticedAndFilledByItself(t *testing.T) {
	t.Parallel()
	slow(t)
	s, cluster := ownCluster(t)
	f := s.collect(fleetConfig{})
	pair := [2]*process{s.ingest(ingesterConfig{}), s.ingest(ingesterConfig{})}
	s.flowing(100)
	standby := backup(cluster)
	for range 2 { // it takes over, and then once more
		s.flowing(300)
		s.goBack(cluster, standby)
		s.eventually("somebody notices", s.held)
		s.flowing(100) // the new ones go on
		s.filled()
	}
	f.stop()
	s.settled()
	s.filled()
	s.verify(0)
	require.Contains(t, pair[0].log.text()+pair[1].log.text(), "database is behind the stream")
}

// Nobody who remembers is left when the older copy takes over.
func TestAnOldBackupUnderNewIngestersIsNoticedAndFilledByItself(t *testing.T) {
	t.Parallel()
	slow(t)
	s, cluster := ownCluster(t)
	f := s.collect(fleetConfig{})
	first := s.ingest(ingesterConfig{})
	s.flowing(100)
	old := backup(cluster)
	s.flowing(300)
	first.kill()
	s.goBack(cluster, old)
	lacks := s.batches()
	second := s.ingest(ingesterConfig{})
	s.eventually("new ones go on", func() bool { return s.batches() > lacks })
	require.Contains(t, second.log.text(), "database is behind the stream")
	f.stop()
	s.settled()
	s.filled()
	s.verify(0)
}

// The gap is larger than may be filled without asking: it waits, and nothing
// of it leaves the stream.
func TestAGapThatIsTooLargeIsHeldUntilSomebodyAllowsIt(t *testing.T) {
	t.Parallel()
	slow(t)
	s, cluster := ownCluster(t)
	f := s.collect(fleetConfig{})
	// A trimmer that would take everything that is acknowledged at once.
	greedy := []string{"--replay-window", "1ms", "--trim-interval", "100ms"}
	careful := s.ingest(ingesterConfig{flags: append([]string{"--auto-rewind", "0s"}, greedy[2:]...)})
	s.flowing(100)
	old := backup(cluster)
	s.flowing(300)
	s.goBack(cluster, old)
	s.eventually("somebody notices", s.held)
	careful.stop()
	careful = s.ingest(ingesterConfig{flags: append([]string{"--auto-rewind", "0s"}, greedy...)})
	s.flowing(300)
	f.stop()
	s.settled()
	require.True(t, s.held())
	careful.stop()
	s.ingest(ingesterConfig{flags: greedy})
	s.filled()
	s.verify(0)
}
