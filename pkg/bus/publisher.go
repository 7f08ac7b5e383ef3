package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pganalytics/pkg/batch"
)

// Publisher puts batches onto the stream.
type Publisher struct{ bus *Bus }

// Publisher returns the publisher of this connection.
func (b *Bus) Publisher() *Publisher { return &Publisher{bus: b} }

// Publish returns nil only after the server has said that the batch lies on
// its disk; duplicate tells that it lay there before. Every error but
// fault.TooLarge is fault.Unavailable and leaves the outcome open: the same
// batch must be sent again, and being the same message it is stored once.
// Publish never repeats by itself, for the sender has the longer patience and
// the batch on its disk.
func (p *Publisher) Publish(ctx context.Context, b *batch.Batch) (duplicate bool, err error) {
	begin := time.Now()
	data, err := b.MarshalWithin(int(p.bus.MaxPayload()) - Headroom)
	switch {
	case errors.Is(err, batch.ErrTooLarge):
		p.observe(resultTooLarge, begin)
		return false, tooLarge(err)
	case err != nil:
		return false, err
	}
	ack, err := p.send(ctx, b.CollectorID, data, b.MessageID())
	if err != nil {
		e, result := classifyPublish(err)
		p.observe(result, begin)
		return false, fmt.Errorf("publish batch %s of %d bytes: %w", b.ID, len(data), e)
	}
	if ack.Duplicate {
		p.observe(resultDuplicate, begin)
	} else {
		p.observe(resultStored, begin)
	}
	return ack.Duplicate, nil
}

func (p *Publisher) send(ctx context.Context, collector uuid.UUID, data []byte, messageID string) (*jetstream.PubAck, error) {
	ctx, done := p.bus.request(ctx)
	defer done()
	return p.bus.js.PublishMsg(ctx,
		&nats.Msg{Subject: p.bus.names.batch + collector.String(), Data: data},
		jetstream.WithMsgID(messageID),
		// If another stream has taken over the subject, the server refuses.
		jetstream.WithExpectStream(p.bus.names.batches),
		jetstream.WithRetryAttempts(0))
}

// Republish puts a message that was on the stream before onto it again and
// returns its sequence, after the server has said that it lies on its disk. It
// is a message of its own: the duplicate window does not hold it for the first
// one. Errors are fault.Unavailable and leave the outcome open.
func (p *Publisher) Republish(ctx context.Context, collector uuid.UUID, payload []byte) (sequence uint64, err error) {
	begin := time.Now()
	ack, err := p.send(ctx, collector, payload, "again-"+uuid.NewString())
	if err != nil {
		e, result := classifyPublish(err)
		p.observe(result, begin)
		return 0, fmt.Errorf("publish %d bytes again: %w", len(payload), e)
	}
	p.observe(resultStored, begin)
	return ack.Sequence, nil
}

func (p *Publisher) observe(r result, begin time.Time) {
	p.bus.metrics.publish.WithLabelValues(string(r)).Observe(time.Since(begin).Seconds())
}
