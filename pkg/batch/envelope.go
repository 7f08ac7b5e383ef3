package batch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"unicode/utf8"

	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protowire"
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
	fieldEpoch       protowire.Number = 5
	fieldSequence    protowire.Number = 6
	fieldPrevious    protowire.Number = 7
	fieldRefused     protowire.Number = 8
	fieldDigest      protowire.Number = 9
	fieldReceivedAt  protowire.Number = 10
	fieldTraceParent protowire.Number = 11
	fieldLabels      protowire.Number = 12
	fieldSections    protowire.Number = 13

	markEpoch    protowire.Number = 1
	markSequence protowire.Number = 2

	labelName  protowire.Number = 1
	labelValue protowire.Number = 2

	sectionFamily   protowire.Number = 1
	sectionServer   protowire.Number = 2
	sectionServerID protowire.Number = 3
	sectionColumns  protowire.Number = 4
	sectionRows     protowire.Number = 5
	sectionMinTime  protowire.Number = 6
	sectionMaxTime  protowire.Number = 7
	sectionTuples   protowire.Number = 8
	sectionPacked   protowire.Number = 9

	columnName protowire.Number = 1
	columnType protowire.Number = 2
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
	bad   string  // a field that is not UTF-8
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
	w.plan(b)
	defer w.forget()
	if w.bad != "" {
		return nil, fmt.Errorf("%s is not UTF-8", w.bad)
	}
	if size := w.size(func(i int) int { return sizeBytes(sectionTuples, b.Sections[i].tupleBytes()) }); size > limit {
		return nil, fmt.Errorf("%w: %d bytes of %d", ErrTooLarge, size, limit)
	}
	version := w.pack(b.Sections)
	rows := func(i int) int { return sizeBytes(w.parts[i].field, len(w.parts[i].data)) }

	data := make([]byte, 0, w.size(rows))
	data = appendUint(data, fieldVersion, version)
	data = append(data, w.head[:w.ends[0]]...)
	for i, p := range w.parts {
		head := w.head[w.ends[i]:w.ends[i+1]]
		data = protowire.AppendTag(data, fieldSections, protowire.BytesType)
		data = protowire.AppendVarint(data, uint64(len(head)+rows(i)))
		data = append(data, head...)
		data = appendBytes(data, p.field, p.data)
	}
	return data, nil
}

// size returns the bytes of an envelope whose section i has rows(i) bytes of
// rows.
func (w *writer) size(rows func(i int) int) int {
	size := len(appendUint(nil, fieldVersion, versionPlain)) + w.ends[0]
	for i := range len(w.ends) - 1 {
		size += protowire.SizeTag(fieldSections) + protowire.SizeBytes(w.ends[i+1]-w.ends[i]+rows(i))
	}
	return size
}

// plan writes all but the rows.
func (w *writer) plan(b *Batch) {
	w.bad = ""
	w.head = appendBytes(w.head[:0], fieldCollectorID, b.CollectorID[:])
	w.head = appendBytes(w.head, fieldBatchID, b.ID[:])
	w.head = appendUint(w.head, fieldSentAt, uint64(b.SentAt.UnixMicro()))
	if b.Epoch != uuid.Nil {
		w.head = appendBytes(w.head, fieldEpoch, b.Epoch[:])
	}
	w.head = appendUint(w.head, fieldSequence, b.Sequence)
	if b.Previous != (Mark{}) {
		w.nested(fieldPrevious, func() {
			w.head = appendBytes(w.head, markEpoch, b.Previous.Epoch[:])
			w.head = appendUint(w.head, markSequence, b.Previous.Sequence)
		})
	}
	if len(b.Refused) > 0 {
		w.nested(fieldRefused, func() {
			for _, n := range b.Refused {
				w.head = protowire.AppendVarint(w.head, n)
			}
		})
	}
	w.head = appendBytes(w.head, fieldDigest, b.Digest[:])
	w.head = appendUint(w.head, fieldReceivedAt, uint64(b.ReceivedAt.UnixMicro()))
	w.text(fieldTraceParent, b.TraceParent)
	for _, l := range b.Labels {
		w.nested(fieldLabels, func() {
			w.text(labelName, l.Name)
			w.text(labelValue, l.Value)
		})
	}
	w.ends = append(w.ends[:0], len(w.head))
	for i := range b.Sections {
		w.section(&b.Sections[i])
		w.ends = append(w.ends, len(w.head))
	}
}

func (w *writer) section(s *Section) {
	w.text(sectionFamily, s.Family)
	w.text(sectionServer, s.Server)
	w.head = appendBytes(w.head, sectionServerID, s.ServerID[:])
	for _, c := range s.Columns {
		w.nested(sectionColumns, func() {
			w.text(columnName, c.Name)
			w.head = appendUint(w.head, columnType, uint64(c.Type))
		})
	}
	w.head = appendUint(w.head, sectionRows, uint64(s.Rows))
	w.head = appendUint(w.head, sectionMinTime, uint64(s.MinTime.UnixMicro()))
	w.head = appendUint(w.head, sectionMaxTime, uint64(s.MaxTime.UnixMicro()))
}

// forget lets go of the batch, and of an arena that few batches need.
func (w *writer) forget() {
	clear(w.parts)
	if cap(w.arena) > pooledArena {
		w.arena = nil
	}
}

// nested appends a field whose content is what f appends.
func (w *writer) nested(field protowire.Number, f func()) {
	w.head = protowire.AppendTag(w.head, field, protowire.BytesType)
	begin := len(w.head)
	f()
	var length [binary.MaxVarintLen64]byte // comes first but is known last
	w.head = slices.Insert(w.head, begin, protowire.AppendVarint(length[:0], uint64(len(w.head)-begin))...)
}

func (w *writer) text(field protowire.Number, v string) {
	if !utf8.ValidString(v) {
		w.bad = fmt.Sprintf("%q", v)
	}
	if v != "" {
		w.head = protowire.AppendString(protowire.AppendTag(w.head, field, protowire.BytesType), v)
	}
}

// As proto3 has it, a field that is zero or empty is not written.

func appendUint(dst []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return dst
	}
	return protowire.AppendVarint(protowire.AppendTag(dst, field, protowire.VarintType), v)
}

func appendBytes(dst []byte, field protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return dst
	}
	return protowire.AppendBytes(protowire.AppendTag(dst, field, protowire.BytesType), v)
}

func sizeBytes(field protowire.Number, n int) int {
	if n == 0 {
		return 0
	}
	return protowire.SizeTag(field) + protowire.SizeBytes(n)
}
