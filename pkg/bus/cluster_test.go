package bus

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
	"pganalytics/pkg/internal/testnats"
)

// clusterPatience bounds what needs an election, which takes up to 10 s, on a
// machine that has other things to do.
const clusterPatience = 2 * time.Minute

// setupCluster starts three servers and connects to them, with all streams
// made of three replicas.
func setupCluster(t *testing.T) (*testnats.Cluster, *world) {
	t.Helper()
	cluster := testnats.StartCluster(t)
	w := &world{t: t, cfg: Config{
		URL: cluster.URL(), Replicas: 3, BatchesMaxBytes: 64 << 20, DeadLettersMaxBytes: 32 << 20,
		RequestTimeout: 2 * time.Second, AckWait: 5 * time.Second,
	}}
	w.Bus = w.connect()
	require.NoError(t, w.EnsureStreams(t.Context()))
	return cluster, w
}

// pushers publish until they are stopped, and repeat what is not confirmed.
type pushers struct {
	t       *testing.T
	stop    context.CancelFunc
	stopped sync.WaitGroup

	mu     sync.Mutex
	acked  map[string]bool // by message id
	failed int
}

func (w *world) push(n int) *pushers {
	ctx, stop := context.WithCancel(w.t.Context())
	p := &pushers{t: w.t, stop: stop, acked: map[string]bool{}}
	for range n {
		p.stopped.Go(func() {
			for ctx.Err() == nil {
				p.one(ctx, w.Publisher(), newBatch(1000))
			}
		})
	}
	w.t.Cleanup(func() { p.end() })
	return p
}

// one publishes a batch until it is acked.
func (p *pushers) one(ctx context.Context, publisher *Publisher, b *batch.Batch) {
	for {
		_, err := publisher.Publish(context.WithoutCancel(ctx), b)
		p.mu.Lock()
		switch {
		case err == nil:
			p.acked[b.MessageID()] = true
		case fault.ClassOf(err) == fault.Unavailable:
			p.failed++
		default:
			p.t.Errorf("a publish failed for good: %v", err)
		}
		p.mu.Unlock()
		if err == nil || ctx.Err() != nil {
			return
		}
		pause(ctx)
	}
}

func (p *pushers) counts() (acked, failed int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.acked), p.failed
}

// end stops the pushers and returns what was acked.
func (p *pushers) end() map[string]bool {
	p.stop()
	p.stopped.Wait()
	return p.acked
}

// awaitAcked waits until n more batches are acked.
func (p *pushers) awaitAcked(n int) {
	p.t.Helper()
	before, _ := p.counts()
	require.Eventually(p.t, func() bool { acked, _ := p.counts(); return acked >= before+n },
		clusterPatience, 20*time.Millisecond)
}

// taker consumes the stream for the life of the test, like an ingester.
type taker struct {
	mu  sync.Mutex
	got map[string]bool // by message id
}

func (w *world) takeAll() *taker {
	w.t.Helper()
	c := w.consumer()
	tk := &taker{got: map[string]bool{}}
	ctx, stop := context.WithCancel(w.t.Context())
	var stopped sync.WaitGroup
	stopped.Go(func() {
		for ctx.Err() == nil {
			deliveries, err := c.Fetch(ctx, 500, room, 100*time.Millisecond)
			if err != nil {
				pause(ctx)
			}
			for _, d := range deliveries {
				b, err := batch.Unmarshal(d.Payload)
				if err != nil {
					w.t.Errorf("message %d: %v", d.Sequence, err)
					return
				}
				tk.mu.Lock()
				tk.got[b.MessageID()] = true
				tk.mu.Unlock()
				_ = d.Ack(ctx) // lost acks bring the message again
			}
		}
	})
	w.t.Cleanup(func() { stop(); stopped.Wait() })
	return tk
}

// requireAll requires that everything acked to the pushers comes to the taker,
// and that the taker's acks arrive.
func (w *world) requireAll(tk *taker, acked map[string]bool) {
	w.t.Helper()
	require.Eventually(w.t, func() bool {
		s, err := w.Status(w.t.Context())
		return err == nil && s.AckFloor == s.LastSequence
	}, clusterPatience, 50*time.Millisecond)
	tk.mu.Lock()
	defer tk.mu.Unlock()
	for id := range acked {
		require.True(w.t, tk.got[id], "an acked batch is gone")
	}
}

// Not parallel to the other tests: six more servers would make the short waits
// of those too short.
func TestThreeServers(t *testing.T) {
	t.Run("the death of the leader loses nothing that was acked", theDeathOfTheLeader)
	t.Run("without a quorum nothing is acked and all comes back", withoutAQuorum)
}

func theDeathOfTheLeader(t *testing.T) {
	t.Parallel()
	cluster, w := setupCluster(t)
	tk, p := w.takeAll(), w.push(4)
	p.awaitAcked(50)
	leader := cluster.Leader(w.names.batches)
	cluster.Kill(leader)
	p.awaitAcked(50) // two of three go on
	require.NotEqual(t, leader, cluster.Leader(w.names.batches))
	cluster.Start(leader)
	p.awaitAcked(50)
	w.requireAll(tk, p.end())
}

func withoutAQuorum(t *testing.T) {
	t.Parallel()
	cluster, w := setupCluster(t)
	tk, p := w.takeAll(), w.push(4)
	p.awaitAcked(50)
	// The leader stays: alone it could go on if anything let it.
	others := cluster.Others(cluster.Leader(w.names.batches))
	cluster.Kill(others[0])
	p.awaitAcked(50) // two of three go on
	cluster.Kill(others[1])
	alone, refused := p.counts()
	require.Eventually(t, func() bool { _, failed := p.counts(); return failed >= refused+20 },
		clusterPatience, 20*time.Millisecond)
	_, err := w.Publisher().Publish(t.Context(), newBatch(10))
	requireUnavailable(t, err)
	acked, _ := p.counts()
	require.LessOrEqual(t, acked, alone+4, "one for each pusher was under way")

	cluster.Start(others[1])
	p.awaitAcked(50)
	cluster.Start(others[0])
	p.awaitAcked(50)
	w.requireAll(tk, p.end())
}
