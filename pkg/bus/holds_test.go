package bus

import (
	"encoding/json"
	"fmt"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/bus/natsserver"
	"pganalytics/pkg/fault"
)

// hold returns a hold on the world's stream.
func (w *world) hold(name string, from, to uint64) Hold {
	w.t.Helper()
	return Hold{Name: name, Incarnation: w.status().Incarnation, From: from, To: to, Reason: "test", By: w.t.Name()}
}

func (w *world) take(h Hold) Hold {
	w.t.Helper()
	taken, err := w.Holds().Take(w.t.Context(), h)
	require.NoError(w.t, err)
	return taken
}

func (w *world) holds() []Hold {
	w.t.Helper()
	holds, err := w.Holds().List(w.t.Context())
	require.NoError(w.t, err)
	return holds
}

func (w *world) recreate() {
	w.t.Helper()
	require.NoError(w.t, w.js.DeleteStream(w.t.Context(), w.names.batches))
	require.NoError(w.t, w.EnsureStreams(w.t.Context()))
}

func TestAHoldOutlivesTheServerAndItsTaker(t *testing.T) {
	t.Parallel()
	w := setup(t)
	b, a := w.take(w.hold("b", 5, 9)), w.take(w.hold("a", 1, 2))
	require.WithinDuration(t, time.Now(), a.Since, time.Minute)
	w.restart(natsserver.Config{})
	other := &world{t: t, cfg: w.cfg}
	other.Bus = other.connect()
	require.Equal(t, []Hold{a, b}, other.holds())
}

func TestTakingAgainCoversBoth(t *testing.T) {
	t.Parallel()
	w := setup(t)
	first := w.take(w.hold("a", 5, 9))
	second := w.hold("a", 7, 12)
	second.Reason = "another"
	taken := w.take(second)
	require.Equal(t, []uint64{5, 12}, []uint64{taken.From, taken.To})
	require.Equal(t, "another", taken.Reason)
	require.Equal(t, first.Since, taken.Since)
	require.Equal(t, []Hold{taken}, w.holds())
}

func TestTakersAtOnceLoseNothing(t *testing.T) {
	t.Parallel()
	w := setup(t)
	h := w.hold("a", 0, 0)
	var wg sync.WaitGroup
	for i := range uint64(5) {
		wg.Go(func() {
			mine := h
			mine.From, mine.To = 50-i, 50+i
			if _, err := w.Holds().Take(t.Context(), mine); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	holds := w.holds()
	require.Len(t, holds, 1)
	require.Equal(t, []uint64{46, 54}, []uint64{holds[0].From, holds[0].To})
}

func TestAHoldOfAStreamThatIsGoneIsReplacedAndNeverReplaces(t *testing.T) {
	t.Parallel()
	w := setup(t)
	old := w.take(w.hold("a", 1, 1000))
	w.recreate()
	taken := w.take(w.hold("a", 5, 9))
	require.NotEqual(t, old.Incarnation, taken.Incarnation)
	require.Equal(t, []uint64{5, 9}, []uint64{taken.From, taken.To})

	_, err := w.Holds().Take(t.Context(), old)
	require.Equal(t, fault.Conflict, fault.ClassOf(err), "%v", err)
	require.Equal(t, []Hold{taken}, w.holds())
}

func TestReleaseSparesAHoldThatWasTakenAgain(t *testing.T) {
	t.Parallel()
	w := setup(t)
	first := w.take(w.hold("a", 5, 9))
	second := w.take(w.hold("a", 5, 9)) // nothing new, but it is needed again
	err := w.Holds().Release(t.Context(), first)
	require.Equal(t, fault.Conflict, fault.ClassOf(err), "%v", err)
	require.Equal(t, []Hold{second}, w.holds())

	blind := second
	blind.Revision = 0
	require.Equal(t, fault.Invalid, fault.ClassOf(w.Holds().Release(t.Context(), blind)))
	require.Equal(t, []Hold{second}, w.holds())

	require.NoError(t, w.Holds().Release(t.Context(), second))
	require.Empty(t, w.holds())
	require.NoError(t, w.Holds().Release(t.Context(), second), "the answer to the first may have been lost")

	third := w.take(w.hold("a", 7, 8))
	require.Equal(t, []uint64{7, 8}, []uint64{third.From, third.To}, "what was released is over")
	require.Equal(t, fault.Conflict, fault.ClassOf(w.Holds().Release(t.Context(), second)))
}

func TestAHoldAdvancesAndItsWorkOutlivesItsTaker(t *testing.T) {
	t.Parallel()
	w := setup(t)
	h := w.hold("a", 5, 9)
	h.Work = "begun"
	first := w.take(h)
	next := first
	next.From, next.Work = 7, "half"
	second, err := w.Holds().Advance(t.Context(), next)
	require.NoError(t, err)
	require.Greater(t, second.Revision, first.Revision)
	require.Equal(t, []Hold{second}, w.holds())
	require.Equal(t, "half", second.Work)
	require.EqualValues(t, 7, second.From)

	again, err := w.Holds().Advance(t.Context(), next)
	require.NoError(t, err, "the answer to the first may have been lost")
	require.Equal(t, second, again)

	taken := w.take(w.hold("a", 6, 9))
	next = second
	next.From = 8
	_, err = w.Holds().Advance(t.Context(), next)
	require.Equal(t, fault.Conflict, fault.ClassOf(err), "somebody needs it from 6 on: %v", err)
	require.Equal(t, []Hold{taken}, w.holds())

	require.NoError(t, w.Holds().Release(t.Context(), taken))
	_, err = w.Holds().Advance(t.Context(), taken)
	require.Equal(t, fault.Conflict, fault.ClassOf(err), "what was released is not held again: %v", err)
	require.Empty(t, w.holds())

	next.Revision = 0
	_, err = w.Holds().Advance(t.Context(), next)
	require.Equal(t, fault.Invalid, fault.ClassOf(err))
}

func TestAnUnreadableHoldKeepsEverything(t *testing.T) {
	t.Parallel()
	w := setup(t)
	bucket := w.Holds().bucket
	require.NoError(t, bucket.Put(t.Context(), "a", []byte(`{"name":"a","from":"many"}`)))
	holds := w.holds()
	require.Len(t, holds, 1)
	require.True(t, holds[0].keeps(w.status().Incarnation))
	require.Zero(t, holds[0].From)
	require.NotEmpty(t, holds[0].Reason)

	taken := w.take(w.hold("a", 5, 9))
	require.Zero(t, taken.From, "who takes it in its place does not know what it was for")
	require.NoError(t, w.Holds().Release(t.Context(), taken))

	require.NoError(t, bucket.Put(t.Context(), "a", []byte(`?`)))
	require.NoError(t, w.Holds().Release(t.Context(), w.holds()[0]), "a person may end it")
	require.Empty(t, w.holds())
}

func TestAHoldThatMakesNoSenseIsRefused(t *testing.T) {
	t.Parallel()
	w := setup(t)
	good := w.hold("a", 1, 2)
	for name, change := range map[string]func(*Hold){
		"no name":        func(h *Hold) { h.Name = "" },
		"dots":           func(h *Hold) { h.Name = "a.b" },
		"no incarnation": func(h *Hold) { h.Incarnation = "" },
		"backwards":      func(h *Hold) { h.From = 3 },
	} {
		bad := good
		change(&bad)
		_, err := w.Holds().Take(t.Context(), bad)
		require.Equal(t, fault.Invalid, fault.ClassOf(err), name)
	}
	require.Empty(t, w.holds())
}

func TestHoldsNeedTheServer(t *testing.T) {
	t.Parallel()
	w := setup(t)
	h := w.take(w.hold("a", 1, 2))
	w.stopAndNotice()
	_, err := w.Holds().Take(t.Context(), h)
	requireUnavailable(t, err)
	_, err = w.Holds().List(t.Context())
	requireUnavailable(t, err)
	requireUnavailable(t, w.Holds().Release(t.Context(), h))
	w.restart(natsserver.Config{})
}

func FuzzHold(f *testing.F) {
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		h := decodeHold(key, value)
		require.Equal(t, key, h.Name)
		if h.Incarnation == "" { // unreadable
			require.True(t, h.keeps("any"))
			require.Zero(t, h.From)
			require.Equal(t, uint64(math.MaxUint64), h.To)
			return
		}
		again, err := json.Marshal(h)
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(h), fmt.Sprint(decodeHold(key, again)))
	})
}
