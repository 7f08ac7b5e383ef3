// Package bus is the system's way to NATS JetStream: the stream of batches,
// the dead letters, the holds and the buckets, with a publisher, a consumer, a
// trimmer and a guard over them.
//
// Its invariant: what the publisher reported as stored lies on the server's
// disk, and stays there until the consumer acked it. The package therefore
// never buffers a publish, never lets a stream discard by age or size, and
// purges nothing above the consumer's ack floor. It must not know what a
// batch means nor talk to the database; it is the only importer of nats.go.
package bus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
)

// Bus is one connection to NATS. Its methods may be called concurrently.
type Bus struct {
	cfg        Config
	names      names
	nc         *nats.Conn
	js         jetstream.JetStream
	log        *slog.Logger
	metrics    *metrics
	reconnects atomic.Uint64
	waiting    waiting
}

// dialPause is the wait between two attempts of the first connect.
const dialPause = 250 * time.Millisecond

// Connect connects to NATS. It tries until ctx ends, for the server may start
// later than we do; only refused credentials end it at once. After that the
// connection is kept up for ever. The streams are neither created nor checked:
// see EnsureStreams and Guard.
func Connect(ctx context.Context, cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Bus, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	b := &Bus{cfg: cfg, names: cfg.names(), log: log, metrics: newMetrics(reg)}
	options, err := b.options()
	if err != nil {
		return nil, err
	}
	for {
		if b.nc, err = nats.Connect(cfg.URL, options...); err == nil {
			break
		}
		if errors.Is(err, nats.ErrAuthorization) {
			return nil, fmt.Errorf("connect to nats as %q: %w", cfg.User, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("connect to nats: %w: %w", ctx.Err(), err)
		case <-time.After(dialPause):
		}
	}
	b.metrics.connected.Set(1)
	if b.js, err = jetstream.New(b.nc); err != nil {
		b.nc.Close()
		return nil, fmt.Errorf("open jetstream: %w", err)
	}
	return b, nil
}

func (b *Bus) options() ([]nats.Option, error) {
	options := []nats.Option{
		nats.Name(b.cfg.Name),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(dialPause),
		// A new password arrives by file; until it does, keep trying.
		nats.IgnoreAuthErrorAbort(),
		// No buffer for what is published while disconnected: such a publish
		// fails at once instead of looking sent.
		nats.ReconnectBufSize(-1),
		// A peer that vanished without a word is noticed within half a minute.
		nats.PingInterval(10 * time.Second),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			b.metrics.connected.Set(0)
			b.waiting.lose()
			if err != nil { // nil when we closed it ourselves
				b.log.Warn("nats connection lost", "err", err)
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			b.reconnects.Add(1)
			b.metrics.connected.Set(1)
			b.metrics.reconnects.Inc()
			b.log.Info("nats connection restored", "server", nc.ConnectedServerName())
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			b.log.Warn("nats reported an error", "err", err)
		}),
	}
	if b.cfg.InProcess != nil {
		options = append(options, nats.InProcessServer(b.cfg.InProcess))
	}
	if b.cfg.CAFile != "" {
		options = append(options, nats.RootCAs(b.cfg.CAFile))
	}
	if b.cfg.User != "" {
		if _, err := os.ReadFile(b.cfg.PasswordFile); err != nil {
			return nil, fmt.Errorf("read nats password: %w", err)
		}
		options = append(options,
			nats.CustomInboxPrefix("_INBOX."+b.cfg.User),
			nats.UserInfoHandler(func() (string, string) {
				password, err := os.ReadFile(b.cfg.PasswordFile)
				if err != nil {
					b.log.Error("nats password is unreadable", "err", err)
				}
				return b.cfg.User, string(bytes.TrimSpace(password))
			}))
	}
	return options, nil
}

// Close flushes what was acked and closes the connection. Whoever still waits
// for an answer gets an error.
func (b *Bus) Close(ctx context.Context) error {
	defer b.nc.Close()
	if !b.nc.IsConnected() {
		return nil
	}
	ctx, done := b.request(ctx)
	defer done()
	if err := b.nc.FlushWithContext(ctx); err != nil {
		return fmt.Errorf("flush nats connection: %w", err)
	}
	return nil
}

// Ready returns nil if the server answers for the stream of batches. The error
// is fault.Unavailable.
func (b *Bus) Ready(ctx context.Context) error {
	ctx, done := b.request(ctx)
	defer done()
	_, err := b.js.Stream(ctx, b.names.batches)
	return unavailable("ask for stream "+b.names.batches, err)
}

// AckWait returns how long a message may be out without a sign before it is
// handed out again.
func (b *Bus) AckWait() time.Duration { return b.cfg.AckWait }

// MaxPayload returns the largest message in bytes that the connected server
// takes. An encoded batch is limited to MaxPayload − Headroom, and a fetch
// needs room for 2 × MaxPayload.
func (b *Bus) MaxPayload() int64 { return b.nc.MaxPayload() }

// Status is what the streams hold, as the server counts it.
type Status struct {
	Incarnation   string // tells this stream from one recreated under its name, as in batch.Position
	Bytes         uint64
	MaxBytes      int64
	Messages      uint64
	FirstSequence uint64
	FirstTime     time.Time
	LastSequence  uint64
	AckFloor      uint64 // every message up to here is acked
	Delivered     uint64 // every message up to here has been handed out
	Pending       uint64 // not handed out yet
	AckPending    int    // handed out, not acked
	Redelivered   int    // of AckPending, those handed out more than once
	DeadLetters   uint64
}

// Status asks the server for the state of streams and consumer. Errors are
// fault.Unavailable.
func (b *Bus) Status(ctx context.Context) (Status, error) {
	ctx, done := b.request(ctx)
	defer done()
	stream, err := b.js.Stream(ctx, b.names.batches)
	if err != nil {
		return Status{}, unavailable("ask for stream "+b.names.batches, err)
	}
	consumer, err := stream.Consumer(ctx, b.names.consumer)
	if err != nil {
		return Status{}, unavailable("ask for consumer "+b.names.consumer, err)
	}
	letters, err := b.DeadLetters().Count(ctx)
	if err != nil {
		return Status{}, err
	}
	si, ci := stream.CachedInfo(), consumer.CachedInfo()
	return Status{
		Incarnation:   incarnation(si),
		Bytes:         si.State.Bytes,
		MaxBytes:      si.Config.MaxBytes,
		Messages:      si.State.Msgs,
		FirstSequence: si.State.FirstSeq,
		FirstTime:     si.State.FirstTime,
		LastSequence:  si.State.LastSeq,
		AckFloor:      ci.AckFloor.Stream,
		Delivered:     ci.Delivered.Stream,
		Pending:       ci.NumPending,
		AckPending:    ci.NumAckPending,
		Redelivered:   ci.NumRedelivered,
		DeadLetters:   letters,
	}, nil
}
