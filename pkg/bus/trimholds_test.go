package bus

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

func TestTrimKeepsWhatIsHeld(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.publish(10, 100)
	w.store(w.consumer(), 10, 10)
	trimmer := w.Trimmer(TrimConfig{ReplayWindow: aged}, answers)
	a, b := w.take(w.hold("a", 4, 5)), w.take(w.hold("b", 8, 9))

	report, err := trimmer.Trim(t.Context())
	require.NoError(t, err)
	require.Equal(t, TrimReport{From: 1, To: 4}, report)
	require.EqualValues(t, 2, testutil.ToFloat64(w.metrics.holds))
	require.EqualValues(t, 4, testutil.ToFloat64(w.metrics.holdFrom))

	require.NoError(t, w.Holds().Release(t.Context(), a))
	report, err = trimmer.Trim(t.Context())
	require.NoError(t, err)
	require.Equal(t, TrimReport{From: 4, To: 8}, report)

	require.NoError(t, w.Holds().Release(t.Context(), b))
	report, err = trimmer.Trim(t.Context())
	require.NoError(t, err)
	require.Equal(t, TrimReport{From: 8, To: 11}, report)
	require.Zero(t, testutil.ToFloat64(w.metrics.holds))
}

func TestTrimHeedsNoHoldOfAStreamThatIsGone(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.take(w.hold("a", 1, 5))
	w.recreate()
	w.publish(3, 100)
	w.store(w.consumer(), 3, 3)
	report, err := w.Trimmer(TrimConfig{ReplayWindow: aged}, answers).Trim(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 3, report.Purged())
	require.Zero(t, testutil.ToFloat64(w.metrics.holds))
	require.Len(t, w.holds(), 1, "it is left for people to see")
}

func TestTrimPurgesNothingIfTheHoldsCannotBeRead(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.publish(3, 100)
	w.store(w.consumer(), 3, 3)
	trimmer := w.Trimmer(TrimConfig{ReplayWindow: aged}, answers)
	require.NoError(t, w.Holds().bucket.Put(t.Context(), "a", []byte("?")))
	report, err := trimmer.Trim(t.Context())
	require.NoError(t, err)
	require.Zero(t, report.Purged(), "nobody knows what it is for")

	require.NoError(t, w.js.DeleteStream(t.Context(), "KV_holds"))
	_, err = trimmer.Trim(t.Context())
	requireUnavailable(t, err)
	require.EqualValues(t, 3, w.status().Messages)
}

func TestAHoldFillsTheStreamLoudly(t *testing.T) {
	t.Parallel()
	w := setup(t, func(c *Config) { c.BatchesMaxBytes = 1 << 20 })
	var log bytes.Buffer
	w.log = slog.New(slog.NewTextHandler(&log, nil))
	w.publish(9, 100_000)
	w.store(w.consumer(), 9, 9)
	hold := w.take(w.hold("a", 2, 9))
	trimmer := w.Trimmer(TrimConfig{}, answers)

	report, err := trimmer.Trim(t.Context())
	require.NoError(t, err)
	require.Equal(t, TrimReport{From: 1, To: 2, Forced: true}, report, "up to the hold, and no further")
	w.publish(1, 100_000)
	report, err = trimmer.Trim(t.Context())
	require.NoError(t, err)
	require.Zero(t, report.Purged())
	require.EqualValues(t, 1, testutil.ToFloat64(w.metrics.heldAboveHighWater))
	require.Contains(t, log.String(), "because of a hold")
	require.Contains(t, log.String(), "hold=a")

	require.NoError(t, w.Holds().Release(t.Context(), hold))
	report, err = trimmer.Trim(t.Context())
	require.NoError(t, err)
	require.True(t, report.Forced)
	require.Zero(t, testutil.ToFloat64(w.metrics.heldAboveHighWater))
	require.EqualValues(t, 1, testutil.ToFloat64(w.metrics.aboveHighWater), "at this round's beginning")
}

// What is full of batches that nobody has stored is no hold's fault.
func TestABacklogIsNotTakenForAHold(t *testing.T) {
	t.Parallel()
	w := setup(t, func(c *Config) { c.BatchesMaxBytes = 1 << 20 })
	w.publish(9, 100_000)
	w.take(w.hold("a", 5, 9))
	_, err := w.Trimmer(TrimConfig{}, answers).Trim(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 1, testutil.ToFloat64(w.metrics.aboveHighWater))
	require.Zero(t, testutil.ToFloat64(w.metrics.heldAboveHighWater))
}

func TestTheGaugesTellOfTheStreamWhileTheStoreIsAway(t *testing.T) {
	t.Parallel()
	w := setup(t)
	trimmer := w.Trimmer(TrimConfig{}, func(context.Context) error { return errors.New("away") })
	round := func() {
		_, err := trimmer.Trim(t.Context())
		require.ErrorContains(t, err, "away")
	}
	round()
	require.Zero(t, testutil.ToFloat64(w.metrics.replayWindow))
	require.Zero(t, testutil.ToFloat64(w.metrics.unstored))

	begun := time.Now()
	w.publish(1, 100)
	between := time.Now()
	w.publish(2, 100)
	got := w.fetch(w.consumer(), 3)
	w.ackAll(got[:1])
	w.awaitFloor(1)
	round()
	window, unstored := testutil.ToFloat64(w.metrics.replayWindow), testutil.ToFloat64(w.metrics.unstored)
	require.Less(t, unstored, window, "the oldest is stored")
	require.Less(t, window, time.Since(begun).Seconds())
	require.Less(t, unstored, time.Since(between).Seconds())
	require.Positive(t, unstored)
	require.EqualValues(t, 2, testutil.ToFloat64(w.metrics.ackPending))
	require.EqualValues(t, w.status().Bytes, testutil.ToFloat64(w.metrics.streamBytes))

	w.ackAll(got[1:])
	w.awaitFloor(3)
	round()
	require.Zero(t, testutil.ToFloat64(w.metrics.unstored))
	require.Positive(t, testutil.ToFloat64(w.metrics.replayWindow))
}
