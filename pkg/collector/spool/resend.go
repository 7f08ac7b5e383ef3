package spool

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
)

// ErrGone says that a kept batch is no longer there, or no longer readable.
var ErrGone = errors.New("batch is no longer kept")

// Range is numbers of one epoch, both ends included.
type Range struct {
	Epoch uuid.UUID `json:"epoch"`
	First uint64    `json:"first"`
	Last  uint64    `json:"last"`
}

// resendName is the file of the numbers that are to be sent again.
const resendName = "resend.json"

// WantResend writes down which numbers are to be sent again, in place of those
// before; none: nothing is.
func (s *Spool) WantResend(ranges []Range) error {
	path := filepath.Join(s.cfg.Dir, resendName)
	if len(ranges) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget what to send again: %w", err)
		}
		return nil
	}
	text, err := json.Marshal(ranges)
	if err != nil {
		return fmt.Errorf("note what to send again: %w", err)
	}
	if err := writeFile(path, text); err != nil {
		return fmt.Errorf("note what to send again: %w", err)
	}
	return nil
}

// WantedResend returns the numbers that are to be sent again.
func (s *Spool) WantedResend() ([]Range, error) {
	text, err := os.ReadFile(filepath.Join(s.cfg.Dir, resendName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var ranges []Range
	if err == nil {
		err = json.Unmarshal(text, &ranges)
	}
	if err != nil {
		return nil, fmt.Errorf("read what to send again: %w", err)
	}
	return ranges, nil
}

// Kept is the place of a settled batch. It is small, for there may be many.
type Kept struct {
	segment *segment
	off     int64
}

// FindKept looks for the numbers in what is kept and returns the places of
// their batches, oldest first, and the numbers that are not there. Unsent ones
// are neither: they are sent anyway. It reads all that is kept.
func (s *Spool) FindKept(ranges []Range) (found []Kept, missing []Range, err error) {
	search := search{ranges: ranges, have: make([][]uint64, len(ranges))}
	for _, p := range s.parts() {
		data, err := os.ReadFile(p.segment.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // dropped meanwhile
		}
		if err != nil {
			return nil, nil, fmt.Errorf("look for kept batches: %w", err)
		}
		entries, _ := scan(data)
		for _, e := range entries {
			if search.wants(e.Mark) && int64(e.off) < p.settled {
				found = append(found, Kept{p.segment, int64(e.off)})
			}
		}
	}
	return found, search.missing(), nil
}

// part is a segment up to where its records are settled.
type part struct {
	segment *segment
	settled int64
}

// parts returns all segments, so that they can be read without the lock.
func (s *Spool) parts() []part {
	s.mu.Lock()
	defer s.mu.Unlock()
	var parts []part
	for _, seg := range s.kept {
		parts = append(parts, part{seg, seg.size})
	}
	for i, seg := range s.segments {
		p := part{segment: seg}
		if i == 0 {
			p.settled = s.headOff
		}
		parts = append(parts, p)
	}
	return parts
}

// ReadKept reads a batch as it was sent. Errors: ErrGone.
func (s *Spool) ReadKept(k Kept) (*Record, error) {
	f, err := os.Stat(k.segment.path)
	if err == nil {
		var r *Record
		if r, err = k.segment.readWithin(k.off, f.Size()); err == nil {
			return r, nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errDamaged) || errors.Is(err, errTorn) {
		return nil, ErrGone
	}
	return nil, fmt.Errorf("read kept batch: %w", err)
}

// search notes which numbers of some ranges were seen.
type search struct {
	ranges []Range
	have   [][]uint64 // by range
}

// wants reports whether any of the ranges has the number.
func (s *search) wants(m batch.Mark) bool {
	wanted := false
	for i, r := range s.ranges {
		if m.Epoch == r.Epoch && m.Sequence >= r.First && m.Sequence <= r.Last {
			s.have[i] = append(s.have[i], m.Sequence)
			wanted = true
		}
	}
	return wanted
}

// missing returns the numbers that were not seen.
func (s *search) missing() []Range {
	var missing []Range
	for i, r := range s.ranges {
		slices.SortFunc(s.have[i], cmp.Compare[uint64])
		next := r.First // the first number that is not accounted for
		for _, n := range s.have[i] {
			if n > next {
				missing = append(missing, Range{r.Epoch, next, n - 1})
			}
			next = n + 1
		}
		if next <= r.Last && next != 0 {
			missing = append(missing, Range{r.Epoch, next, r.Last})
		}
	}
	return missing
}
