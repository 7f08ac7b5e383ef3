package spool

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
)

// hurt is a spool of some batches, some of them settled, whose disk then does
// something to one of its files.
type hurt struct {
	cfg    Config
	bodies map[uuid.UUID]string // of all that was confirmed
	marks  map[uuid.UUID]batch.Mark
	unsent []uuid.UUID
}

func newHurt(t *testing.T, random *rand.Rand) *hurt {
	t.Helper()
	h := &hurt{cfg: Config{Dir: t.TempDir(), SegmentBytes: 400}, bodies: map[uuid.UUID]string{}, marks: map[uuid.UUID]batch.Mark{}}
	s := open(t, h.cfg)
	for i := range 2 + random.IntN(14) {
		body := fmt.Sprintf("body %d %x", i, make([]byte, random.IntN(60)))
		stamp := put(t, s, body)
		h.bodies[stamp.BatchID], h.marks[stamp.BatchID] = body, stamp.Mark
		h.unsent = append(h.unsent, stamp.BatchID)
	}
	for range random.IntN(len(h.unsent) + 1) {
		if random.IntN(5) == 0 {
			require.NoError(t, s.Refused(oldest(t, s), Refusal{Status: 400}))
		} else {
			accept(t, s)
		}
		h.unsent = h.unsent[1:]
	}
	require.NoError(t, s.Close())
	return h
}

// damage flips a bit, cuts a file, or writes zeros over some of it. It returns
// the file's name, and false if the last record of all is gone with its number:
// that looks like an append that was never confirmed, and nothing tells them
// apart.
func (h *hurt) damage(t *testing.T, random *rand.Rand) (file string, traced bool) {
	t.Helper()
	segments, err := filepath.Glob(filepath.Join(h.cfg.Dir, "*"+segmentSuffix))
	require.NoError(t, err)
	file = append(segments, filepath.Join(h.cfg.Dir, journalName))[random.IntN(len(segments)+1)]
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	before, _ := scan(data)
	at := random.IntN(len(data))
	switch random.IntN(3) {
	case 0:
		data[at] ^= 1 << random.IntN(8)
	case 1:
		data = data[:at]
	case 2:
		clear(data[at:min(len(data), at+1+random.IntN(100))])
	}
	require.NoError(t, os.WriteFile(file, data, 0o600))
	if file != segments[len(segments)-1] {
		return filepath.Base(file), true
	}
	after, d := scan(data)
	last := before[len(before)-1].Mark
	return filepath.Base(file), d.lost == last || len(after) > 0 && after[len(after)-1].Mark == last
}

// Whatever one file suffers: opening succeeds, what is read is what was
// confirmed, no number is given again, and what is missing leaves a gap.
func TestDamageShowsAndHarmsNothingElse(t *testing.T) {
	t.Parallel()
	rounds := 150
	if testing.Short() {
		rounds = 40
	}
	for i := range rounds {
		random := rand.New(rand.NewPCG(1, uint64(i)))
		h := newHurt(t, random)
		file, traced := h.damage(t, random)
		if !traced {
			continue
		}
		what := fmt.Sprintf("round %d, damaged %s", i, file)
		s := open(t, h.cfg)
		after := put(t, s, "after")
		seen := map[uuid.UUID]bool{}
		for s.Stats().Unsent > 0 {
			r, ok, err := s.Oldest()
			require.NoError(t, err, what)
			if !ok {
				break
			}
			require.NoError(t, s.Accepted(r, Answer{}))
			if r.BatchID == after.BatchID {
				continue
			}
			require.Contains(t, h.bodies, r.BatchID, what)
			require.Equal(t, h.bodies[r.BatchID], string(r.Body), what)
			require.Equal(t, h.marks[r.BatchID], r.Mark, what)
			seen[r.BatchID] = true
		}
		for _, id := range h.unsent {
			m := h.marks[id]
			require.NotEqual(t, m, after.Mark, what)
			visible := after.Previous.Epoch == m.Epoch && after.Previous.Sequence >= m.Sequence ||
				after.Epoch == m.Epoch && after.Sequence > m.Sequence
			require.True(t, visible, "%s: what is missing up to %d would not show", what, m.Sequence)
			if file == journalName {
				require.True(t, seen[id], "%s: batch %d", what, m.Sequence)
			}
		}
		require.NoError(t, s.Close())
		s = open(t, h.cfg)
		require.False(t, slices.Contains(values(h.marks), put(t, s, "again").Mark), what)
		require.NoError(t, s.Close())
	}
}

func values(m map[uuid.UUID]batch.Mark) []batch.Mark {
	var all []batch.Mark
	for _, v := range m {
		all = append(all, v)
	}
	return all
}
