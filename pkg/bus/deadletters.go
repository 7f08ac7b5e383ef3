package bus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pganalytics/pkg/batch"
)

// DeadLetters keeps the messages that cannot be stored, byte for byte, where
// people can see, retry or discard them.
type DeadLetters struct{ bus *Bus }

// DeadLetters returns the dead letters of this installation.
func (b *Bus) DeadLetters() *DeadLetters { return &DeadLetters{bus: b} }

// Headers of a letter. Times are RFC 3339 with nanoseconds, UTC.
const (
	headerCollector   = "Pganalytics-Collector"
	headerBatch       = "Pganalytics-Batch"
	headerDigest      = "Pganalytics-Digest"
	headerReason      = "Pganalytics-Reason"
	headerDetail      = "Pganalytics-Detail"
	headerSQLState    = "Pganalytics-Sqlstate"
	headerRows        = "Pganalytics-Rows"
	headerSequence    = "Pganalytics-Stream-Sequence"
	headerIncarnation = "Pganalytics-Stream-Incarnation"
	headerDelivered   = "Pganalytics-Delivered"
	headerStoredAt    = "Pganalytics-Stored-At"
	headerBuriedAt    = "Pganalytics-Buried-At"
)

// maxHeaderValue in bytes keeps all headers together far below Headroom.
const maxHeaderValue = 2048

// Bury returns nil once the letter lies on the server's disk, or lay there
// already: a repeat of the same collector, batch and digest is the same
// letter, and the first one stays. Only then may the message be acked. Every
// error is fault.Unavailable; the message must wait, alone.
func (d *DeadLetters) Bury(ctx context.Context, l batch.Letter) error {
	if l.Digest == [sha256.Size]byte{} { // nothing could be read from the payload
		l.Digest = sha256.Sum256(l.Payload)
	}
	ctx, done := d.bus.request(ctx)
	defer done()
	_, err := d.bus.js.PublishMsg(ctx,
		&nats.Msg{Subject: d.subject(l), Header: letterHeader(l, time.Now()), Data: l.Payload},
		jetstream.WithExpectStream(d.bus.names.deadLetters),
		// "No message on this subject yet". The server would refuse a second
		// one anyway, but with the same code as it uses for a full stream; to
		// this condition it answers with a code of its own.
		jetstream.WithExpectLastSequencePerSubject(0),
		jetstream.WithRetryAttempts(0))
	switch apiCode(err) {
	case jetstream.JSErrCodeStreamWrongLastSequence, jetstream.JSErrCodeStreamWrongLastSequenceConstant:
		d.bus.metrics.buried.WithLabelValues("repeated").Inc()
		return nil
	}
	if err != nil {
		d.bus.metrics.buried.WithLabelValues("failed").Inc()
		return unavailable(fmt.Sprintf("bury message %d as %s", l.Position.Sequence, l.Reason), err)
	}
	d.bus.metrics.buried.WithLabelValues("written").Inc()
	return nil
}

// subject names the letter. Eight bytes of digest tell apart what comes under
// one batch id.
func (d *DeadLetters) subject(l batch.Letter) string {
	return fmt.Sprintf("%s%s.%s.%x", d.bus.names.dead, l.CollectorID, l.BatchID, l.Digest[:8])
}

// Buried reports whether a batch lies here. The error is fault.Unavailable.
func (d *DeadLetters) Buried(ctx context.Context, b *batch.Batch) (bool, error) {
	ctx, done := d.bus.request(ctx)
	defer done()
	stream, err := d.bus.js.Stream(ctx, d.bus.names.deadLetters)
	if err == nil {
		_, err = stream.GetLastMsgForSubject(ctx, d.subject(batch.Letter{CollectorID: b.CollectorID, BatchID: b.ID, Digest: b.Digest}))
	}
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return false, nil
	}
	return err == nil, unavailable("look for a letter of batch "+b.ID.String(), err)
}

// Count returns the number of letters.
func (d *DeadLetters) Count(ctx context.Context) (uint64, error) {
	ctx, done := d.bus.request(ctx)
	defer done()
	stream, err := d.bus.js.Stream(ctx, d.bus.names.deadLetters)
	if err != nil {
		return 0, unavailable("ask for stream "+d.bus.names.deadLetters, err)
	}
	return stream.CachedInfo().State.Msgs, nil
}

// List returns at most limit letters, oldest first.
func (d *DeadLetters) List(ctx context.Context, limit int) (letters []batch.Letter, err error) {
	if limit <= 0 {
		return nil, nil
	}
	err = d.Each(ctx, func(l batch.Letter) (bool, error) {
		letters = append(letters, l)
		return len(letters) < limit, nil
	})
	return letters, err
}

// Each calls f with the letters, oldest first, until it returns false or an
// error. Its cost is two requests a letter. Other errors than those of f are
// fault.Unavailable.
func (d *DeadLetters) Each(ctx context.Context, f func(batch.Letter) (more bool, err error)) error {
	for next := uint64(1); ; {
		msg, err := d.from(ctx, next)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if err != nil {
			return unavailable(fmt.Sprintf("read letter %d", next), err)
		}
		if more, err := f(letterFrom(msg.Header, msg.Data)); err != nil || !more {
			return err
		}
		next = msg.Sequence + 1
	}
}

// from returns the first letter at or after a sequence, so that gaps left by
// letters that were dealt with cost nothing.
func (d *DeadLetters) from(ctx context.Context, sequence uint64) (*jetstream.RawStreamMsg, error) {
	ctx, done := d.bus.request(ctx)
	defer done()
	stream, err := d.bus.js.Stream(ctx, d.bus.names.deadLetters)
	if err != nil {
		return nil, err
	}
	return stream.GetMsg(ctx, sequence, jetstream.WithGetMsgSubject(d.bus.names.dead+">"))
}

func letterHeader(l batch.Letter, now time.Time) nats.Header {
	h := nats.Header{}
	set := func(name, value string) {
		if value != "" {
			h.Set(name, singleLine(value))
		}
	}
	set(headerCollector, l.CollectorID.String())
	set(headerBatch, l.BatchID.String())
	set(headerDigest, hex.EncodeToString(l.Digest[:]))
	set(headerReason, l.Reason)
	set(headerDetail, l.Detail)
	set(headerSQLState, l.SQLState)
	if l.Rows > 0 {
		set(headerRows, strconv.Itoa(l.Rows))
	}
	set(headerSequence, strconv.FormatUint(l.Position.Sequence, 10))
	set(headerIncarnation, l.Position.Incarnation)
	set(headerDelivered, strconv.FormatUint(l.Position.Delivered, 10))
	set(headerStoredAt, l.Position.StoredAt.UTC().Format(time.RFC3339Nano))
	set(headerBuriedAt, now.UTC().Format(time.RFC3339Nano))
	return h
}

// letterFrom reads what letterHeader wrote. What it cannot read stays zero: a
// letter with a broken header is still a letter.
func letterFrom(h nats.Header, payload []byte) batch.Letter {
	l := batch.Letter{
		Reason:   h.Get(headerReason),
		Detail:   h.Get(headerDetail),
		SQLState: h.Get(headerSQLState),
		Position: batch.Position{Incarnation: h.Get(headerIncarnation)},
		Payload:  payload,
	}
	l.CollectorID, _ = uuid.Parse(h.Get(headerCollector))
	l.BatchID, _ = uuid.Parse(h.Get(headerBatch))
	if digest, err := hex.DecodeString(h.Get(headerDigest)); err == nil && len(digest) == len(l.Digest) {
		copy(l.Digest[:], digest)
	}
	l.Rows, _ = strconv.Atoi(h.Get(headerRows))
	l.Rows = max(0, l.Rows)
	l.Position.Sequence, _ = strconv.ParseUint(h.Get(headerSequence), 10, 64)
	l.Position.Delivered, _ = strconv.ParseUint(h.Get(headerDelivered), 10, 64)
	l.Position.StoredAt, _ = time.Parse(time.RFC3339Nano, h.Get(headerStoredAt))
	return l
}

// singleLine makes a value fit for a header: database messages have line
// breaks, and may be as long as the row that they complain about.
func singleLine(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) > maxHeaderValue {
		end := maxHeaderValue
		for !utf8.RuneStart(s[end]) {
			end--
		}
		s = s[:end]
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s))
}
