package native

import (
	"fmt"
	"io"
	"iter"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"

	"pganalytics/pkg/batch/internal/wire"
	"pganalytics/pkg/batch/push"
)

// part is a piece of a body as it comes. Parts are used again, because how large
// a body is is known only at its end; the batch then gets a copy of just its
// size, which costs less than to let one buffer grow.
type part [64 << 10]byte // most bodies are one

var parts = sync.Pool{New: func() any { return new(part) }}

// notInBatch is how many bytes at most hostname, version and all else take that
// is not in the batch.
const notInBatch = 1 << 10

// readBody reads a whole body. A push.Holder is told of what the copy takes.
func readBody(body io.Reader, lim *push.Limits) ([]byte, error) {
	holder, _ := body.(push.Holder)
	// A body that is larger by more than a batch does without holds more than
	// fits into one.
	most, full := int64(lim.MaxEncodedBytes)+notInBatch, tooLarge
	if lim.MaxBodyBytes <= most {
		most, full = lim.MaxBodyBytes, push.BodyTooLarge
	}
	body = push.Bounded(body, most, full)
	var read []*part
	defer func() {
		for _, p := range read {
			parts.Put(p)
		}
	}()
	var room []byte
	size := 0
	const patience = 100 // reads of nothing, as in bufio
	for nothing := 0; nothing < patience; {
		if len(room) == 0 {
			if len(read) > 0 && holder != nil {
				if err := holder.Hold(len(part{})); err != nil {
					return nil, fmt.Errorf("hold body: %w", err)
				}
			}
			next := parts.Get().(*part)
			read, room = append(read, next), next[:]
		}
		n, end := body.Read(room)
		room, size = room[n:], size+n
		switch {
		case end == io.EOF: // one that wraps it is not the end: so an inflater says that it found nothing
			return join(read, size), nil
		case end != nil:
			return nil, fmt.Errorf("read body: %w", end)
		case n > 0:
			nothing = 0
		default:
			nothing++
		}
	}
	return nil, fmt.Errorf("read body: %w", io.ErrNoProgress)
}

func join(read []*part, size int) []byte {
	body := make([]byte, 0, size)
	for _, p := range read {
		body = append(body, p[:min(len(p), size-len(body))]...)
	}
	return body
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
