package spool

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
)

// numbering is what the next stamp is made from.
type numbering struct {
	last     batch.Mark // last number given; Sequence 0 in a new epoch
	previous batch.Mark // end of the epoch before; its first batch, and no other, tells it
	refused  []uint64   // still to be told: refused numbers of this epoch
}

// refuse takes a refused batch's numbers among what is still to be told. False:
// they are of another epoch, and each batch speaks for its own epoch only.
func (n *numbering) refuse(l *line) bool {
	if l.Epoch != n.last.Epoch {
		return false
	}
	n.refused = append(n.refused, l.Numbers...)
	return true
}

// state is what the directory tells, before anything is changed.
type state struct {
	numbering
	newEpoch bool // the end of the numbering is not proven

	segments    []*segment // those with unsettled records, or else the last one
	settled     []*segment // those before
	headOff     int64      // in segments[0], as it is without damage
	unsent      int
	unsentBytes int64
	deadBytes   int64
	journal     journalDamage
}

// load reads journal and segments. It changes nothing, so it may run beside a
// collector; it then sees some moment of the recent past.
func load(dir string) (*state, error) {
	st := &state{}
	lines, damage, err := readJournals(dir)
	if err != nil {
		return nil, err
	}
	st.journal = damage
	epoch, cursor := st.replay(lines)
	end, damaged, err := st.readSegments(dir, cursor)
	if err != nil {
		return nil, err
	}
	st.decide(epoch, cursor, end, damaged)
	st.deadBytes, err = deadBytes(dir)
	return st, err
}

// replay follows the journal. It returns the entry of the current epoch and
// the last one that settled a batch, zero when there is none.
func (st *state) replay(lines []line) (epoch, cursor line) {
	for i := range lines {
		l := &lines[i]
		if l.settles() {
			cursor = *l
		}
		switch {
		case l.Kind == kindEpoch && l.Epoch != epoch.Epoch:
			epoch = *l
			st.numbering = numbering{last: batch.Mark{Epoch: l.Epoch}, previous: l.previous()}
		case l.Kind == kindRefused:
			st.refuse(l)
		case l.Kind == kindReported:
			st.refused = slices.DeleteFunc(st.refused, func(n uint64) bool { return slices.Contains(l.Numbers, n) })
		}
	}
	return epoch, cursor
}

// readSegments finds the records behind the cursor. It returns the last number
// of all, that of a damaged record included.
func (st *state) readSegments(dir string, cursor line) (end batch.Mark, damaged bool, err error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix)) // sorted, and so by id
	if err != nil {
		return end, false, fmt.Errorf("list segments: %w", err)
	}
	for _, path := range paths {
		seg := &segment{path: path}
		if _, err := fmt.Sscanf(filepath.Base(path), "%x", &seg.id); err != nil {
			return end, false, fmt.Errorf("unknown file %s in the spool: %w", path, err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return end, false, fmt.Errorf("read segment: %w", err)
		}
		st.segments = append(st.segments, seg)
		var entries []entry
		entries, seg.damage = scan(data)
		for _, e := range entries {
			end = e.Mark
			seg.size += int64(e.size)
			st.unsent++
			st.unsentBytes += int64(e.size)
			if e.BatchID == cursor.BatchID && e.Mark == cursor.mark() {
				st.settleTo(seg)
			}
		}
		if seg.damage.lost.Sequence > 0 {
			end = seg.damage.lost
		}
		damaged = damaged || seg.damage.bytes > 0
	}
	return end, damaged, nil
}

// settleTo forgets all records read so far: the journal says they are done.
func (st *state) settleTo(seg *segment) {
	n := len(st.segments) - 1
	st.settled = append(st.settled, st.segments[:n]...)
	st.segments, st.headOff = st.segments[n:], seg.size
	st.unsent, st.unsentBytes = 0, 0
}

// decide says whether the numbering goes on. It does only if the journal's
// epoch and the last record prove where it ended.
func (st *state) decide(epoch, cursor line, end batch.Mark, damaged bool) {
	noRecords := end == (batch.Mark{})
	if noRecords {
		end = cursor.mark()
	}
	current := epoch.Epoch
	switch {
	case current == uuid.Nil, damaged:
		st.newEpoch = true
	case end.Epoch == current: // goes on, unless records have vanished
		st.newEpoch = noRecords || cursor.Epoch == current && cursor.Sequence > end.Sequence
	default: // begun, nothing numbered in it yet
		st.newEpoch = end.Epoch != epoch.PreviousEpoch
	}
	if end.Epoch == current || st.newEpoch && end.Sequence > 0 {
		st.last = end
	}
	if cursor.Epoch == st.last.Epoch && cursor.Sequence > st.last.Sequence {
		st.last = cursor.mark()
	}
}
