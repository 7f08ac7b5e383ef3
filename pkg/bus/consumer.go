package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
)

// Consumer hands out the batches on the stream. All ingesters share one
// durable consumer on the server, which gives every message to one of them at
// a time. Its methods may be called concurrently.
type Consumer struct {
	bus  *Bus
	next string // subject on which messages are asked for

	mu          sync.Mutex
	incarnation string    // of the stream; empty when unknown
	checked     time.Time // when it was asked for
	reconnects  uint64    // of the bus, at that time
}

// incarnationAge is how long the stream's creation time is believed. Within it
// a stream would have to be deleted, made anew with its consumer and filled,
// all without disturbing a fetch, for a message to get the wrong incarnation.
const incarnationAge = time.Second

// Consumer opens the shared consumer, which EnsureStreams has created. The
// error is fault.Unavailable.
func (b *Bus) Consumer(ctx context.Context) (*Consumer, error) {
	ctx, done := b.request(ctx)
	defer done()
	if _, err := b.js.Consumer(ctx, b.names.batches, b.names.consumer); err != nil {
		return nil, unavailable("open consumer "+b.names.consumer, err)
	}
	return &Consumer{bus: b, next: "$JS.API.CONSUMER.MSG.NEXT." + b.names.batches + "." + b.names.consumer}, nil
}

// Fetch returns as soon as it has maxMessages, as the next message would go
// beyond maxBytes, or wait is over; an empty answer without error means that
// there is nothing new. What was delivered before an error is returned without
// it, for the error will come again. Errors are fault.Unavailable and return
// at once, also while disconnected: callers must pause.
//
// maxBytes must be at least 2 × MaxPayload, for the server counts more than
// the payload, and refuses a request that the next message does not fit into.
//
// Nothing is lost when ctx ends in between: what the server had already sent,
// and nobody saw, is handed out again after AckWait.
func (c *Consumer) Fetch(ctx context.Context, maxMessages, maxBytes int, wait time.Duration) ([]batch.Delivery, error) {
	if least := 2 * c.bus.MaxPayload(); int64(maxBytes) < least {
		return nil, fmt.Errorf("fetch: %d bytes are less than 2 × the server's max_payload, %d", maxBytes, least)
	}
	incarnation, err := c.currentIncarnation(ctx)
	if err != nil {
		return nil, err
	}
	msgs, err := c.pull(ctx, pullRequest{Batch: maxMessages, MaxBytes: maxBytes, Expires: wait})
	if len(msgs) == 0 && errors.Is(err, errConflict) {
		// The next message alone may be beyond maxBytes, written when
		// max_payload was larger. Asked for by itself it cannot hold up the
		// others.
		msgs, err = c.pull(ctx, pullRequest{Batch: 1, Expires: wait})
	}
	if len(msgs) == 0 && err != nil {
		c.forgetIncarnation()
		return nil, unavailable("fetch from "+c.bus.names.batches, err)
	}
	deliveries := make([]batch.Delivery, len(msgs))
	for i, msg := range msgs {
		if deliveries[i], err = c.delivery(msg, incarnation); err != nil {
			return nil, fmt.Errorf("fetch from %s: %w", c.bus.names.batches, err)
		}
	}
	return deliveries, nil
}

func (c *Consumer) delivery(msg *nats.Msg, incarnation string) (batch.Delivery, error) {
	meta, err := msg.Metadata()
	if err != nil {
		return batch.Delivery{}, err
	}
	m := c.bus.metrics
	m.fetched.Inc()
	m.fetchedBytes.Add(float64(len(msg.Data)))
	if meta.NumDelivered > 1 {
		m.redelivered.Inc()
	}
	return batch.Delivery{
		Position: positionOf(meta, incarnation),
		Subject:  msg.Subject,
		Payload:  msg.Data,
		Ack:      func(context.Context) error { return c.ack(msg, meta.Sequence.Stream) },
		Extend: func() error {
			return unavailable(fmt.Sprintf("extend message %d", meta.Sequence.Stream), msg.InProgress())
		},
	}, nil
}

func positionOf(meta *nats.MsgMetadata, incarnation string) batch.Position {
	return batch.Position{
		Sequence:    meta.Sequence.Stream,
		Incarnation: incarnation,
		Delivered:   meta.NumDelivered,
		StoredAt:    meta.Timestamp.UTC(),
	}
}

// ack sends the acknowledgement without waiting for an answer: if it gets lost
// with the connection the message comes again, and the ledger knows it. While
// disconnected it fails.
func (c *Consumer) ack(msg *nats.Msg, sequence uint64) error {
	err := msg.Ack()
	if err == nil || errors.Is(err, nats.ErrMsgAlreadyAckd) {
		c.bus.metrics.acks.WithLabelValues("sent").Inc()
		return nil
	}
	c.bus.metrics.acks.WithLabelValues("failed").Inc()
	return fault.Wrap(fault.Unavailable, fmt.Errorf("ack message %d: %w", sequence, err))
}

// currentIncarnation returns the stream's creation time, which tells it from
// one recreated under its name with sequences that begin again.
func (c *Consumer) currentIncarnation(ctx context.Context) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	reconnects := c.bus.reconnects.Load()
	if c.incarnation != "" && c.reconnects == reconnects && time.Since(c.checked) < incarnationAge {
		return c.incarnation, nil
	}
	ctx, done := c.bus.request(ctx)
	defer done()
	now := time.Now()
	stream, err := c.bus.js.Stream(ctx, c.bus.names.batches)
	if err != nil {
		return "", unavailable("ask for stream "+c.bus.names.batches, err)
	}
	c.incarnation = incarnation(stream.CachedInfo())
	c.checked, c.reconnects = now, reconnects
	return c.incarnation, nil
}

func (c *Consumer) forgetIncarnation() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.incarnation = ""
}
