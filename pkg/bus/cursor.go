package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// cursorIdle is how long the server keeps a cursor that nobody asks. One that
// is gone is made anew, which costs two requests.
const cursorIdle = time.Minute

// cursorWait is how long a fetch may take that the server thought it could
// answer at once.
const cursorWait = 2 * time.Second

// cursor is a short-lived consumer on the server that wants no acks and keeps
// its state in memory. The client library has such ones too, and they recover
// by themselves, but fetch by count or by bytes only, never by both.
type cursor struct {
	consumer  *Consumer // for its pull
	delivered uint64    // messages received
	pending   uint64    // messages to come, by the server's last word
}

// cursor makes a cursor on a stream, over what of says.
func (b *Bus) cursor(ctx context.Context, stream string, of jetstream.ConsumerConfig) (*cursor, error) {
	of.Name = "reader-" + uuid.NewString()
	of.AckPolicy = jetstream.AckNonePolicy
	of.InactiveThreshold = cursorIdle
	of.MemoryStorage = true
	consumer, err := b.js.CreateConsumer(ctx, stream, of)
	if err != nil {
		return nil, unavailable("make a reader of "+stream, err)
	}
	info := consumer.CachedInfo()
	return &cursor{
		consumer: &Consumer{bus: b, next: "$JS.API.CONSUMER.MSG.NEXT." + stream + "." + info.Name},
		pending:  info.NumPending,
	}, nil
}

// open makes a cursor at the next sequence. The stream is looked at after it
// was made, so a stream that was made anew before is noticed.
func (r *Reader) open(ctx context.Context) error {
	ctx, done := r.bus.request(ctx)
	defer done()
	made, err := r.bus.cursor(ctx, r.bus.names.batches, jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:   r.next,
	})
	if err != nil {
		return err
	}
	if _, err := r.stream(ctx); err != nil {
		return err
	}
	r.cursor = made
	return nil
}

// fetch returns what came in order, perhaps with an error: without acks the
// server does not repeat what was lost on the way.
func (c *cursor) fetch(ctx context.Context, maxMessages, maxBytes int) ([]*nats.Msg, error) {
	if c.pending == 0 {
		return nil, nil
	}
	if c.pending < uint64(maxMessages) {
		maxMessages = int(c.pending)
	}
	msgs, err := c.consumer.pull(ctx, pullRequest{Batch: maxMessages, MaxBytes: maxBytes, Expires: cursorWait})
	if len(msgs) == 0 && errors.Is(err, errConflict) { // the next message alone is larger
		msgs, err = c.consumer.pull(ctx, pullRequest{Batch: 1, Expires: cursorWait})
	}
	for i, msg := range msgs {
		meta, err := msg.Metadata()
		if err != nil {
			return msgs[:i], err
		}
		if meta.Sequence.Consumer != c.delivered+1 {
			return msgs[:i], fmt.Errorf("delivery %d follows on %d", meta.Sequence.Consumer, c.delivered)
		}
		c.delivered, c.pending = meta.Sequence.Consumer, meta.NumPending
	}
	if errors.Is(err, errConflict) && len(msgs) > 0 { // the next message did not fit in
		err = nil
	}
	return msgs, err
}
