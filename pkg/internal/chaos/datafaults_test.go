package chaos

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

func TestAMalformedFieldIsOneLetterAndItsNeighboursAreStored(t *testing.T) {
	t.Parallel()
	s := newSite(t, siteConfig{})
	f := s.collect(fleetConfig{})
	s.eventually("neighbours", func() bool { return f.taken.Load() > 200 })
	b, rows := newBatch(uuid.New(), 20, func(r *row) { r.shortN = r.n == 7 })
	_, err := s.bus.Publisher().Publish(t.Context(), b)
	require.NoError(t, err)
	require.NoError(t, s.journal.note(acceptedOf(b, rows)))
	s.ingest(ingesterConfig{})
	f.stop()
	require.Equal(t, 1, s.verify().letters)
	letters, err := s.bus.DeadLetters().List(t.Context(), 10)
	require.NoError(t, err)
	require.Equal(t, "08P01", letters[0].SQLState, "otherwise the fault was another one")
	require.Equal(t, "data_error", letters[0].Reason)
}

// Collector 0 sends nothing that can be stored, in two ways in turn.
func TestACollectorThatSendsOnlyPoisonHarmsNoOther(t *testing.T) {
	t.Parallel()
	slow(t)
	s := newSite(t, siteConfig{})
	s.ingest(ingesterConfig{})
	// run returns how many batches of the others were stored a second, while
	// all send as fast as they are answered, and how many were poison.
	run := func(poison bool) (perSecond float64, faulty int) {
		before, begin := s.batches(), time.Now()
		f := s.collect(fleetConfig{pace: time.Millisecond, change: func(collector int, r *row) {
			if poison && collector == 0 && r.n == 7 {
				r.shortN = r.batch[15]%2 == 0
				r.zeroEnd = !r.shortN
			}
		}})
		last(8 * time.Second)
		perSecond = float64(s.batches()-before) / time.Since(begin).Seconds()
		f.stop()
		s.settled()
		return perSecond, int(f.taken.Load()) - (s.batches() - before)
	}
	clean, none := run(false)
	require.Zero(t, none)
	clean = clean * 19 / 20 // of the nineteen
	poisoned, faulty := run(true)
	require.Positive(t, faulty)
	require.Equal(t, faulty, s.verify().letters)
	t.Logf("batches of the nineteen stored a second: %.0f, beside %d poisoned ones %.0f: %.2f ×", clean, faulty, poisoned, poisoned/clean)
	require.Greater(t, poisoned, clean/2)
}

func TestAnIngesterOneVersionBehindCostsNothing(t *testing.T) {
	t.Parallel()
	slow(t)
	s := newSite(t, siteConfig{})
	behind := s.ingest(ingesterConfig{catalogue: writeCatalogue(t, false)})
	s.ingest(ingesterConfig{})
	f := s.collect(fleetConfig{})
	s.flowing(500)
	f.stop()
	s.settled()
	aside := behind.value("pganalytics_ingester_set_aside_total")
	s.verify()
	require.Positive(t, aside, "it got nothing that it does not know")
}
