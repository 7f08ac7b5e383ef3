package verify

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"pganalytics/pkg/batch"
)

var start = time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC)

// sent is one number that a collector gave.
type sent struct {
	*batch.Batch
	class   Class
	arrived bool // else nobody has it: it was refused, is lost or was never sent
}

// lives are the numbers of a collector: a few epochs, each with what became of
// its numbers, a second apart.
func lives(t *rapid.T) []sent {
	var all []sent
	var last batch.Mark
	collector := uuid.UUID{1}
	for epoch := range rapid.IntRange(1, 3).Draw(t, "epochs") {
		id := uuid.UUID{6: 0x40, 8: 0x80, 15: byte(epoch)}
		if rapid.Bool().Draw(t, "the id tells its time") {
			binary.BigEndian.PutUint64(id[:], uint64(start.Add(time.Duration(len(all))*time.Second).UnixMilli())<<16)
			id[6] = 0x70
		}
		var refused []uint64
		previous := last
		for n := range uint64(rapid.IntRange(0, 8).Draw(t, "numbers")) {
			b := &batch.Batch{
				CollectorID: collector, ID: uuid.New(), SentAt: start.Add(time.Duration(len(all)) * time.Second),
				Epoch: id, Sequence: n + 1, Previous: previous,
			}
			previous, last = batch.Mark{}, batch.Mark{Epoch: id, Sequence: n + 1}
			s := sent{Batch: b, class: Class(rapid.IntRange(0, int(Lost)).Draw(t, "class"))}
			if s.arrived = s.class < Refused; s.arrived {
				b.Refused, refused = refused, nil
			}
			if s.class == Refused {
				refused = append(refused, b.Sequence)
			}
			all = append(all, s)
		}
	}
	return all
}

// Held against a model that looks at one number after the other, with all of
// them before it.
func TestGapsAreWhatTheNumbersSay(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		all := lives(t)
		req := Request{List: 1000}
		if rapid.Bool().Draw(t, "bounded") {
			req.From = start.Add(time.Duration(rapid.IntRange(0, 24).Draw(t, "from")) * time.Second)
			req.To = req.From.Add(time.Duration(rapid.IntRange(0, 24).Draw(t, "for")) * time.Second)
		}
		tally := newTally(req)
		for _, i := range rapid.Permutation(indexes(all)).Draw(t, "order") {
			if all[i].arrived {
				tally.add(all[i].Batch, all[i].class)
			}
		}
		var r Report
		tally.report(&r)
		got := map[batch.Mark]Class{}
		for _, g := range r.Gaps {
			for n := g.First; n <= g.Last; n++ {
				got[batch.Mark{Epoch: g.Epoch, Sequence: n}] = g.Class
			}
		}
		var counts Counts
		for mark, class := range model(all, req) {
			counts[class]++
			if class == Stored {
				require.NotContains(t, got, mark)
				continue
			}
			require.Contains(t, got, mark)
			require.Equal(t, class, got[mark], "%v", mark)
			delete(got, mark)
		}
		require.Empty(t, got)
		if counts == (Counts{}) {
			require.Empty(t, r.Collectors)
			return
		}
		require.Equal(t, counts, r.Collectors[0].Batches)
	})
}

func indexes(all []sent) []int {
	list := make([]int, len(all))
	for i := range all {
		list[i] = i
	}
	return list
}

func model(all []sent, req Request) map[batch.Mark]Class {
	seen := func(s sent) bool { // in the window
		return s.arrived && (req.From.IsZero() || !s.SentAt.Before(req.From) && !s.SentAt.After(req.To))
	}
	result := map[batch.Mark]Class{}
	for _, s := range all {
		above, below := false, req.From.IsZero() || s.Epoch.Version() == 7 && !began(s.Epoch).Before(req.From)
		known := s.class
		if s.class == Refused {
			known = Lost // unless a batch that arrived tells
		}
		for _, o := range all {
			if o.Epoch == s.Epoch && seen(o) {
				above = above || o.Sequence >= s.Sequence
				below = below || o.Sequence <= s.Sequence
			}
			above = above || seen(o) && o.Previous.Epoch == s.Epoch && o.Previous.Sequence >= s.Sequence
			for _, n := range o.Refused {
				if o.arrived && o.Epoch == s.Epoch && n == s.Sequence {
					known = Refused
				}
			}
		}
		if above && below {
			result[batch.Mark{Epoch: s.Epoch, Sequence: s.Sequence}] = known
		}
	}
	return result
}

func TestABatchWithoutNumberIsCountedOnce(t *testing.T) {
	t.Parallel()
	tally := newTally(Request{})
	b := &batch.Batch{CollectorID: uuid.UUID{1}, SentAt: start}
	tally.add(b, Replayable)
	tally.closed = true
	tally.add(b, Stored)
	var r Report
	tally.report(&r)
	require.Equal(t, []Collector{{ID: b.CollectorID, Batches: Counts{Replayable: 1}, Unnumbered: 1, Newest: Number{SentAt: start}}}, r.Collectors)
	require.False(t, r.Clean())
}
