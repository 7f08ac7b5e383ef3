package batch

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protowire"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/fault"
)

// Unmarshal reads what Marshal wrote. The batch refers to data, which must not
// change afterwards, and packed sections have no tuples yet: see Expand. It
// checks the shape of every field, not the digest, which costs as much as all
// the rest: see Intact. A version that is newer than this process is
// fault.Behind: a newer one will read it.
func Unmarshal(data []byte) (*Batch, error) {
	var e envelope
	if err := e.read(data); err != nil {
		return nil, fmt.Errorf("unmarshal batch: %w", err)
	}
	if e.version > versionPacked {
		return nil, fault.Wrap(fault.Behind, fmt.Errorf("unmarshal batch: version %d is newer than this process", e.version))
	}
	if e.version < versionPlain {
		return nil, fmt.Errorf("unmarshal batch: unknown version %d", e.version)
	}
	var r reader
	b := r.batch(&e)
	if err := errors.Join(r.errs...); err != nil {
		return nil, fmt.Errorf("unmarshal batch: %w", err)
	}
	return b, nil
}

// envelope is the fields of a batch as they came. Of a field that came more
// than once the last counts, but lists and previous are put together, as
// protobuf has it.
type envelope struct {
	version              uint32
	collectorID, batchID []byte
	epoch, digest        []byte
	sentAt, receivedAt   int64
	sequence             uint64
	previous             [][]byte
	refused              []uint64
	traceParents         [][]byte
	labels, sections     [][]byte
}

func (e *envelope) read(data []byte) error {
	for f, err := range fields(data) {
		if err != nil {
			return err
		}
		switch f.typ {
		case protowire.VarintType:
			switch f.num {
			case fieldVersion:
				e.version = uint32(f.uint)
			case fieldSentAt:
				e.sentAt = int64(f.uint)
			case fieldSequence:
				e.sequence = f.uint
			case fieldRefused:
				e.refused = append(e.refused, f.uint)
			case fieldReceivedAt:
				e.receivedAt = int64(f.uint)
			}
		case protowire.BytesType:
			switch f.num {
			case fieldCollectorID:
				e.collectorID = f.bytes
			case fieldBatchID:
				e.batchID = f.bytes
			case fieldEpoch:
				e.epoch = f.bytes
			case fieldPrevious:
				e.previous = append(e.previous, f.bytes)
			case fieldRefused:
				for numbers := f.bytes; len(numbers) > 0; {
					v, n := protowire.ConsumeVarint(numbers)
					if n < 0 {
						return protowire.ParseError(n)
					}
					e.refused, numbers = append(e.refused, v), numbers[n:]
				}
			case fieldDigest:
				e.digest = f.bytes
			case fieldTraceParent:
				e.traceParents = append(e.traceParents, f.bytes)
			case fieldLabels:
				e.labels = append(e.labels, f.bytes)
			case fieldSections:
				e.sections = append(e.sections, f.bytes)
			}
		}
	}
	return nil
}

// field is one field of a message; uint or bytes by its type, neither if it is
// of a type that no known field has.
type field struct {
	num   protowire.Number
	typ   protowire.Type
	uint  uint64
	bytes []byte
}

// fields goes through a message as far as it is one. The bytes of its fields
// are its own.
func fields(data []byte) iter.Seq2[field, error] {
	return func(yield func(field, error) bool) {
		for len(data) > 0 {
			f, n := nextField(data)
			if n < 0 {
				yield(field{}, protowire.ParseError(n))
				return
			}
			if data = data[n:]; !yield(f, nil) {
				return
			}
		}
	}
}

// nextField returns the first field and its length, which is negative if there
// is none.
func nextField(data []byte) (f field, n int) {
	f.num, f.typ, n = protowire.ConsumeTag(data)
	if n < 0 {
		return f, n
	}
	if f.num > protowire.MaxValidNumber {
		return f, -1
	}
	var value int
	switch f.typ {
	case protowire.VarintType:
		f.uint, value = protowire.ConsumeVarint(data[n:])
	case protowire.BytesType:
		f.bytes, value = protowire.ConsumeBytes(data[n:])
	default:
		value = protowire.ConsumeFieldValue(f.num, f.typ, data[n:])
	}
	if value < 0 {
		return f, value
	}
	return f, n + value
}

// reader gathers every fault of an envelope or of a part of it.
type reader struct{ errs []error }

func (r *reader) fail(field, format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf(field+": "+format, args...))
}

// take adds the faults of a part; the path is made only if there are any.
func (r *reader) take(part reader, list string, i int) {
	for _, err := range part.errs {
		r.errs = append(r.errs, fmt.Errorf("%s[%d].%w", list, i, err))
	}
}

func (r *reader) uuid(field string, data []byte) uuid.UUID {
	id, err := uuid.FromBytes(data)
	if err != nil {
		r.fail(field, "has %d bytes, not 16", len(data))
	}
	return id
}

func (r *reader) text(field string, data []byte) string {
	if !utf8.Valid(data) {
		r.fail(field, "is not UTF-8")
	}
	return string(data)
}

func micros(us int64) time.Time { return time.UnixMicro(us).UTC() }

func (r *reader) batch(e *envelope) *Batch {
	b := &Batch{
		CollectorID: r.uuid("collector_id", e.collectorID),
		ID:          r.uuid("batch_id", e.batchID),
		SentAt:      micros(e.sentAt),
		Sequence:    e.sequence,
		Refused:     e.refused,
		ReceivedAt:  micros(e.receivedAt),
	}
	if len(e.epoch) > 0 {
		b.Epoch = r.uuid("epoch", e.epoch)
	}
	if len(e.previous) > 0 {
		b.Previous = r.previous(e.previous)
	}
	if copy(b.Digest[:], e.digest) != sha256.Size || len(e.digest) != sha256.Size {
		r.fail("digest", "has %d bytes, not %d", len(e.digest), sha256.Size)
	}
	for _, t := range e.traceParents {
		b.TraceParent = r.text("traceparent", t)
	}
	for i, data := range e.labels {
		var part reader
		b.Labels = append(b.Labels, part.label(data))
		r.take(part, "labels", i)
	}
	packed := 0
	for i, data := range e.sections {
		var part reader
		s := part.section(data, e.version)
		if packed += s.unpacked; packed > MaxTupleBytes {
			part.fail("packed", "expands to more than %d bytes with those before it", MaxTupleBytes)
		}
		b.Sections = append(b.Sections, s)
		r.take(part, "sections", i)
	}
	return b
}

func (r *reader) previous(parts [][]byte) Mark {
	var m Mark
	var epoch []byte
	for _, part := range parts {
		for f, err := range fields(part) {
			switch {
			case err != nil:
				r.fail("previous", "%w", err)
			case f.num == markEpoch && f.typ == protowire.BytesType:
				epoch = f.bytes
			case f.num == markSequence && f.typ == protowire.VarintType:
				m.Sequence = f.uint
			}
		}
	}
	m.Epoch = r.uuid("previous.epoch", epoch)
	return m
}

func (r *reader) label(data []byte) Label {
	var l Label
	for f, err := range fields(data) {
		switch {
		case err != nil:
			r.fail("fields", "%w", err)
		case f.num == labelName && f.typ == protowire.BytesType:
			l.Name = r.text("name", f.bytes)
		case f.num == labelValue && f.typ == protowire.BytesType:
			l.Value = r.text("value", f.bytes)
		}
	}
	return l
}

// manyColumns is more than most families have.
const manyColumns = 24

func (r *reader) section(data []byte, version uint32) Section {
	s := Section{Columns: make([]Column, 0, manyColumns)}
	var serverID []byte
	var rows, minTime, maxTime uint64
	for f, err := range fields(data) {
		if err != nil {
			r.fail("fields", "%w", err)
			break
		}
		switch f.typ {
		case protowire.VarintType:
			switch f.num {
			case sectionRows:
				rows = f.uint
			case sectionMinTime:
				minTime = f.uint
			case sectionMaxTime:
				maxTime = f.uint
			}
		case protowire.BytesType:
			switch f.num {
			case sectionFamily:
				s.Family = r.text("family", f.bytes)
			case sectionServer:
				s.Server = r.text("server", f.bytes)
			case sectionServerID:
				serverID = f.bytes
			case sectionColumns:
				s.Columns = append(s.Columns, r.column(len(s.Columns), f.bytes))
			case sectionTuples:
				s.Tuples = f.bytes
			case sectionPacked:
				s.packed = f.bytes
			}
		}
	}
	s.ServerID = r.uuid("server_id", serverID)
	s.MinTime, s.MaxTime = micros(int64(minTime)), micros(int64(maxTime))
	r.rows(&s, rows, version)
	return s
}

// rows checks what a section says of its rows.
func (r *reader) rows(s *Section, rows uint64, version uint32) {
	if len(s.Tuples) == 0 { // in proto3 that is the same as none
		s.Tuples = nil
	}
	if len(s.packed) == 0 {
		s.packed = nil
	}
	if s.packed != nil {
		n, err := unpackedLen(s.packed)
		switch {
		case err != nil:
			r.fail("packed", "%w", err)
		case version < versionPacked:
			r.fail("packed", "is not of version %d", version)
		case s.Tuples != nil:
			r.fail("packed", "stands beside tuples")
		}
		s.unpacked = n
	}
	// Each row takes at least its field count, so a larger number is a lie.
	if size := s.tupleBytes(); rows > uint64(size) {
		r.fail("rows", "%d rows in %d bytes", rows, size)
	}
	s.Rows = int(rows)
}

func (r *reader) column(i int, data []byte) Column {
	var c Column
	var number int32
	for f, err := range fields(data) {
		switch {
		case err != nil:
			r.fail("columns", "column %d: %w", i, err)
		case f.num == columnName && f.typ == protowire.BytesType:
			c.Name = r.text("columns", f.bytes)
		case f.num == columnType && f.typ == protowire.VarintType:
			number = int32(f.uint)
		}
	}
	c.Type = catalogue.Type(number)
	if number < 0 || number > 255 || !c.Type.Valid() {
		r.fail("columns", "column %d has unknown type %d", i, number)
	}
	return c
}
