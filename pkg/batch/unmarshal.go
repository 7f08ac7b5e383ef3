package batch

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protowire"

	"pganalytics/pkg/batch/internal/wire"
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
	for f, err := range wire.Fields(data) {
		if err != nil {
			return err
		}
		switch f.Type {
		case protowire.VarintType:
			switch f.Num {
			case fieldVersion:
				e.version = uint32(f.Uint)
			case fieldSentAt:
				e.sentAt = int64(f.Uint)
			case wire.Sequence:
				e.sequence = f.Uint
			case wire.Refused:
				e.refused = append(e.refused, f.Uint)
			case fieldReceivedAt:
				e.receivedAt = int64(f.Uint)
			}
		case protowire.BytesType:
			switch f.Num {
			case fieldCollectorID:
				e.collectorID = f.Bytes
			case fieldBatchID:
				e.batchID = f.Bytes
			case wire.Epoch:
				e.epoch = f.Bytes
			case wire.Previous:
				e.previous = append(e.previous, f.Bytes)
			case wire.Refused:
				if e.refused, err = f.Numbers(e.refused); err != nil {
					return err
				}
			case fieldDigest:
				e.digest = f.Bytes
			case fieldTraceParent:
				e.traceParents = append(e.traceParents, f.Bytes)
			case fieldLabels:
				e.labels = append(e.labels, f.Bytes)
			case fieldSections:
				e.sections = append(e.sections, f.Bytes)
			}
		}
	}
	return nil
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
		for f, err := range wire.Fields(part) {
			switch {
			case err != nil:
				r.fail("previous", "%w", err)
			case f.Num == wire.MarkEpoch && f.Type == protowire.BytesType:
				epoch = f.Bytes
			case f.Num == wire.MarkSequence && f.Type == protowire.VarintType:
				m.Sequence = f.Uint
			}
		}
	}
	m.Epoch = r.uuid("previous.epoch", epoch)
	return m
}

func (r *reader) label(data []byte) Label {
	var l Label
	for f, err := range wire.Fields(data) {
		switch {
		case err != nil:
			r.fail("fields", "%w", err)
		case f.Num == wire.LabelName && f.Type == protowire.BytesType:
			l.Name = r.text("name", f.Bytes)
		case f.Num == wire.LabelValue && f.Type == protowire.BytesType:
			l.Value = r.text("value", f.Bytes)
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
	for f, err := range wire.Fields(data) {
		if err != nil {
			r.fail("fields", "%w", err)
			break
		}
		switch f.Type {
		case protowire.VarintType:
			switch f.Num {
			case wire.SectionRows:
				rows = f.Uint
			case wire.SectionMinTime:
				minTime = f.Uint
			case wire.SectionMaxTime:
				maxTime = f.Uint
			}
		case protowire.BytesType:
			switch f.Num {
			case wire.SectionFamily:
				s.Family = r.text("family", f.Bytes)
			case wire.SectionServer:
				s.Server = r.text("server", f.Bytes)
			case wire.SectionServerID:
				serverID = f.Bytes
			case wire.SectionColumns:
				s.Columns = append(s.Columns, r.column(len(s.Columns), f.Bytes))
			case wire.SectionTuples:
				s.Tuples = f.Bytes
			case wire.SectionPacked:
				s.packed = f.Bytes
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
	for f, err := range wire.Fields(data) {
		switch {
		case err != nil:
			r.fail("columns", "column %d: %w", i, err)
		case f.Num == wire.ColumnName && f.Type == protowire.BytesType:
			c.Name = r.text("columns", f.Bytes)
		case f.Num == wire.ColumnType && f.Type == protowire.VarintType:
			number = int32(f.Uint)
		}
	}
	c.Type = catalogue.Type(number)
	if number < 0 || number > 255 || !c.Type.Valid() {
		r.fail("columns", "column %d has unknown type %d", i, number)
	}
	return c
}
