package bus

import (
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/bus/natsserver"
	"pganalytics/pkg/fault"
)

func TestPublishWaitsForAck(t *testing.T) {
	t.Parallel()
	w := setup(t)
	for i := range 20 {
		w.publish(1, 1000)
		require.EqualValues(t, i+1, w.status().Messages, "the publish returned before the stream had it")
	}
}

func TestPublishedBatchSurvivesARestart(t *testing.T) {
	t.Parallel()
	w := setup(t)
	sent := w.publish(3, 100_000)
	w.restart(natsserver.Config{})
	got := w.fetch(w.consumer(), 10)
	require.Len(t, got, 3)
	for i, d := range got {
		want, err := sent[i].Marshal()
		require.NoError(t, err)
		require.Equal(t, want, d.Payload)
		require.Equal(t, "pganalytics.batch."+sent[i].CollectorID.String(), d.Subject)
	}
}

func TestRepeatedBatchIsADuplicate(t *testing.T) {
	t.Parallel()
	w := setup(t)
	b := w.publish(1, 10)[0]
	duplicate, err := w.Publisher().Publish(t.Context(), b)
	require.NoError(t, err)
	require.True(t, duplicate)
	require.EqualValues(t, 1, w.status().Messages)
}

func TestSameIDWithOtherContentIsStored(t *testing.T) {
	t.Parallel()
	w := setup(t)
	b := w.publish(1, 10)[0]

	differs := *b
	differs.Sections = newBatch(10).Sections
	differs.Seal()
	duplicate, err := w.Publisher().Publish(t.Context(), &differs)
	require.NoError(t, err)
	require.False(t, duplicate, "the ledger must see it")

	others := *b
	others.CollectorID = uuid.New()
	others.Seal()
	duplicate, err = w.Publisher().Publish(t.Context(), &others)
	require.NoError(t, err)
	require.False(t, duplicate, "one collector has swallowed another's batch")
	require.EqualValues(t, 3, w.status().Messages)
}

func TestFullStreamRefusesAtOnceAndDiscardsNothing(t *testing.T) {
	t.Parallel()
	w := setup(t, func(c *Config) { c.BatchesMaxBytes = 1 << 20 })
	for i := range 13 {
		begin := time.Now()
		_, err := w.Publisher().Publish(t.Context(), newBatch(100_000))
		if i < 10 {
			require.NoError(t, err)
			continue
		}
		requireUnavailable(t, err)
		require.Less(t, time.Since(begin), time.Second)
		e, _ := errors.AsType[*fault.Error](err)
		require.Equal(t, "stream_full", e.Code)
		require.Equal(t, retryFull, e.RetryAfter)
	}
	s := w.status()
	require.EqualValues(t, 10, s.Messages)
	require.EqualValues(t, 1, s.FirstSequence, "something was discarded")
}

func TestPublishWhileDisconnectedFailsAtOnce(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.stopAndNotice()
	b := newBatch(1000)
	begin := time.Now()
	_, err := w.Publisher().Publish(t.Context(), b)
	requireUnavailable(t, err)
	require.Less(t, time.Since(begin), time.Second)

	w.restart(natsserver.Config{})
	require.Zero(t, w.status().Messages, "what was refused has been sent later")
	duplicate, err := w.Publisher().Publish(t.Context(), b)
	require.NoError(t, err)
	require.False(t, duplicate)
	require.EqualValues(t, 1, testutil.ToFloat64(w.metrics.reconnects))
}

func TestPublishWithoutAStreamIsUnavailable(t *testing.T) {
	t.Parallel()
	w := setup(t)
	require.NoError(t, w.js.DeleteStream(t.Context(), w.names.batches))
	_, err := w.Publisher().Publish(t.Context(), newBatch(10))
	requireUnavailable(t, err)

	// Another stream that takes over the subject must not get the batch.
	_, err = w.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "THIEF", Subjects: []string{"pganalytics.batch.*"}})
	require.NoError(t, err)
	_, err = w.Publisher().Publish(t.Context(), newBatch(10))
	requireUnavailable(t, err)
}

func TestLargestBatchIsTakenAndALargerOneRefused(t *testing.T) {
	t.Parallel()
	w := setup(t)
	require.EqualValues(t, natsserver.MaxPayload, w.MaxPayload())
	b := newBatch(natsserver.MaxPayload - Headroom)
	data, err := b.Marshal()
	require.NoError(t, err)
	_, err = w.Publisher().Publish(t.Context(), b)
	require.Equal(t, fault.TooLarge, fault.ClassOf(err))

	largest := natsserver.MaxPayload - Headroom - (len(data) - (natsserver.MaxPayload - Headroom))
	w.publish(1, largest)
	require.EqualValues(t, 1, w.status().Messages)

	// How well a batch packs does not matter.
	b.Sections[0].Tuples = make([]byte, largest+1)
	b.Seal()
	_, err = w.Publisher().Publish(t.Context(), b)
	require.Equal(t, fault.TooLarge, fault.ClassOf(err))
	b.Sections[0].Tuples = make([]byte, largest)
	b.Seal()
	_, err = w.Publisher().Publish(t.Context(), b)
	require.NoError(t, err)
}
