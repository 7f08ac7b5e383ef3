package batch

import (
	"errors"
	"fmt"

	"github.com/klauspost/compress/s2"

	"pganalytics/pkg/batch/internal/wire"
	"pganalytics/pkg/fault"
)

// Rows of a family repeat their time, their server and the lengths of their
// fields, so s2 makes them two to five times smaller, and everything that the
// stream does with a message cheaper by as much.

// packFrom is the least number of bytes that is packed: below it the call
// costs what the stream saves.
const packFrom = 256

// MaxTupleBytes bounds the bytes of tuples in one envelope, for a packed
// section is small whatever it expands to. No batch has more: it was within
// the stream's largest message before it was packed, and NATS allows 64 MiB.
const MaxTupleBytes = 64 << 20

// ErrDamaged means that a packed section does not hold what it says.
var ErrDamaged = errors.New("damaged")

// pack sets the parts, packed where that saves an eighth or more, and returns
// the version of an envelope that holds them.
func (w *writer) pack(sections []Section) (version uint64) {
	room := 0
	for i := range sections {
		if n := len(sections[i].Tuples); n >= packFrom {
			room += s2.MaxEncodedLen(n)
		}
	}
	if cap(w.arena) < room {
		w.arena = make([]byte, room)
	}
	version, arena := versionPlain, w.arena[:cap(w.arena)]
	w.parts = w.parts[:0]
	for i := range sections {
		s := &sections[i]
		p := block{wire.SectionTuples, s.Tuples}
		switch {
		case s.packed != nil:
			p = block{wire.SectionPacked, s.packed}
		case len(s.Tuples) >= packFrom:
			packed := s2.Encode(arena, s.Tuples)
			if len(packed) <= len(s.Tuples)-len(s.Tuples)/8 {
				p = block{wire.SectionPacked, packed}
				arena = arena[len(packed):]
			}
		}
		if p.field == wire.SectionPacked {
			version = versionPacked
		}
		w.parts = append(w.parts, p)
	}
	return version
}

// Expanded returns the section's tuples. Those that Unmarshal found packed are
// expanded into room, or into new memory where that is too small, and b stays
// as it is: so whoever holds many batches holds them small. The error is
// ErrDamaged and fault.Invalid.
func (s *Section) Expanded(room []byte) ([]byte, error) {
	if s.packed == nil {
		return s.Tuples, nil
	}
	tuples, err := s2.Decode(room[:cap(room)], s.packed)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, fmt.Errorf("expand rows of %s: %w: %w", s.Family, ErrDamaged, err))
	}
	return tuples, nil
}

// Expand returns the batch with the tuples of every section. The error is
// ErrDamaged and fault.Invalid.
func (b *Batch) Expand() (*Batch, error) {
	expanded := *b
	expanded.Sections = append([]Section(nil), b.Sections...)
	for i := range expanded.Sections {
		s := &expanded.Sections[i]
		tuples, err := s.Expanded(nil)
		if err != nil {
			return nil, fmt.Errorf("batch %s: sections[%d]: %w", b.ID, i, err)
		}
		s.Tuples, s.packed, s.unpacked = tuples, nil, 0
	}
	return &expanded, nil
}

// unpackedLen returns how many bytes a packed section says it expands to,
// which s2 then holds it to.
func unpackedLen(packed []byte) (int, error) {
	n, err := s2.DecodedLen(packed)
	switch {
	case err != nil:
		return 0, err
	case n == 0:
		return 0, errors.New("is empty")
	case n > MaxTupleBytes:
		return 0, fmt.Errorf("expands to %d bytes, more than %d", n, MaxTupleBytes)
	}
	return n, nil
}
