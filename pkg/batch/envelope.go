package batch

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"sync"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"pganalytics/pkg/batch/internal/wire"
)

// Versions of the envelope. The second has packed sections; a batch without
// any is written as the first, so that old readers take what they can.
const (
	versionPlain  = 1
	versionPacked = 2
)

// Field numbers of schemas/batch.proto.
const (
	fieldVersion     protowire.Number = 1
	fieldCollectorID protowire.Number = 2
	fieldBatchID     protowire.Number = 3
	fieldSentAt      protowire.Number = 4
	fieldDigest      protowire.Number = 9
	fieldReceivedAt  protowire.Number = 10
	fieldTraceParent protowire.Number = 11
	fieldLabels      protowire.Number = 12
	fieldSections    protowire.Number = 13
)

// ErrTooLarge means that a batch has no room in one message.
var ErrTooLarge = errors.New("batch is too large")

// Marshal returns the batch as it lies on the stream.
func (b *Batch) Marshal() ([]byte, error) { return b.MarshalWithin(math.MaxInt) }

// MarshalWithin is Marshal for a stream that takes limit bytes. It counts the
// bytes before anything is packed, so that the same batch fits or not whatever
// packs it; if they are too many the error is ErrTooLarge.
func (b *Batch) MarshalWithin(limit int) ([]byte, error) {
	w := writers.Get().(*writer)
	defer writers.Put(w)
	data, err := w.write(b, limit)
	if err != nil {
		return nil, fmt.Errorf("marshal batch %s: %w", b.ID, err)
	}
	return data, nil
}

// writer holds the parts of an envelope until their sizes are known, so that
// the message is made in one piece of exactly its size.
type writer struct {
	head  []byte  // all fields of the batch but version and sections, then those of every section but its rows
	ends  []int   // of the batch's head, then of every section's
	parts []block // the sections' rows
	arena []byte  // of what was packed
}

// block is the rows of a section as one field.
type block struct {
	field protowire.Number
	data  []byte
}

// Pooled because the packed rows are only then copied, into a message of their
// size: what a message is given is held until the stream has answered.
var writers = sync.Pool{New: func() any { return &writer{} }}

// pooledArena is the largest arena in bytes that a writer keeps.
const pooledArena = 1 << 20

func (w *writer) write(b *Batch, limit int) ([]byte, error) {
	if bad := b.notUTF8(); bad != "" {
		return nil, fmt.Errorf("%s is not UTF-8", bad)
	}
	w.plan(b)
	defer w.forget()
	if size := w.size(func(i int) int { return wire.SizeBytes(wire.SectionTuples, b.Sections[i].tupleBytes()) }); size > limit {
		return nil, fmt.Errorf("%w: %d bytes of %d", ErrTooLarge, size, limit)
	}
	version := w.pack(b.Sections)
	rows := func(i int) int { return wire.SizeBytes(w.parts[i].field, len(w.parts[i].data)) }

	data := make([]byte, 0, w.size(rows))
	data = wire.AppendUint(data, fieldVersion, version)
	data = append(data, w.head[:w.ends[0]]...)
	for i, p := range w.parts {
		head := w.head[w.ends[i]:w.ends[i+1]]
		data = protowire.AppendTag(data, fieldSections, protowire.BytesType)
		data = protowire.AppendVarint(data, uint64(len(head)+rows(i)))
		data = append(data, head...)
		data = wire.AppendBytes(data, p.field, p.data)
	}
	return data, nil
}

// size returns the bytes of an envelope whose section i has rows(i) bytes of
// rows.
func (w *writer) size(rows func(i int) int) int {
	size := len(wire.AppendUint(nil, fieldVersion, versionPlain)) + w.ends[0]
	for i := range len(w.ends) - 1 {
		size += protowire.SizeTag(fieldSections) + protowire.SizeBytes(w.ends[i+1]-w.ends[i]+rows(i))
	}
	return size
}

// plan writes all but the rows.
func (w *writer) plan(b *Batch) {
	w.head = wire.AppendBytes(w.head[:0], fieldCollectorID, b.CollectorID[:])
	w.head = wire.AppendBytes(w.head, fieldBatchID, b.ID[:])
	w.head = wire.AppendUint(w.head, fieldSentAt, uint64(b.SentAt.UnixMicro()))
	w.head = AppendNumbering(w.head, b.Epoch, b.Sequence, b.Previous, b.Refused)
	w.head = wire.AppendBytes(w.head, fieldDigest, b.Digest[:])
	w.head = wire.AppendUint(w.head, fieldReceivedAt, uint64(b.ReceivedAt.UnixMicro()))
	w.head = wire.AppendBytes(w.head, fieldTraceParent, b.TraceParent)
	w.head = AppendLabels(w.head, fieldLabels, b.Labels)
	w.ends = append(w.ends[:0], len(w.head))
	for i := range b.Sections {
		w.head = b.Sections[i].appendHead(w.head)
		w.ends = append(w.ends, len(w.head))
	}
}

// forget lets go of the batch, and of an arena that few batches need.
func (w *writer) forget() {
	clear(w.parts)
	if cap(w.arena) > pooledArena {
		w.arena = nil
	}
}

// notUTF8 returns a text of the batch that protobuf cannot hold, quoted; empty
// if there is none.
func (b *Batch) notUTF8() string {
	bad := ""
	check := func(texts ...string) {
		for _, v := range texts {
			if !utf8.ValidString(v) {
				bad = strconv.Quote(v)
			}
		}
	}
	check(b.TraceParent)
	for _, l := range b.Labels {
		check(l.Name, l.Value)
	}
	for i := range b.Sections {
		check(b.Sections[i].Family, b.Sections[i].Server)
		for _, c := range b.Sections[i].Columns {
			check(c.Name)
		}
	}
	return bad
}
