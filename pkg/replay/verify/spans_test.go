package verify

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// Held against a map of single numbers: whatever comes in whatever order, each
// number gets its best class, and the parts are the longest there are.
func TestEveryNumberHasItsClass(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var n numbering
		model := map[uint64][]Class{}
		times := map[uint64]time.Time{}
		for range rapid.IntRange(0, 60).Draw(t, "adds") {
			class := Class(rapid.IntRange(0, int(Lost)-1).Draw(t, "class"))
			at := rapid.Uint64Range(1, 40).Draw(t, "number")
			sent := time.Unix(int64(at), 0)
			n[class].add(at, sent)
			model[at] = append(model[at], class)
			times[at] = sent
		}
		first := rapid.Uint64Range(1, 42).Draw(t, "first")
		last := rapid.Uint64Range(0, 42).Draw(t, "last")
		want := func(at uint64) Class {
			if len(model[at]) == 0 {
				return Lost
			}
			return slices.Min(model[at])
		}
		next := first
		before := classes
		n.each(first, last, func(class Class, s span) {
			require.Equal(t, next, s.first, "parts follow one another")
			require.LessOrEqual(t, s.first, s.last)
			require.NotEqual(t, before, class, "parts are as long as can be")
			for at := s.first; at <= s.last; at++ {
				require.Equal(t, want(at), class, "number %d", at)
			}
			for at, told := range map[uint64]time.Time{s.first: s.begin, s.last: s.end} {
				require.True(t, told.IsZero() || told.Equal(times[at]), "time of %d", at)
			}
			next, before = s.last+1, class
		})
		require.Equal(t, max(first, last+1), next, "all numbers are told of")
		for _, set := range n {
			for i := 1; i < len(set); i++ {
				require.Greater(t, set[i].first, set[i-1].last+1, "as few spans as can be")
			}
		}
	})
}

func TestTheLargestNumberIsCounted(t *testing.T) {
	t.Parallel()
	var n numbering
	const largest = ^uint64(0)
	n[Stored].add(largest, time.Time{})
	n[Stored].add(1, time.Time{})
	n[Stored].add(largest-1, time.Time{})
	var got []span
	n.each(1, largest, func(_ Class, s span) { got = append(got, s) })
	require.Equal(t, []span{{first: 1, last: 1}, {first: 2, last: largest - 2}, {first: largest - 1, last: largest}}, got)
}
