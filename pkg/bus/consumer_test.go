package bus

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/bus/natsserver"
	"pganalytics/pkg/fault"
)

const room = 2 * natsserver.MaxPayload

func TestUnackedMessageIsHandedOutAgain(t *testing.T) {
	t.Parallel()
	w := setup(t, func(c *Config) { c.AckWait = 200 * time.Millisecond })
	w.publish(2, 10)
	c := w.consumer()
	first := w.fetch(c, 10)
	require.Len(t, first, 2)
	w.ackAll(first[:1])

	again := w.fetch(c, 10)
	require.Len(t, again, 1, "the acked one must not come again")
	require.Equal(t, first[1].Sequence, again[0].Sequence)
	require.EqualValues(t, 2, again[0].Delivered)
	require.Equal(t, first[1].Payload, again[0].Payload)
	require.Equal(t, first[1].StoredAt, again[0].StoredAt)
}

func TestExtendKeepsAMessageWithoutUsingUpADelivery(t *testing.T) {
	t.Parallel()
	const wait = 1500 * time.Millisecond // a busy machine stands still for less
	w := setup(t, func(c *Config) { c.AckWait = wait })
	w.publish(1, 10)
	c := w.consumer()
	held := w.fetch(c, 1)[0]
	for begin := time.Now(); time.Since(begin) < 4*wait; {
		require.NoError(t, held.Extend())
		got, err := c.Fetch(t.Context(), 1, room, wait/5)
		require.NoError(t, err)
		require.Empty(t, got, "handed out again although extended")
	}
	require.EqualValues(t, 2, w.fetch(c, 1)[0].Delivered, "only the lapse after the last extension counts")
}

func TestFetchReturnsAsSoonAsALimitIsReached(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.publish(5, natsserver.MaxPayload/2)
	c := w.consumer()
	begin := time.Now()

	got, err := c.Fetch(t.Context(), 1, room, patience)
	require.NoError(t, err)
	require.Len(t, got, 1, "by count")

	got, err = c.Fetch(t.Context(), 100, room, patience)
	require.NoError(t, err)
	require.Len(t, got, 3, "by bytes: the fourth would go beyond")

	require.Less(t, time.Since(begin), patience/2, "a fetch waited although a limit was reached")

	got, err = c.Fetch(t.Context(), 100, room, time.Second)
	require.NoError(t, err)
	require.Len(t, got, 1, "by time")

	got, err = c.Fetch(t.Context(), 100, room, 50*time.Millisecond)
	require.NoError(t, err)
	require.Empty(t, got)
}

func TestFetchRefusesRoomThatABigMessageWouldBlock(t *testing.T) {
	t.Parallel()
	w := setup(t)
	_, err := w.consumer().Fetch(t.Context(), 1, room-1, time.Second)
	require.ErrorContains(t, err, "max_payload")
	require.Equal(t, fault.Internal, fault.ClassOf(err), "pausing would not help")
}

func TestBigMessagesDoNotBlock(t *testing.T) {
	t.Parallel()
	w := setup(t)
	for range 3 {
		w.publish(1, natsserver.MaxPayload-Headroom-1000)
		w.publish(2, 10)
	}
	c := w.consumer()
	for seen := 0; seen < 9; {
		got := w.fetch(c, 100)
		w.ackAll(got)
		seen += len(got)
	}
	w.awaitFloor(9)
}

func TestAMessageLargerThanTheFetchDoesNotBlock(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.publish(1, 10)
	w.publish(1, 5<<20)
	w.publish(1, 10)
	w.restart(natsserver.Config{MaxPayload: 1 << 20}) // from now on 5 MiB is more than 2 × max_payload
	require.Eventually(t, func() bool { return w.MaxPayload() == 1<<20 }, patience, time.Millisecond)
	c := w.consumer()
	var sizes []int
	for len(sizes) < 3 {
		got, err := c.Fetch(t.Context(), 100, 2<<20, time.Second)
		require.NoError(t, err)
		require.NotEmpty(t, got)
		for _, d := range got {
			sizes = append(sizes, len(d.Payload))
			require.EqualValues(t, 1, d.Delivered)
		}
	}
	require.Greater(t, sizes[1], 5<<20)
}

func TestTwoFetchersShareTheWork(t *testing.T) {
	t.Parallel()
	w := setup(t)
	const n = 200
	w.publish(n, 100)
	other := w.connect()
	var (
		mu   sync.Mutex
		seen = map[uint64]int{}
	)
	total := func() int { mu.Lock(); defer mu.Unlock(); return len(seen) }
	var group errgroup.Group
	took := make([]int, 2)
	for i, b := range []*Bus{w.Bus, other} {
		c, err := b.Consumer(t.Context())
		require.NoError(t, err)
		group.Go(func() error {
			for begin := time.Now(); total() < n && time.Since(begin) < patience; {
				got, err := c.Fetch(t.Context(), 10, room, 50*time.Millisecond)
				if err != nil {
					return err
				}
				took[i] += len(got)
				mu.Lock()
				for _, d := range got {
					seen[d.Sequence]++
				}
				mu.Unlock()
				for _, d := range got {
					if err := d.Ack(t.Context()); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	require.NoError(t, group.Wait())
	require.Len(t, seen, n)
	for sequence, times := range seen {
		require.Equal(t, 1, times, "message %d was handed to both", sequence)
	}
	require.Positive(t, took[0])
	require.Positive(t, took[1])
}

func TestFetchEndsWithItsContextAndLosesNothing(t *testing.T) {
	t.Parallel()
	w := setup(t, func(c *Config) { c.AckWait = 200 * time.Millisecond })
	c := w.consumer()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := c.Fetch(ctx, 1, room, time.Hour)
		ended <- err
	}()
	require.Eventually(t, func() bool { // the request has reached the server
		consumer, err := w.js.Consumer(t.Context(), w.names.batches, w.names.consumer)
		return err == nil && consumer.CachedInfo().NumWaiting == 1
	}, patience, time.Millisecond)
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	w.publish(1, 10)
	require.Len(t, w.fetch(c, 1), 1)
}

func TestFetchAndAckWhileDisconnectedFailAtOnce(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.publish(1, 10)
	c := w.consumer()
	d := w.fetch(c, 1)[0]
	w.stopAndNotice()
	begin := time.Now()
	_, err := c.Fetch(t.Context(), 1, room, time.Hour)
	requireUnavailable(t, err)
	requireUnavailable(t, d.Ack(t.Context()))
	requireUnavailable(t, d.Extend())
	require.Less(t, time.Since(begin), time.Second)
	w.restart(natsserver.Config{})
	require.NoError(t, d.Ack(t.Context()), "an ack that failed can be repeated")
	require.NoError(t, d.Ack(t.Context()), "and more than once")
}

func TestALostConsumerIsUnavailable(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.publish(1, 10)
	c := w.consumer()
	require.NoError(t, w.js.DeleteConsumer(t.Context(), w.names.batches, w.names.consumer))
	_, err := c.Fetch(t.Context(), 1, room, time.Second)
	requireUnavailable(t, err)
	require.NoError(t, w.EnsureStreams(t.Context()))
	require.Len(t, w.fetch(c, 1), 1, "a new consumer begins at the beginning")
}

func TestIncarnationTellsARecreatedStream(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.publish(1, 10)
	c := w.consumer()
	before := w.fetch(c, 1)[0]
	w.restart(natsserver.Config{})
	w.publish(1, 10)
	same := w.fetch(c, 1)[0]
	require.Equal(t, before.Incarnation, same.Incarnation, "a restart is not a new stream")
	_, err := time.Parse(time.RFC3339Nano, same.Incarnation)
	require.NoError(t, err)

	require.NoError(t, w.js.DeleteStream(t.Context(), w.names.batches))
	_, err = c.Fetch(t.Context(), 1, room, time.Second)
	requireUnavailable(t, err)
	require.NoError(t, w.EnsureStreams(t.Context()))
	w.publish(1, 10)
	after := w.fetch(c, 1)[0]
	require.EqualValues(t, 1, after.Sequence)
	require.NotEqual(t, before.Incarnation, after.Incarnation)
}

// No fetch is under way while the stream is made anew, so none gets an error.
func TestIncarnationTellsAStreamRecreatedUnnoticed(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.publish(1, 10)
	c := w.consumer()
	before := w.fetch(c, 1)[0]
	require.NoError(t, w.js.DeleteStream(t.Context(), w.names.batches))
	require.NoError(t, w.EnsureStreams(t.Context()))
	require.Eventually(t, func() bool {
		w.publish(1, 10)
		return w.fetch(c, 1)[0].Incarnation != before.Incarnation
	}, patience, incarnationAge/10)
}

// The server goes away twice under a live publisher, which repeats what was
// not confirmed, and a live consumer. All that was confirmed must be acked in
// the end, and nothing else must be there.
func TestRestartsUnderPublisherAndConsumerLoseNothing(t *testing.T) {
	t.Parallel()
	w := setup(t, func(c *Config) { c.AckWait = time.Second; c.RequestTimeout = time.Second })
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	const n = 300
	sent := make(map[string]bool, n)
	var group errgroup.Group
	reached := make(chan struct{}, 2)
	group.Go(func() error {
		for i := range n {
			b := newBatch(5000)
			data, err := b.Marshal()
			if err != nil {
				return err
			}
			sent[string(data)] = true
			for {
				if _, err := w.Publisher().Publish(ctx, b); err == nil {
					break
				} else if ctx.Err() != nil || fault.ClassOf(err) != fault.Unavailable {
					return err
				}
				pause(ctx)
			}
			if i == n/3 || i == 2*n/3 {
				reached <- struct{}{}
			}
		}
		return nil
	})
	stored := make(map[string]bool, n)
	c := w.consumer()
	group.Go(func() error {
		for len(stored) < n && ctx.Err() == nil {
			got, err := c.Fetch(ctx, 20, room, 50*time.Millisecond)
			if err != nil {
				pause(ctx)
			}
			for _, d := range got {
				stored[string(d.Payload)] = true
				_ = d.Ack(ctx) // lost acks bring the message again
			}
		}
		return ctx.Err()
	})
	for range 2 {
		<-reached
		w.restart(natsserver.Config{})
	}
	require.NoError(t, group.Wait())
	require.Equal(t, sent, stored)
	require.EqualValues(t, n, w.status().Messages)
	require.Eventually(t, func() bool { // acks that got lost with the connection
		got, err := c.Fetch(ctx, 100, room, 100*time.Millisecond)
		for _, d := range got {
			err = errors.Join(err, d.Ack(ctx))
		}
		return err == nil && w.status().AckFloor == n
	}, patience, 10*time.Millisecond)
}

// pause waits a moment between two attempts.
func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(10 * time.Millisecond):
	}
}

func TestDeliveryCarriesTheBatch(t *testing.T) {
	t.Parallel()
	w := setup(t)
	sent := w.publish(1, 100)[0]
	got, err := batch.Unmarshal(w.fetch(w.consumer(), 1)[0].Payload)
	require.NoError(t, err)
	require.Equal(t, sent.ID, got.ID)
	require.True(t, got.Intact())
}

func TestAWaitEndsWithTheConnection(t *testing.T) {
	t.Parallel()
	w := setup(t)
	c := w.consumer()
	ended := make(chan error, 1)
	go func() {
		_, err := c.Fetch(t.Context(), 1, room, time.Hour)
		ended <- err
	}()
	require.Eventually(t, func() bool {
		consumer, err := w.js.Consumer(t.Context(), w.names.batches, w.names.consumer)
		return err == nil && consumer.CachedInfo().NumWaiting == 1
	}, patience, time.Millisecond)
	w.server.Stop()
	select {
	case err := <-ended:
		requireUnavailable(t, err)
	case <-time.After(patience):
		t.Fatal("it still waits")
	}
}
