package bus

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
)

// headsAtOnce is how many heads are asked for in one request: a head is below
// a kilobyte.
const headsAtOnce = 500

// Heads calls each with the heads of the letters that lie there now, oldest
// first, until it returns false or an error. They can be of one collector, after
// a sequence among the letters, or buried since a time; nil and zero mean all,
// and with a sequence the time is not heeded. Payloads stay on the server. Other errors than
// those of each are fault.Unavailable.
func (d *DeadLetters) Heads(ctx context.Context, collector *uuid.UUID, after uint64, since time.Time, each func(batch.FiledLetter) (more bool, err error)) error {
	of := jetstream.ConsumerConfig{FilterSubject: d.bus.names.dead + ">", HeadersOnly: true}
	if collector != nil {
		of.FilterSubject = d.bus.names.dead + collector.String() + ".>"
	}
	switch {
	case after > 0:
		of.DeliverPolicy, of.OptStartSeq = jetstream.DeliverByStartSequencePolicy, after+1
	case !since.IsZero():
		of.DeliverPolicy, of.OptStartTime = jetstream.DeliverByStartTimePolicy, &since
	}
	return d.bus.each(ctx, d.bus.names.deadLetters, of, headsAtOnce, 0, func(msg *nats.Msg, meta *nats.MsgMetadata) (bool, error) {
		return each(d.filed(msg.Subject, msg.Header, nil, meta.Sequence.Stream, meta.Timestamp))
	})
}

// each goes through what a stream holds now.
func (b *Bus) each(ctx context.Context, stream string, of jetstream.ConsumerConfig, maxMessages, maxBytes int, f func(*nats.Msg, *nats.MsgMetadata) (more bool, err error)) error {
	made, done := b.request(ctx)
	cursor, err := b.cursor(made, stream, of)
	done()
	if err != nil {
		return err
	}
	for cursor.pending > 0 {
		msgs, err := cursor.fetch(ctx, maxMessages, maxBytes)
		if err != nil {
			return unavailable("read "+stream, err)
		}
		if len(msgs) == 0 { // deleted since they were counted
			return nil
		}
		for _, msg := range msgs {
			meta, err := msg.Metadata()
			if err != nil {
				return unavailable("read "+stream, err)
			}
			if more, err := f(msg, meta); err != nil || !more {
				return err
			}
		}
	}
	return nil
}

// letterID is what names a letter: eight bytes of its digest, or its whole
// subject behind the common part.
var letterID = regexp.MustCompile(`^([0-9a-f-]{36}\.[0-9a-f-]{36}\.)?[0-9a-f]{16}$`)

// Get returns the letter of that ID, or of the end of its subject that begins
// with the collector. The error is fault.NotFound when there is none,
// fault.Conflict when the ID is that of several, else fault.Unavailable.
func (d *DeadLetters) Get(ctx context.Context, id string) (batch.FiledLetter, error) {
	if !letterID.MatchString(id) {
		return batch.FiledLetter{}, fault.New(fault.NotFound, "not_found", fmt.Sprintf("%q is no id of a letter", id))
	}
	filter := d.bus.names.dead + id
	if !strings.Contains(id, ".") {
		filter = d.bus.names.dead + "*.*." + id
	}
	ctx, done := d.bus.request(ctx)
	defer done()
	stream, err := d.bus.js.Stream(ctx, d.bus.names.deadLetters)
	if err != nil {
		return batch.FiledLetter{}, unavailable("ask for stream "+d.bus.names.deadLetters, err)
	}
	msg, err := stream.GetMsg(ctx, 1, jetstream.WithGetMsgSubject(filter))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return batch.FiledLetter{}, fault.New(fault.NotFound, "not_found", "there is no letter "+id)
	}
	if err != nil {
		return batch.FiledLetter{}, unavailable("read letter "+id, err)
	}
	other, err := stream.GetMsg(ctx, msg.Sequence+1, jetstream.WithGetMsgSubject(filter))
	switch {
	case err == nil:
		return batch.FiledLetter{}, fault.New(fault.Conflict, "conflict", fmt.Sprintf("letters %s and %s have that id: give one of these instead",
			strings.TrimPrefix(msg.Subject, d.bus.names.dead), strings.TrimPrefix(other.Subject, d.bus.names.dead)))
	case !errors.Is(err, jetstream.ErrMsgNotFound):
		return batch.FiledLetter{}, unavailable("read letter "+id, err)
	}
	return d.filed(msg.Subject, msg.Header, msg.Data, msg.Sequence, msg.Time), nil
}

// filed makes a letter of a message; its payload is nil if only the head was
// read, and then the server tells its size.
func (d *DeadLetters) filed(subject string, header nats.Header, payload []byte, sequence uint64, at time.Time) batch.FiledLetter {
	l := batch.FiledLetter{
		Letter: letterFrom(header, payload), ID: subject[strings.LastIndexByte(subject, '.')+1:],
		Subject: subject, Sequence: sequence, BuriedAt: at.UTC(), Size: len(payload),
	}
	if payload == nil {
		l.Size, _ = strconv.Atoi(header.Get(nats.MsgSize))
	}
	return l
}

// Delete removes a letter for good; one that is gone is no error, and one that
// was buried anew since it was read stays. The error is fault.Unavailable.
func (d *DeadLetters) Delete(ctx context.Context, l batch.FiledLetter) error {
	ctx, done := d.bus.request(ctx)
	defer done()
	stream, err := d.bus.js.Stream(ctx, d.bus.names.deadLetters)
	if err == nil {
		// Subject and sequence, so that in a stream that was made anew another
		// letter's number is not taken for this one's.
		err = stream.Purge(ctx, jetstream.WithPurgeSubject(l.Subject), jetstream.WithPurgeSequence(l.Sequence+1))
	}
	return unavailable("delete letter "+l.ID, err)
}

// OfCollector calls f with the messages of one collector that came onto the
// stream since a time, oldest first, with those that lie there now. Ack and
// Extend of them do nothing. Other errors than f's are fault.Unavailable.
func (b *Bus) OfCollector(ctx context.Context, collector uuid.UUID, since time.Time, f func(batch.Delivery) error) error {
	status, err := b.Status(ctx)
	if err != nil {
		return err
	}
	of := jetstream.ConsumerConfig{
		FilterSubject: b.names.batch + collector.String(),
		DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &since,
	}
	return b.each(ctx, b.names.batches, of, headsAtOnce, int(2*b.MaxPayload()), func(msg *nats.Msg, meta *nats.MsgMetadata) (bool, error) {
		return true, f(readAgain(msg, meta, status.Incarnation))
	})
}
