package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/bus"
	"pganalytics/pkg/bus/natsserver"
)

// stream is a NATS server in this process, as `serve` has it, that services
// reach over the loopback.
type stream struct {
	server *natsserver.Server
	nc     *nats.Conn
	js     jetstream.JetStream
	log    *slog.Logger
}

func startStream(dir string) (s *stream, err error) {
	s = &stream{log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))}
	if s.server, err = natsserver.Start(natsserver.Config{StoreDir: filepath.Join(dir, "nats"), Listen: true}, s.log); err != nil {
		return nil, err
	}
	if s.nc, err = nats.Connect(s.server.URL()); err == nil {
		s.js, err = jetstream.New(s.nc)
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

func (s *stream) stop() {
	if s.nc != nil {
		s.nc.Close()
	}
	s.server.Stop()
}

// backlog is a stream of batches that no ingester has seen.
type backlog struct {
	stream  *stream
	bus     *bus.Bus
	prefix  string
	shape   shape
	batches int
	size    int64 // bytes that the stream may hold
}

func (b *backlog) rows() int { return b.batches * b.shape.rows }

// deadLetterBytes is the size of the stream of dead letters, which stays empty.
const deadLetterBytes = 1 << 20

// newBacklog makes the streams for so many batches. They hold twice as much,
// for above 80 % what is stored would be purged, and is wanted for the next
// run.
func (s *stream) newBacklog(ctx context.Context, prefix string, sh shape, batches int) (*backlog, error) {
	sample, err := sh.batch(uuid.New(), sh.payload(0, rand.New(rand.NewPCG(0, 0))), time.Now())
	if err != nil {
		return nil, err
	}
	b := &backlog{stream: s, prefix: prefix, shape: sh, batches: batches}
	// 1 KiB: what the stream and the envelope add to a message's tuples.
	b.size = 64<<20 + 2*int64(batches)*int64(sample.TupleBytes()+1<<10)
	b.bus, err = bus.Connect(ctx, bus.Config{
		URL: s.server.URL(), InProcess: s.server, Prefix: prefix, BatchesMaxBytes: b.size, DeadLettersMaxBytes: deadLetterBytes,
	}, s.log, prometheus.NewRegistry())
	if err != nil {
		return nil, err
	}
	return b, b.bus.EnsureStreams(ctx)
}

// fillers publish at once: the stream syncs each message, but they are made
// meanwhile.
const fillers = 32

// fill publishes the batches.
func (b *backlog) fill(ctx context.Context) error {
	collector, base := uuid.New(), time.Now().UTC().Truncate(time.Second).Add(-time.Duration(b.batches/servers)*time.Second)
	publisher := b.bus.Publisher()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(fillers)
	for i := range b.batches {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			p := b.shape.payload(i, rand.New(rand.NewPCG(1, uint64(i))))
			message, err := b.shape.batch(collector, p, base.Add(p.after))
			if err != nil {
				return err
			}
			_, err = publisher.Publish(ctx, message)
			return err
		})
	}
	return g.Wait()
}

// batch is what the gateway makes of a push of the payload.
func (sh shape) batch(collector uuid.UUID, p payload, at time.Time) (*batch.Batch, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	seconds, nanos := id.Time().UnixTime()
	server := batch.ServerID(collector, p.server)
	b := &batch.Batch{
		CollectorID: collector, ID: id, SentAt: time.Unix(seconds, nanos).UTC(), ReceivedAt: time.Now().UTC(),
		Sections: []batch.Section{{
			Family: sh.family, Server: p.server, ServerID: server, Columns: sh.columns(),
			Rows: sh.rows, MinTime: at, MaxTime: at, Tuples: p.tuples(at, server),
		}},
	}
	b.Seal()
	return b, nil
}

// hold lets the consumer begin again with the first batch, once release is
// called: until then ingesters that have started wait.
func (b *backlog) hold(ctx context.Context) error {
	if err := b.stream.js.DeleteConsumer(ctx, b.name(), consumer); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return err
	}
	if err := b.bus.EnsureStreams(ctx); err != nil {
		return err
	}
	_, err := b.stream.js.PauseConsumer(ctx, b.name(), consumer, time.Now().Add(time.Hour))
	return err
}

// consumer is the name of the ingesters' consumer.
const consumer = "ingester"

// awaitLoaders waits until so many loaders ask for batches.
func (b *backlog) awaitLoaders(ctx context.Context, loaders int) error {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		c, err := b.stream.js.Consumer(ctx, b.name(), consumer)
		if err != nil {
			return err
		}
		waiting := c.CachedInfo().NumWaiting
		if waiting >= loaders {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d of %d loaders ask for batches after a minute", waiting, loaders)
		}
	}
}

// release hands out batches from now on.
func (b *backlog) release(ctx context.Context) error {
	_, err := b.stream.js.ResumeConsumer(ctx, b.name(), consumer)
	return err
}

func (b *backlog) name() string { return b.prefix + "_BATCHES" }

// flags tell a service where the stream is.
func (b *backlog) flags() []string {
	return []string{
		"--nats-url", b.stream.server.URL(), "--nats-prefix", b.prefix,
		"--nats-batches-max-bytes", fmt.Sprint(b.size), "--nats-dead-letters-max-bytes", fmt.Sprint(deadLetterBytes),
	}
}
