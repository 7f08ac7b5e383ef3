package bus

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/fault"
)

func answers(context.Context) error { return nil }

// aged is a replay window that everything has left by the time it is looked at.
const aged = time.Nanosecond

// store fetches and acks n messages, as if they were committed, and waits
// until the ack floor is floor.
func (w *world) store(c *Consumer, n int, floor uint64) {
	w.t.Helper()
	for n > 0 {
		got := w.fetch(c, n)
		w.ackAll(got)
		n -= len(got)
	}
	w.awaitFloor(floor)
}

func TestTrimNeverPurgesWhatIsNotAcked(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.publish(10, 100)
	c := w.consumer()
	trimmer := w.Trimmer(TrimConfig{ReplayWindow: aged}, answers)

	report, err := trimmer.Trim(t.Context())
	require.NoError(t, err)
	require.Zero(t, report.Purged(), "nothing was handed out yet")

	held := w.fetch(c, 10)
	require.Len(t, held, 10)
	report, err = trimmer.Trim(t.Context())
	require.NoError(t, err)
	require.Zero(t, report.Purged(), "handed out is not stored")

	w.ackAll(append(held[:3:3], held[4:]...)) // all but the fourth
	w.awaitFloor(3)
	report, err = trimmer.Trim(t.Context())
	require.NoError(t, err)
	require.Equal(t, TrimReport{From: 1, To: 4}, report)
	require.EqualValues(t, 4, w.status().FirstSequence)

	w.ackAll(held[3:4])
	w.awaitFloor(10)
	report, err = trimmer.Trim(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 7, report.Purged())
	require.Zero(t, w.status().Messages)
	require.EqualValues(t, 10, testutil.ToFloat64(w.metrics.purged.WithLabelValues("window")))
}

func TestTrimKeepsTheReplayWindow(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.publish(5, 100)
	c := w.consumer()
	w.store(c, 5, 5)
	oldest := time.Now()
	time.Sleep(300 * time.Millisecond) // the messages' age is the input of this test, not something to wait for
	w.publish(3, 100)
	w.store(c, 3, 8)

	report, err := w.Trimmer(TrimConfig{ReplayWindow: time.Hour}, answers).Trim(t.Context())
	require.NoError(t, err)
	require.Zero(t, report.Purged(), "all are within the window")

	report, err = w.Trimmer(TrimConfig{ReplayWindow: time.Since(oldest) - 150*time.Millisecond}, answers).Trim(t.Context())
	require.NoError(t, err)
	require.Equal(t, TrimReport{From: 1, To: 6}, report)
	require.EqualValues(t, 3, w.status().Messages)
}

func TestTrimFindsTheWindowAcrossGaps(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.publish(6, 100)
	c := w.consumer()
	w.store(c, 6, 6)
	stream, err := w.js.Stream(t.Context(), w.names.batches)
	require.NoError(t, err)
	for _, seq := range []uint64{3, 4} {
		require.NoError(t, stream.DeleteMsg(t.Context(), seq))
	}
	kept, err := stream.GetMsg(t.Context(), 5)
	require.NoError(t, err)
	first, err := w.SequenceAt(t.Context(), kept.Time.Add(-1))
	require.NoError(t, err)
	require.EqualValues(t, 5, first)
	first, err = w.SequenceAt(t.Context(), time.Now().Add(time.Hour))
	require.NoError(t, err)
	require.EqualValues(t, 7, first, "none is so young")
}

func TestTrimPurgesNothingWhileTheStoreDoesNotAnswer(t *testing.T) {
	t.Parallel()
	w := setup(t, func(c *Config) { c.BatchesMaxBytes = 1 << 20 })
	w.publish(10, 100_000) // above the high water too
	w.store(w.consumer(), 10, 10)
	away := errors.New("database is away")
	_, err := w.Trimmer(TrimConfig{ReplayWindow: aged}, func(context.Context) error { return away }).Trim(t.Context())
	require.ErrorIs(t, err, away)
	require.EqualValues(t, 10, w.status().Messages)
}

func TestAboveTheHighWaterTheOldestStoredLeaveEarly(t *testing.T) {
	t.Parallel()
	w := setup(t, func(c *Config) { c.BatchesMaxBytes = 1 << 20 })
	var log bytes.Buffer
	w.log = slog.New(slog.NewTextHandler(&log, nil))
	w.publish(10, 100_000)
	_, err := w.Publisher().Publish(t.Context(), newBatch(100_000))
	requireUnavailable(t, err)
	c := w.consumer()
	trimmer := w.Trimmer(TrimConfig{}, answers)

	report, err := trimmer.Trim(t.Context())
	require.NoError(t, err)
	require.Zero(t, report.Purged(), "full, but nothing is stored")
	require.Contains(t, log.String(), "level=ERROR")
	require.EqualValues(t, 1, testutil.ToFloat64(w.metrics.aboveHighWater))

	w.store(c, 1, 1)
	report, err = trimmer.Trim(t.Context())
	require.NoError(t, err)
	require.Equal(t, TrimReport{From: 1, To: 2, Forced: true}, report, "only what is stored")
	w.publish(1, 100_000) // there is room again

	w.store(c, 10, 11)
	report, err = trimmer.Trim(t.Context())
	require.NoError(t, err)
	require.True(t, report.Forced)
	s := w.status()
	require.Less(t, s.Bytes, uint64(8<<20/10))
	require.Greater(t, s.Messages, uint64(5), "it cut far more than needed")

	_, err = trimmer.Trim(t.Context())
	require.NoError(t, err)
	require.Zero(t, testutil.ToFloat64(w.metrics.aboveHighWater))
	w.publish(1, 100_000)
}

func TestTrimPurgesNothingForAConsumerThatIsMissingOrNew(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.publish(5, 100)
	w.store(w.consumer(), 5, 5)
	trimmer := w.Trimmer(TrimConfig{ReplayWindow: aged}, answers)
	require.NoError(t, w.js.DeleteConsumer(t.Context(), w.names.batches, w.names.consumer))
	_, err := trimmer.Trim(t.Context())
	requireUnavailable(t, err)

	require.NoError(t, w.EnsureStreams(t.Context()))
	report, err := trimmer.Trim(t.Context())
	require.NoError(t, err)
	require.Zero(t, report.Purged())

	// One that someone made to begin at the end has a floor that nobody acked.
	require.NoError(t, w.js.DeleteConsumer(t.Context(), w.names.batches, w.names.consumer))
	skips := w.consumerConfig()
	skips.DeliverPolicy = jetstream.DeliverNewPolicy
	_, err = w.js.CreateConsumer(t.Context(), w.names.batches, skips)
	require.NoError(t, err)
	_, err = trimmer.Trim(t.Context())
	require.ErrorContains(t, err, "deliver policy")
	require.EqualValues(t, 5, w.status().Messages)
}

func TestTrimmerRunsUntilItsContextEnds(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.publish(5, 100)
	w.store(w.consumer(), 5, 5)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	rounds := 0
	trimmer := w.Trimmer(TrimConfig{ReplayWindow: aged, Interval: time.Millisecond}, func(context.Context) error {
		if rounds++; rounds == 1 {
			return fault.New(fault.Unavailable, "x", "a failed round must not end it")
		}
		return nil
	})
	go func() { ended <- trimmer.Run(ctx) }()
	require.Eventually(t, func() bool { return w.status().Messages == 0 }, patience, time.Millisecond)
	cancel()
	require.NoError(t, <-ended)
}

func TestTrimConfigNamesAllFaults(t *testing.T) {
	t.Parallel()
	err := TrimConfig{ReplayWindow: -1, HighWater: 1.5, Interval: -1}.Validate()
	for _, name := range []string{"ReplayWindow", "HighWater", "Interval"} {
		require.ErrorContains(t, err, name)
	}
	require.NoError(t, TrimConfig{}.Validate())
}
