package bus

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/bus/natsserver"
	"pganalytics/pkg/fault"
)

func (w *world) reader(from, to uint64) *Reader {
	w.t.Helper()
	r, err := w.Reader(w.t.Context(), from, to)
	require.NoError(w.t, err)
	return r
}

// rest reads to the end, n messages at a time.
func (w *world) rest(r *Reader, n, maxBytes int) []batch.Delivery {
	w.t.Helper()
	var all []batch.Delivery
	for {
		got, err := r.Next(w.t.Context(), n, maxBytes)
		require.NoError(w.t, err)
		if len(got) == 0 {
			return all
		}
		require.LessOrEqual(w.t, len(got), n)
		all = append(all, got...)
	}
}

func sequences(deliveries []batch.Delivery) []uint64 {
	var all []uint64
	for _, d := range deliveries {
		all = append(all, d.Sequence)
	}
	return all
}

func TestAReaderReadsItsPartAndDisturbsNobody(t *testing.T) {
	t.Parallel()
	w := setup(t)
	batches := w.publish(10, 100)
	w.store(w.consumer(), 6, 6)
	before := w.status()

	r := w.reader(3, 8)
	all := w.rest(r, 4, room)
	require.Equal(t, []uint64{3, 4, 5, 6, 7, 8}, sequences(all))
	require.Zero(t, r.Missing())
	for i, d := range all {
		want, err := batches[i+2].Marshal()
		require.NoError(t, err)
		require.Equal(t, want, d.Payload)
		require.Equal(t, before.Incarnation, d.Incarnation)
		require.Contains(t, d.Subject, batches[i+2].CollectorID.String())
		require.NotZero(t, d.StoredAt)
		require.NoError(t, d.Extend())
		require.NoError(t, d.Ack(t.Context()))
	}
	require.Equal(t, before, w.status())
	require.Empty(t, w.rest(r, 4, room), "the end stays the end")
	require.Equal(t, []uint64{7, 8, 9, 10}, sequences(w.fetch(w.consumer(), 4)))
}

func TestAReaderEndsWithTheStream(t *testing.T) {
	t.Parallel()
	w := setup(t)
	require.Empty(t, w.rest(w.reader(0, 99), 5, room), "an empty stream")
	w.publish(3, 100)
	r := w.reader(0, 99)
	w.publish(1, 100) // after it was opened
	require.Equal(t, []uint64{1, 2, 3}, sequences(w.rest(r, 5, room)))
	require.Empty(t, w.rest(w.reader(9, 12), 5, room))
	require.Empty(t, w.rest(w.reader(3, 2), 5, room))
	require.Zero(t, r.Missing())
}

func TestAReaderTellsWhatIsMissing(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.publish(12, 100)
	stream, err := w.js.Stream(t.Context(), w.names.batches)
	require.NoError(t, err)
	require.NoError(t, stream.Purge(t.Context(), jetstream.WithPurgeSequence(4)))
	for _, seq := range []uint64{6, 7, 10, 11} {
		require.NoError(t, stream.DeleteMsg(t.Context(), seq))
	}
	r := w.reader(2, 11)
	require.EqualValues(t, 2, r.Missing(), "before it reads: 2 and 3")
	require.Equal(t, []uint64{4, 5, 8, 9}, sequences(w.rest(r, 2, room)))
	require.EqualValues(t, 6, r.Missing(), "2, 3, 6, 7, 10 and 11")

	gone := w.reader(1, 3)
	require.Empty(t, w.rest(gone, 2, room))
	require.EqualValues(t, 3, gone.Missing())
}

// A round of the trimmer that was under way when the hold was taken.
func TestAReaderTellsWhatIsPurgedWhileItReads(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.publish(10, 100)
	r := w.reader(1, 10)
	got, err := r.Next(t.Context(), 2, room)
	require.NoError(t, err)
	require.Equal(t, []uint64{1, 2}, sequences(got))
	stream, err := w.js.Stream(t.Context(), w.names.batches)
	require.NoError(t, err)
	require.NoError(t, stream.Purge(t.Context(), jetstream.WithPurgeSequence(6)))
	require.Equal(t, []uint64{6, 7, 8, 9, 10}, sequences(w.rest(r, 3, room)))
	require.EqualValues(t, 3, r.Missing())

	require.NoError(t, stream.Purge(t.Context()))
	w.publish(1, 100)
	require.Empty(t, w.rest(r, 3, room))
	require.EqualValues(t, 3, r.Missing(), "what it had read before is not missing")
}

func TestAReaderGoesOnAfterTheServerWasAway(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.publish(9, 100)
	r := w.reader(1, 9)
	got, err := r.Next(t.Context(), 4, room)
	require.NoError(t, err)
	w.stopAndNotice()
	_, err = r.Next(t.Context(), 4, room)
	requireUnavailable(t, err)
	w.restart(natsserver.Config{})
	got = append(got, w.rest(r, 2, room)...)
	require.Equal(t, []uint64{1, 2, 3, 4, 5, 6, 7, 8, 9}, sequences(got))
	require.Zero(t, r.Missing())
}

// As the server does with a reader that nobody asked for a minute.
func TestAReaderGoesOnWithoutItsConsumer(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.publish(6, 100)
	r := w.reader(1, 6)
	got, err := r.Next(t.Context(), 2, room)
	require.NoError(t, err)
	stream, err := w.js.Stream(t.Context(), w.names.batches)
	require.NoError(t, err)
	names := stream.ConsumerNames(t.Context())
	for name := range names.Name() {
		if name != w.names.consumer {
			require.NoError(t, w.js.DeleteConsumer(t.Context(), w.names.batches, name))
		}
	}
	require.NoError(t, names.Err())
	got = append(got, w.rest(r, 2, room)...)
	require.Equal(t, []uint64{1, 2, 3, 4, 5, 6}, sequences(got))
}

// Without acks the server does not repeat what was lost on the way.
func TestAReaderReadsAgainWhatWasLostOnTheWay(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.publish(6, 100)
	r := w.reader(1, 6)
	got, err := r.Next(t.Context(), 2, room)
	require.NoError(t, err)
	lost, err := r.cursor.consumer.pull(t.Context(), pullRequest{Batch: 2, Expires: cursorWait})
	require.NoError(t, err)
	require.Len(t, lost, 2)
	got = append(got, w.rest(r, 2, room)...)
	require.Equal(t, []uint64{1, 2, 3, 4, 5, 6}, sequences(got))
	require.Zero(t, r.Missing())
}

func TestAReaderIsBoundByBytesAndReadsTheLargestAlone(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.publish(3, 100_000)
	w.publish(1, natsserver.MaxPayload-Headroom-1000)
	w.publish(2, 100_000)
	r := w.reader(1, 6)
	got, err := r.Next(t.Context(), 10, 250_000)
	require.NoError(t, err)
	require.Equal(t, []uint64{1, 2}, sequences(got))
	require.Equal(t, []uint64{3, 4, 5, 6}, sequences(w.rest(r, 10, 250_000)))
	require.Zero(t, r.Missing())

	got, err = w.reader(1, 6).Next(t.Context(), 10, 0)
	require.NoError(t, err)
	require.Equal(t, []uint64{1}, sequences(got))
}

func TestAReaderDoesNotReadAStreamThatWasMadeAnew(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.publish(4, 100)
	r := w.reader(1, 4)
	require.Equal(t, w.status().Incarnation, r.Incarnation())
	_, err := r.Next(t.Context(), 2, room)
	require.NoError(t, err)
	w.recreate()
	w.publish(4, 100)
	_, err = r.Next(t.Context(), 2, room)
	require.Equal(t, fault.Conflict, fault.ClassOf(err), "%v", err)
}

func TestNewestHoldsAsManyAckedMessagesAsAskedFor(t *testing.T) {
	t.Parallel()
	w := setup(t)
	newest := func(n int) ([]uint64, int) {
		r, unacked, err := w.Newest(t.Context(), n)
		require.NoError(t, err)
		return sequences(w.rest(r, 2, room)), unacked
	}
	expect := func(n int, want []uint64, wantUnacked int) {
		t.Helper()
		got, unacked := newest(n)
		require.Equal(t, want, got)
		require.Equal(t, wantUnacked, unacked)
	}
	expect(3, nil, 0)
	w.publish(8, 100)
	expect(3, nil, 0)
	c := w.consumer()
	waiting := w.fetch(c, 1)
	w.ackAll(w.fetch(c, 4))
	require.Eventually(t, func() bool { return w.status().AckPending == 1 }, patience, time.Millisecond)
	expect(2, []uint64{3, 4, 5}, 1) // although the floor is 0
	expect(9, []uint64{1, 2, 3, 4, 5}, 1)
	w.ackAll(waiting)
	w.awaitFloor(5)
	expect(2, []uint64{4, 5}, 0)
	stream, err := w.js.Stream(t.Context(), w.names.batches)
	require.NoError(t, err)
	require.NoError(t, stream.Purge(t.Context(), jetstream.WithPurgeSequence(5)))
	expect(2, []uint64{5}, 0)
	require.NoError(t, stream.Purge(t.Context(), jetstream.WithPurgeSequence(7)))
	expect(2, nil, 0) // what was never handed out is not among them

	w.stopAndNotice()
	_, _, err = w.Newest(t.Context(), 1)
	requireUnavailable(t, err)
	w.restart(natsserver.Config{})
}
