package collector

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/collector/spool"
)

// fill appends batches of a hundredth of the spool until it is so full.
func fill(t *testing.T, sp *spool.Spool, used float64) {
	t.Helper()
	for st := sp.Stats(); float64(st.UnsentBytes) <= used*float64(st.MaxBytes); st = sp.Stats() {
		_, err := sp.Append(func(spool.Stamp) ([]byte, error) { return make([]byte, st.MaxBytes/100), nil })
		require.NoError(t, err)
	}
}

// empty settles the oldest batches until it is that full.
func empty(t *testing.T, sp *spool.Spool, used float64) {
	t.Helper()
	for st := sp.Stats(); float64(st.UnsentBytes) > used*float64(st.MaxBytes); st = sp.Stats() {
		rec, ok, err := sp.Oldest()
		require.NoError(t, err)
		require.True(t, ok)
		require.NoError(t, sp.Accepted(rec, spool.Answer{}))
	}
}

func TestWhatMattersLessIsNotReadWhileTheSpoolFills(t *testing.T) {
	t.Parallel()
	g, sp, logged := newTestGatherer(t, 200_000)
	p := newPressure(sp.Stats, g.log, g.metrics)
	lines := func() int { return strings.Count(logged.String(), "read_up_to") }
	require.Equal(t, catalogue.Exhaustive, p.upTo())
	fill(t, sp, 0.65)
	require.Equal(t, catalogue.Exhaustive, p.upTo())
	require.Zero(t, lines())

	fill(t, sp, 0.70)
	require.Equal(t, catalogue.Standard, p.upTo())
	fill(t, sp, 0.80)
	require.Equal(t, catalogue.Standard, p.upTo())
	require.Equal(t, 1, lines(), "only a change is logged")
	require.Contains(t, logged.String(), "level=ERROR")
	fill(t, sp, 0.85)
	require.Equal(t, catalogue.Minimal, p.upTo())
	require.InDelta(t, 2, testutil.ToFloat64(g.metrics.heldBack), 0)

	empty(t, sp, 0.84)
	require.Equal(t, catalogue.Minimal, p.upTo(), "one batch less changes nothing")
	empty(t, sp, 0.79)
	require.Equal(t, catalogue.Standard, p.upTo())
	empty(t, sp, 0.10)
	require.Equal(t, catalogue.Exhaustive, p.upTo())
	require.InDelta(t, 0, testutil.ToFloat64(g.metrics.heldBack), 0)
	require.Equal(t, 4, lines())
}
