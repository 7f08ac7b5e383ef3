package replay

import (
	"context"
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/ingester"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// looks returns one look after the other at the live batches.
func looks(l ...[2]uint64) func(context.Context) (uint64, uint64, error) {
	return func(context.Context) (uint64, uint64, error) {
		now := l[0]
		if len(l) > 1 {
			l = l[1:]
		}
		return now[0], now[1], nil
	}
}

func TestAReplayHoldsBackWhileMoreLiveBatchesWait(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		looks  [][2]uint64 // ended, waiting
		paused time.Duration
	}{
		"few wait":            {[][2]uint64{{10, 50}}, 0},
		"fewer and fewer":     {[][2]uint64{{10, 900}}, 0},
		"more, then fewer":    {[][2]uint64{{10, 2000}, {20, 3000}, {30, 2500}}, 2 * lookEvery},
		"nobody stores them":  {[][2]uint64{{10, 2000}, {10, 3000}}, lookEvery},
		"always more":         {rising(200), liveMost + lookEvery},
		"nobody ever did any": {[][2]uint64{{5, 2000}}, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			d := &deference{live: looks(c.looks...), every: lookEvery, ended: 5, waiting: 1000}
			begin := time.Now()
			require.NoError(t, d.wait(t.Context(), &tally{}), name)
			require.Equal(t, c.paused, time.Since(begin), name)
		})
	}
}

func rising(n int) [][2]uint64 {
	all := make([][2]uint64, n)
	for i := range all {
		all[i] = [2]uint64{uint64(10 + i), uint64(2000 + i)}
	}
	return all
}

func TestAPaceIsKeptWhateverTheSizeOfBatches(t *testing.T) {
	t.Parallel()
	for _, rows := range []int{1, 10, 999, 5000} {
		synctest.Test(t, func(t *testing.T) {
			p, begin, stored := &pace{rate: 1000}, time.Now(), 0
			for stored < 20_000 {
				require.NoError(t, p.wait(t.Context()))
				took := 0
				for p.allows(took) {
					took += rows
				}
				require.LessOrEqual(t, took, 500+rows)
				p.took(took)
				stored += took
			}
			require.NoError(t, p.wait(t.Context()))
			require.InDelta(t, float64(stored), 1000*time.Since(begin).Seconds(), 1)
		})
	}
}

func TestWithoutAPaceNothingWaits(t *testing.T) {
	t.Parallel()
	p := &pace{}
	require.True(t, p.allows(1<<40))
	p.took(1 << 40)
	require.NoError(t, p.wait(t.Context()))
}

func TestASelectionWantsBothWhereBothAreGiven(t *testing.T) {
	t.Parallel()
	mine := uuid.UUID{1}
	b := &batch.Batch{CollectorID: mine, Sections: []batch.Section{{Family: "a"}, {Family: "b"}}}
	for _, c := range []struct {
		s    Selection
		want bool
	}{
		{Selection{}, true},
		{Selection{Collectors: []uuid.UUID{{2}, mine}}, true},
		{Selection{Collectors: []uuid.UUID{{2}}}, false},
		{Selection{Families: []string{"c", "b"}}, true},
		{Selection{Families: []string{"c"}}, false},
		{Selection{Collectors: []uuid.UUID{mine}, Families: []string{"c"}}, false},
		{Selection{Collectors: []uuid.UUID{{2}}, Families: []string{"a"}}, false},
	} {
		require.Equal(t, c.want, c.s.takes(b), "%+v", c.s)
	}
}

func TestOnlyAJobThatCoversTheGapFillsIt(t *testing.T) {
	t.Parallel()
	const stream, streamFirst = "s", 5
	gap := Gap{Gap: ingester.Gap{Incarnation: stream, From: 3, To: 20}}
	for name, c := range map[string]struct {
		job  Job
		want bool
	}{
		"exactly":                 {Job{First: 3, Last: 20}, true},
		"from the stream's first": {Job{First: 5, Last: 20}, true},
		"from later":              {Job{First: 6, Last: 20}, false},
		"too short":               {Job{First: 3, Last: 19}, false},
		"one collector":           {Job{First: 3, Last: 20, Selection: Selection{Collectors: []uuid.UUID{{1}}}}, false},
		"one family":              {Job{First: 3, Last: 20, Selection: Selection{Families: []string{"a"}}}, false},
	} {
		c.job.Incarnation = stream
		c.job.Fills(gap, streamFirst)
		require.Equal(t, c.want, c.job.Gap != nil, name)
	}
	other := Job{Incarnation: "t", First: 1, Last: 99}
	other.Fills(gap, streamFirst)
	require.Nil(t, other.Gap)
}

func TestThePositionNeverPassesWhatIsNotDone(t *testing.T) {
	t.Parallel()
	s := newSource(&scan{at: 10}, nil, nil, &tally{}, 1, func(error) {})
	at := func(sequence uint64, st state) seen {
		return seen{batch.Delivery{Position: batch.Position{Sequence: sequence}}, &batch.Batch{}, st}
	}
	position := func() [2]uint64 {
		next, left := s.position()
		return [2]uint64{next, uint64(left)}
	}
	require.Equal(t, [2]uint64{10, 0}, position())
	s.scan.at = 16
	s.sort([]seen{at(10, stored), at(11, missing), at(12, missing), at(13, unselected), at(14, missing), at(15, unreadable)})
	require.Equal(t, [2]uint64{11, 0}, position())
	next := func() batch.Delivery {
		x := s.queue[0]
		s.queue = s.queue[1:]
		return s.hand(x)
	}
	a, b := next(), next()
	require.Equal(t, [2]uint64{11, 2}, position())
	require.NoError(t, b.Ack(t.Context()))
	require.Equal(t, [2]uint64{11, 1}, position(), "the one before it is not done")
	require.NoError(t, a.Ack(t.Context()))
	require.Equal(t, [2]uint64{14, 0}, position())
	c := next()
	require.NoError(t, c.Ack(t.Context()))
	require.Equal(t, [2]uint64{16, 0}, position())
	s.scan.at = 18
	s.sort([]seen{at(16, unknown), at(17, stored)})
	require.Equal(t, [2]uint64{16, 1}, position(), "a newer command may store it")
}

func FuzzParseJob(f *testing.F) {
	f.Fuzz(func(t *testing.T, text []byte) {
		j, err := ParseJob(text)
		if err != nil {
			return
		}
		require.LessOrEqual(t, j.First, j.Next)
		require.LessOrEqual(t, j.Next-1, j.Last)
		again, err := json.Marshal(j)
		require.NoError(t, err)
		k, err := ParseJob(again)
		require.NoError(t, err)
		once, err := json.Marshal(k)
		require.NoError(t, err)
		require.Equal(t, string(again), string(once))
	})
}
