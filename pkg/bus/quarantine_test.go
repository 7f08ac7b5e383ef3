package bus

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/bus/natsserver"
)

// bury buries n letters of a collector.
func (w *world) bury(collector uuid.UUID, n int) {
	w.t.Helper()
	for range n {
		l := batch.Letter{CollectorID: collector, BatchID: uuid.New(), Reason: "data_error", Payload: []byte("x")}
		require.NoError(w.t, w.DeadLetters().Bury(w.t.Context(), l))
	}
}

// quarantine runs one until the test ends.
func (w *world) quarantine(quota uint64) *Quarantine {
	w.t.Helper()
	q := w.Quarantine(quota)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- q.Run(ctx) }()
	w.t.Cleanup(func() { cancel(); require.NoError(w.t, <-ended) })
	return q
}

func awaitQuarantined(t *testing.T, q *Quarantine, collector uuid.UUID, want bool) {
	t.Helper()
	require.Eventually(t, func() bool { return q.Quarantined(collector) == want }, patience, time.Millisecond)
}

func TestACollectorWithTooManyLettersIsInQuarantineUntilTheyAreDealtWith(t *testing.T) {
	t.Parallel()
	w := setup(t)
	var log bytes.Buffer
	w.log = slog.New(slog.NewTextHandler(&log, nil))
	good, bad := uuid.New(), uuid.New()
	w.bury(good, 2)
	w.bury(bad, 2)
	q := w.Quarantine(3)
	look := func() { require.NoError(t, q.look(t.Context())) }
	look()
	require.False(t, q.Quarantined(bad))

	w.bury(bad, 1)
	look()
	require.True(t, q.Quarantined(bad))
	require.False(t, q.Quarantined(good))
	require.EqualValues(t, 1, testutil.ToFloat64(w.metrics.quarantined))
	w.bury(bad, 1)
	look()
	look()
	require.Equal(t, 1, strings.Count(log.String(), "\n"), "said once: %s", log.String())
	require.Contains(t, log.String(), bad.String())

	letters, err := w.js.Stream(t.Context(), w.names.deadLetters)
	require.NoError(t, err)
	require.NoError(t, letters.Purge(t.Context(), jetstream.WithPurgeSubject(fmt.Sprintf("%s%s.>", w.names.dead, bad))))
	look()
	require.False(t, q.Quarantined(bad))
	require.Zero(t, testutil.ToFloat64(w.metrics.quarantined))
	require.Contains(t, log.String(), "out of quarantine")
}

func TestTheQuarantineStandsWhileTheLettersCannotBeCounted(t *testing.T) {
	t.Parallel()
	w := setup(t)
	bad := uuid.New()
	w.bury(bad, 2)
	q := w.quarantine(2)
	awaitQuarantined(t, q, bad, true)
	w.stopAndNotice()
	requireUnavailable(t, w.Quarantine(2).look(t.Context()))
	require.True(t, q.Quarantined(bad))
	w.restart(natsserver.Config{})
	require.True(t, q.Quarantined(bad))

	require.NoError(t, w.js.DeleteStream(t.Context(), w.names.deadLetters))
	require.NoError(t, w.EnsureStreams(t.Context()))
	awaitQuarantined(t, q, bad, false)
}

func TestLettersAreCountedOverAllPages(t *testing.T) {
	t.Parallel()
	a, b := uuid.New(), uuid.New()
	pages := [][]uuid.UUID{{a, a}, {b, a}, {b}}
	counts, err := countLetters("dead.", func(offset int) (letterPage, error) {
		p := letterPage{Total: 5}
		p.State.Subjects = map[string]uint64{}
		for i, collector := range pages[offset/2] {
			p.State.Subjects[fmt.Sprintf("dead.%s.%s.%d", collector, uuid.New(), i)] = 1
		}
		return p, nil
	})
	require.NoError(t, err)
	require.Equal(t, map[uuid.UUID]uint64{a: 3, b: 2}, counts)
}

func FuzzLetterCollector(f *testing.F) {
	f.Fuzz(func(t *testing.T, subject string) {
		collector, ok := letterCollector("dead.", subject)
		if !ok {
			require.Equal(t, uuid.Nil, collector)
			return
		}
		again, ok := letterCollector("dead.", fmt.Sprintf("dead.%s.x.y", collector))
		require.True(t, ok)
		require.Equal(t, collector, again)
	})
}
