package ingester

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"pganalytics/pkg/batch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestASuspectIsGivenUpOnlyAfterTimeAndTriesWhileOthersCommit(t *testing.T) {
	t.Parallel()
	s := newSuspects()
	now := time.Now()
	s.now = func() time.Time { return now }
	fail := func() bool { return s.failed(place{"a", 7}, 15*time.Minute, 3, true) }

	require.False(t, fail(), "the first failure")
	require.True(t, s.alone(at("a", 7)))
	require.False(t, s.alone(at("b", 7)), "a message of another stream")
	now = now.Add(time.Hour)
	require.False(t, fail(), "long enough, not often enough")
	require.False(t, fail(), "long and often enough, but nobody else commits either")
	s.committed()
	require.True(t, fail())
	s.forget(place{"a", 7})
	require.False(t, s.alone(at("a", 7)))
	require.False(t, fail(), "a suspect that was forgotten begins anew")
	s.committed()
	require.False(t, fail())
	require.False(t, fail(), "often enough, not long enough")
}

// at is a message at that place on a stream.
func at(incarnation string, sequence uint64) *message {
	m := &message{batch: &batch.Batch{}}
	m.Incarnation, m.Sequence = incarnation, sequence
	return m
}

func TestACollectorIsBlamedForAWhileAndNobodyElse(t *testing.T) {
	t.Parallel()
	s := newSuspects()
	now := time.Now()
	s.now = func() time.Time { return now }
	bad, good := at("a", 1), at("a", 2)
	bad.batch.CollectorID, good.batch.CollectorID = uuid.UUID{1}, uuid.UUID{2}
	s.blame(bad.batch.CollectorID)
	require.True(t, s.alone(bad))
	require.False(t, s.alone(good))
	now = now.Add(blameFor + 1)
	require.False(t, s.alone(bad))
	require.Empty(t, s.blamed)
}

func TestCutLosesNoMessageAndKeepsItsLimits(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		known := newSuspects()
		var messages []*message
		for seq := range rapid.IntRange(0, 50).Draw(t, "messages") {
			section := batch.Section{Rows: rapid.IntRange(0, 60).Draw(t, "rows"), Tuples: make([]byte, rapid.IntRange(0, 600).Draw(t, "bytes"))}
			m := &message{batch: &batch.Batch{CollectorID: uuid.UUID{byte(seq % 5)}, Sections: []batch.Section{section}}}
			m.Sequence = uint64(seq)
			messages = append(messages, m)
			if rapid.IntRange(0, 9).Draw(t, "suspect") == 0 {
				known.failed(m.place(), time.Hour, 10, false)
			}
		}
		if rapid.Bool().Draw(t, "a collector is to blame") {
			known.blame(uuid.UUID{3})
		}
		seen, suspects := map[uint64]bool{}, false
		last := int64(-1)
		for _, load := range cut(messages, known, 100, 1000) {
			rows, bytes := 0, 0
			for _, m := range load {
				require.False(t, seen[m.Sequence], "in two loads")
				seen[m.Sequence] = true
				rows, bytes = rows+m.batch.Rows(), bytes+m.batch.TupleBytes()
				if known.alone(m) {
					require.Len(t, load, 1, "a suspect goes alone")
					suspects = true
					continue
				}
				require.False(t, suspects, "a suspect before its neighbours")
				require.Greater(t, int64(m.Sequence), last, "out of the stream's order")
				last = int64(m.Sequence)
			}
			if len(load) > 1 {
				require.LessOrEqual(t, rows, 100)
				require.LessOrEqual(t, bytes, 1000)
			}
		}
		require.Len(t, seen, len(messages))
	})
}

func TestAFetchAsksForAboutTwoLoads(t *testing.T) {
	t.Parallel()
	for rows, want := range map[int]int{1: 2000, 10: 2000, 100: 400, 1000: 40, 20_000: 8, 500_000: 8} {
		a := newAppetite(2000, 20_000)
		require.Equal(t, 8, a.messages(), "before the first fetch")
		a.learn(rows*5, 5)
		require.Equal(t, want, a.messages(), "%d rows a message", rows)
	}
	a := newAppetite(2000, 20_000)
	a.learn(10_000, 10)
	for range 30 {
		a.learn(10, 10)
	}
	require.Equal(t, 2000, a.messages(), "it learns anew")
	a.learn(0, 10)
	require.Equal(t, 2000, a.messages(), "also from batches without rows")
	require.Equal(t, 3, newAppetite(3, 20_000).messages(), "never more than it may")
}

func TestEveryFaultOfAConfigurationIsNamedAtOnce(t *testing.T) {
	t.Parallel()
	err := (&Config{Loaders: -1}).Validate()
	for _, flag := range []string{"loaders: -1", "fetch-messages", "fetch-bytes", "fetch-wait", "load-rows", "load-bytes",
		"extend-every", "load-timeout", "unknown-for", "unresolved-for", "unresolved-try"} {
		require.ErrorContains(t, err, flag)
	}
}

func TestBackoffGrowsAndIsBounded(t *testing.T) {
	t.Parallel()
	b := newBackoff()
	b.next = time.Microsecond
	for range 5 {
		require.True(t, b.sleep(t.Context()))
	}
	require.Equal(t, 32*time.Microsecond, b.next)
	b.next = backoffMost
	ended, cancel := contextThatEnded(t)
	defer cancel()
	require.False(t, b.sleep(ended), "it ends with its context")
	require.Equal(t, backoffMost, b.next)
	b.reset()
	require.Equal(t, backoffFirst, b.next)
}

func contextThatEnded(t *testing.T) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx, cancel
}
