package native

import (
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"

	"pganalytics/pkg/batch/internal/wire"
	"pganalytics/pkg/batch/push"
)

// Bodies are read into memory that is used again, because how large they are is
// known only at the end; the batch gets a copy of just their size. Of usual
// bodies that is cheaper than to grow.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

const (
	firstBuffer = 64 << 10
	maxBuffer   = 256 << 10 // that is kept for the next body

	notInBatch = 1 << 10 // bytes at most of hostname, version and what else is not in the batch
)

// readBody reads a whole body. A push.Holder is told of what it takes beside
// the body itself.
func readBody(body io.Reader, lim *push.Limits) ([]byte, error) {
	holder, _ := body.(push.Holder)
	// A body that is larger by more than a batch does without holds more than
	// fits into one.
	most := min(lim.MaxBodyBytes, int64(lim.MaxEncodedBytes)+notInBatch)
	full := push.BodyTooLarge
	if most < lim.MaxBodyBytes {
		full = tooLarge
	}
	body = push.Bounded(body, most, full)
	pooled := buffers.Get().(*[]byte)
	buf := (*pooled)[:0]
	defer func() {
		if cap(buf) <= maxBuffer {
			*pooled = buf
		}
		buffers.Put(pooled)
	}()
	const patience = 100 // reads of nothing, as in bufio
	for nothing := 0; ; {
		var err error
		if buf, err = grown(buf, most, holder); err != nil {
			return nil, err
		}
		n, end := body.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		switch {
		case end == io.EOF: // one that wraps it is not the end: so an inflater says that it found nothing
			return slices.Clone(buf), nil
		case end != nil:
			return nil, fmt.Errorf("read body: %w", end)
		case n > 0:
			nothing = 0
		default:
			if nothing++; nothing == patience {
				return nil, fmt.Errorf("read body: %w", io.ErrNoProgress)
			}
		}
	}
}

// grown returns a buffer with the same content that has room.
func grown(buf []byte, most int64, holder push.Holder) ([]byte, error) {
	if len(buf) < cap(buf) {
		return buf, nil
	}
	size := max(firstBuffer, min(2*cap(buf), int(most)+1)) // one more shows a body that is too large
	if holder != nil && size > maxBuffer {
		if err := holder.Hold(size - len(buf)); err != nil { // what came is booked
			return buf, fmt.Errorf("hold body: %w", err)
		}
	}
	return append(make([]byte, 0, size), buf...), nil
}

// kind is what a message has under the number of a field.
type kind uint8

const (
	none    kind = iota
	number       // of type varint
	content      // of type bytes: a text, an id, a message
	list         // of content
	numbers      // a list, packed or not
)

// message is the fields of a message by number.
type message []kind

var (
	pushMessage = message{
		fieldCollectorID: content, fieldHostname: content, fieldVersion: content, fieldBatchID: content,
		wire.Epoch: content, wire.Sequence: number, wire.Previous: content, wire.Refused: numbers,
		fieldLabels: list, fieldSectionCount: number, fieldSections: list,
	}
	markMessage    = message{wire.MarkEpoch: content, wire.MarkSequence: number}
	labelMessage   = message{wire.LabelName: content, wire.LabelValue: content}
	sectionMessage = message{ // packed rows are for the stream
		wire.SectionFamily: content, wire.SectionServer: content, wire.SectionServerID: content, wire.SectionColumns: list,
		wire.SectionRows: number, wire.SectionMinTime: number, wire.SectionMaxTime: number, wire.SectionTuples: content,
	}
	columnMessage = message{wire.ColumnName: content, wire.ColumnType: number}
)

// fields goes through a message until its first fault. Unlike protobuf at large
// it refuses what it does not know and what comes twice: of both something would
// be lost that the sender thinks to have sent.
func (m message) fields(data []byte) iter.Seq2[wire.Field, *push.Problem] {
	return func(yield func(wire.Field, *push.Problem) bool) {
		seen := 0
		for f, err := range wire.Fields(data) {
			bad := m.fault(&f, seen)
			if err != nil {
				bad = malformed
			}
			if !yield(f, bad) || bad != nil {
				return
			}
			seen |= 1 << f.Num // which is small, for it is known
		}
	}
}

// fault returns what is wrong with a field that comes behind those seen.
func (m message) fault(f *wire.Field, seen int) *push.Problem {
	k := none
	if int(f.Num) < len(m) {
		k = m[f.Num]
	}
	want := protowire.BytesType
	if k == number || k == numbers && f.Type == protowire.VarintType {
		want = protowire.VarintType
	}
	switch {
	case k == none || f.Type != want:
		return fieldUnknown
	case (k == number || k == content) && seen&(1<<f.Num) != 0:
		return fieldTwice
	}
	return nil
}
