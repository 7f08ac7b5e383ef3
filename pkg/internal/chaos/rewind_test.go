package chaos

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/bus"
	"pganalytics/pkg/internal/testdb"
)

// held reports whether something is held on the stream.
func (s *site) held() bool {
	s.t.Helper()
	holds, err := s.bus.Holds().List(context.Background())
	require.NoError(s.t, err)
	return len(holds) > 0
}

// replaying tells whether a replay has begun and not ended.
func (s *site) replaying() bool {
	s.t.Helper()
	holds, err := s.bus.Holds().List(context.Background())
	require.NoError(s.t, err)
	return slices.ContainsFunc(holds, func(h bus.Hold) bool { return strings.HasPrefix(h.Name, "replay-") })
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
		pair[0].kill() // perhaps the one that was filling the gap
		pair[0] = s.ingest(ingesterConfig{})
		s.filled()
	}
	f.stop()
	s.settled()
	s.filled()
	s.verify()
	require.Contains(t, pair[1].log.String(), "database lacks what was committed")
}

// Nobody who remembers is left when the older copy takes over.
func TestAnOldBackupUnderNewIngestersIsNoticedAndFilledByItself(t *testing.T) {
	t.Parallel()
	slow(t)
	s, cluster := ownCluster(t)
	f := s.collect(fleetConfig{change: func(collector int, r *row) { // letters are not lost, and not buried again
		r.shortN = collector == 0 && r.n == 7
	}})
	first := s.ingest(ingesterConfig{})
	s.flowing(100)
	old := backup(cluster)
	s.flowing(300)
	first.kill()
	s.goBack(cluster, old)
	lacks := s.batches()
	second := s.ingest(ingesterConfig{})
	s.eventually("new ones go on", func() bool { return s.batches() > lacks })
	require.Contains(t, second.log.String(), "database is behind the stream")
	f.stop()
	s.settled()
	s.filled()
	require.Positive(t, s.verify().letters)
}

// One batch that waits keeps the stream from counting as acknowledged, while
// all that came later is.
func TestAnOldBackupIsNoticedWhileABatchWaits(t *testing.T) {
	t.Parallel()
	slow(t)
	s, cluster := ownCluster(t)
	b, rows := newBatch(uuid.New(), 20, nil)
	b.Sections[0].Family = "chaos_of_tomorrow"
	b.Seal()
	_, err := s.bus.Publisher().Publish(t.Context(), b)
	require.NoError(t, err)
	waits := acceptedOf(b, rows)
	waits.Faulty = true // it is a letter in the end
	require.NoError(t, s.journal.note(waits))

	f := s.collect(fleetConfig{})
	first := s.ingest(ingesterConfig{})
	s.flowing(100)
	old := backup(cluster)
	s.flowing(300)
	first.kill()
	s.goBack(cluster, old)
	s.ingest(ingesterConfig{flags: []string{"--unknown-for", "1s"}})
	f.stop()
	s.settled()
	s.filled()
	require.Equal(t, 1, s.verify().letters)
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
	s.verify()
}
