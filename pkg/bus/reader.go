package bus

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
)

// Reader reads a part of the stream again, in order, beside the shared consumer
// and without touching what that has acked. It keeps nothing from being purged:
// that is what a Hold is for, to be taken first. Its methods must not be called
// concurrently.
type Reader struct {
	bus         *Bus
	incarnation string
	next, to    uint64
	missing     uint64
	cursor      *cursor // nil until it is needed
}

// Reader returns a reader of the sequences from and to and all between them. A
// to beyond the last one on the stream stands for that one. The error is
// fault.Unavailable.
func (b *Bus) Reader(ctx context.Context, from, to uint64) (*Reader, error) {
	ctx, done := b.request(ctx)
	defer done()
	stream, err := b.js.Stream(ctx, b.names.batches)
	if err != nil {
		return nil, unavailable("ask for stream "+b.names.batches, err)
	}
	info := stream.CachedInfo()
	r := &Reader{bus: b, incarnation: incarnation(info), next: max(from, 1), to: min(to, info.State.LastSeq)}
	r.skipTo(info.State.FirstSeq)
	return r, nil
}

// Incarnation returns that of the stream which is read. Sequences of another
// one mean nothing here.
func (r *Reader) Incarnation() string { return r.incarnation }

// Missing returns how many of the sequences up to the last one returned are no
// longer on the stream; before the first Next, how many of them had gone from
// its beginning.
func (r *Reader) Missing() uint64 { return r.missing }

// Next returns the next messages: at most maxMessages, and at most maxBytes
// unless the next one alone is larger. None without error means that all have
// been returned. After fault.Unavailable it may be called again, and goes on
// after the last message that it has returned; fault.Conflict means that the
// stream was deleted and made anew. Ack and Extend of these deliveries do
// nothing.
func (r *Reader) Next(ctx context.Context, maxMessages, maxBytes int) ([]batch.Delivery, error) {
	for r.next <= r.to {
		msgs, err := r.read(ctx, maxMessages, maxBytes)
		if err != nil {
			return nil, err
		}
		deliveries := r.deliveries(msgs)
		if len(deliveries) > 0 {
			return deliveries, nil
		}
		if err := r.finish(ctx); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// read fetches from the cursor, and once more from a new one if it is gone:
// after a pause, or with the server that had it.
func (r *Reader) read(ctx context.Context, maxMessages, maxBytes int) ([]*nats.Msg, error) {
	maxBytes = max(1, maxBytes) // to the server 0 would mean: as many as there are
	maxMessages = int(min(uint64(max(1, maxMessages)), r.to-r.next+1))
	if r.cursor != nil {
		msgs, err := r.cursor.fetch(ctx, maxMessages, maxBytes)
		if err == nil {
			return msgs, nil
		}
		r.cursor = nil
		if len(msgs) > 0 {
			return msgs, nil
		}
	}
	if err := r.open(ctx); err != nil {
		return nil, err
	}
	msgs, err := r.cursor.fetch(ctx, maxMessages, maxBytes)
	if err != nil {
		r.cursor = nil
		if len(msgs) == 0 {
			return nil, unavailable(fmt.Sprintf("read %s from %d on", r.bus.names.batches, r.next), err)
		}
	}
	return msgs, nil
}

// deliveries takes the messages that belong to the part, and counts what is
// missing before each.
func (r *Reader) deliveries(msgs []*nats.Msg) []batch.Delivery {
	var deliveries []batch.Delivery
	for _, msg := range msgs {
		meta, err := msg.Metadata()
		if err != nil || meta.Sequence.Stream > r.to { // the cursor has read the metadata before
			break
		}
		r.skipTo(meta.Sequence.Stream)
		r.next++
		r.bus.metrics.reread.Inc()
		deliveries = append(deliveries, readAgain(msg, meta, r.incarnation))
	}
	return deliveries
}

// readAgain is a message that stays where it is.
func readAgain(msg *nats.Msg, meta *nats.MsgMetadata, incarnation string) batch.Delivery {
	return batch.Delivery{
		Position: positionOf(meta, incarnation),
		Subject:  msg.Subject,
		Payload:  msg.Data,
		Ack:      func(context.Context) error { return nil },
		Extend:   func() error { return nil },
	}
}

// skipTo counts what lies before a sequence as missing.
func (r *Reader) skipTo(sequence uint64) {
	if sequence = min(sequence, r.to+1); sequence > r.next {
		r.missing += sequence - r.next
		r.next = sequence
	}
}

// finish ends the reading if nothing is left of the part. The cursor may live
// on a replica that lags, so that it has no more to give means nothing: the
// stream's leader is asked.
func (r *Reader) finish(ctx context.Context) error {
	ctx, done := r.bus.request(ctx)
	defer done()
	stream, err := r.stream(ctx)
	if err != nil {
		return err
	}
	msg, err := stream.GetMsg(ctx, r.next, jetstream.WithGetMsgSubject(r.bus.names.batch+"*"))
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound), err == nil && msg.Sequence > r.to:
		r.skipTo(r.to + 1)
		return nil
	case err == nil:
		err = fmt.Errorf("message %d does not arrive", msg.Sequence)
	}
	r.cursor = nil
	return unavailable("read "+r.bus.names.batches, err)
}

// stream returns the stream if it is still the one that is read.
func (r *Reader) stream(ctx context.Context) (jetstream.Stream, error) {
	stream, err := r.bus.js.Stream(ctx, r.bus.names.batches)
	if err != nil {
		return nil, unavailable("ask for stream "+r.bus.names.batches, err)
	}
	if now := incarnation(stream.CachedInfo()); now != r.incarnation {
		return nil, fault.Wrap(fault.Conflict, fmt.Errorf("read stream of %s: it is of %s now", r.incarnation, now))
	}
	return stream, nil
}

// Newest returns a reader of the newest messages that were handed out, of as
// many that n of them are acked, as far as the stream still has them. At most
// unacked of them are not. The ack floor would not do: one message that waits
// keeps it where it is, however many after it are acked. Errors are
// fault.Unavailable.
func (b *Bus) Newest(ctx context.Context, n int) (r *Reader, unacked int, err error) {
	delivered, unacked, of, err := b.delivered(ctx)
	if err != nil {
		return nil, 0, err
	}
	if r, err = b.Reader(ctx, delivered-min(uint64(n+unacked), delivered)+1, delivered); err != nil {
		return nil, 0, err
	}
	if r.incarnation != of {
		return nil, 0, unavailable("read what is acked", errors.New("the stream was made anew at this moment"))
	}
	return r, unacked, nil
}

// delivered returns the last sequence that the consumer has handed out and how
// many it waits for, with the incarnation of its stream.
func (b *Bus) delivered(ctx context.Context) (last uint64, unacked int, of string, err error) {
	ctx, done := b.request(ctx)
	defer done()
	stream, err := b.js.Stream(ctx, b.names.batches)
	if err != nil {
		return 0, 0, "", unavailable("ask for stream "+b.names.batches, err)
	}
	consumer, err := stream.Consumer(ctx, b.names.consumer)
	if err != nil {
		return 0, 0, "", unavailable("ask for consumer "+b.names.consumer, err)
	}
	info := consumer.CachedInfo()
	return info.Delivered.Stream, info.NumAckPending, incarnation(stream.CachedInfo()), nil
}
