package collector

import (
	"encoding/binary"
	"math"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/native"
	"pganalytics/pkg/collector/spool"
)

// sender is what every batch says about who sends it.
type sender struct {
	collectorID uuid.UUID
	hostname    string
	version     string
	labels      []batch.Label // sorted by name
}

// push makes the push of a batch that the spool numbers.
func (s *sender) push(stamp spool.Stamp, sections []batch.Section) *native.Push {
	return &native.Push{
		CollectorID: s.collectorID, Hostname: s.hostname, Version: s.version,
		BatchID: stamp.BatchID, Epoch: stamp.Epoch, Sequence: stamp.Sequence,
		Previous: stamp.Previous, Refused: stamp.Refused,
		Labels: s.labels, Sections: sections,
	}
}

// size returns how many bytes the sections take as a push, or a few more: what
// the numbering will take is not known before there is one.
func (s *sender) size(sections []batch.Section) int {
	p := s.push(largest, sections)
	return p.Size()
}

// largest is the stamp that takes the most bytes.
var largest = spool.Stamp{
	Mark:     batch.Mark{Epoch: uuid.Max, Sequence: math.MaxUint64},
	BatchID:  uuid.Max,
	Previous: batch.Mark{Epoch: uuid.Max, Sequence: math.MaxUint64},
}

// split divides sections into batches within the bounds, in order. A single
// row beyond them makes a batch of its own.
func (s *sender) split(sections []batch.Section) [][]batch.Section {
	sp := splitter{empty: s.size(nil)}
	sp.size = sp.empty
	for i := range sections {
		sp.section(sections[i])
	}
	sp.flush()
	return sp.batches
}

// splitter fills one batch after the other.
type splitter struct {
	batches [][]batch.Section
	batch   []batch.Section
	empty   int // bytes of a batch without sections
	size    int // bytes of the batch
	rows    int
}

func (sp *splitter) flush() {
	if len(sp.batch) > 0 {
		sp.batches = append(sp.batches, sp.batch)
	}
	sp.batch, sp.size, sp.rows = nil, sp.empty, 0
}

// section adds a section, cut where batches end.
func (sp *splitter) section(s batch.Section) {
	for s.Rows > 0 {
		if len(sp.batch) == maxBatchSections || sp.rows == maxBatchRows {
			sp.flush()
		}
		head := sectionBytes(&s)
		part := take(&s, maxBatchRows-sp.rows, maxBatchBytes-sp.size-head)
		if part.Rows == 0 && len(sp.batch) > 0 {
			sp.flush()
			continue
		}
		if part.Rows == 0 {
			part = take(&s, 1, math.MaxInt)
		}
		sp.batch = append(sp.batch, part)
		sp.size += head + len(part.Tuples)
		sp.rows += part.Rows
	}
}

// sectionBytes returns how many bytes a section takes beside its rows, at most.
func sectionBytes(s *batch.Section) int {
	head := *s
	head.Tuples = nil
	return (&native.Push{Sections: []batch.Section{head}}).Size() + lengths
}

// lengths is the most that the lengths of a section and of its rows take.
const lengths = 2 * binary.MaxVarintLen64

// take takes rows from the front of a section, at most so many of so many
// bytes. The range of times stays that of the whole: receivers find it out by
// themselves.
func take(s *batch.Section, rows, bytes int) batch.Section {
	n, end := 0, 0
	for n < min(rows, s.Rows) {
		next := end + tupleBytes(s.Tuples[end:])
		if next > bytes {
			break
		}
		n, end = n+1, next
	}
	part := *s
	part.Rows, part.Tuples = n, s.Tuples[:end:end]
	s.Rows, s.Tuples = s.Rows-n, s.Tuples[end:]
	return part
}

// tupleBytes returns the length of the first of some COPY tuples.
func tupleBytes(tuples []byte) int {
	n := 2
	for range binary.BigEndian.Uint16(tuples) {
		n += 4 + max(0, int(int32(binary.BigEndian.Uint32(tuples[n:])))) // -1 is NULL
	}
	return n
}
