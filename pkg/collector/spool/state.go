package spool

import (
	"errors"
	"fmt"
	"io/fs"
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
	newEpoch bool   // the end of the numbering is not proven
	origin   string // of the current epoch

	segments []*segment // those with unsettled records, or else the last one
	kept     []*segment // those before; they are not read
	headOff  int64      // in segments[0], as it is without damage
	accepted Acceptance // the last one
	journal  journalDamage
	load
}

// load is how much there is.
type load struct {
	unsent      int
	unsentBytes int64
	keptBytes   int64
	dead        int
	deadBytes   int64
}

// readState reads journal and segments. It changes nothing, so it may run
// beside a collector; it then sees some moment of the recent past.
func readState(dir string) (*state, error) {
	st := &state{}
	var epoch, cursor line
	var err error
	if st.journal, err = readJournals(dir, func(l *line) { st.replay(l, &epoch, &cursor) }); err != nil {
		return nil, err
	}
	st.origin = epoch.Origin
	end, damaged, err := st.readSegments(dir, cursor)
	if err != nil {
		return nil, err
	}
	st.decide(epoch, cursor, end, damaged)
	st.dead, st.deadBytes, err = countLetters(dir)
	return st, err
}

// replay follows the journal. It keeps the entry of the current epoch and the
// last one that settled a batch, zero when there is none.
func (st *state) replay(l, epoch, cursor *line) {
	if l.settles() {
		*cursor = *l
	}
	switch l.Kind {
	case kindEpoch:
		if l.Epoch != epoch.Epoch {
			st.numbering = numbering{last: batch.Mark{Epoch: l.Epoch}, previous: l.previous()}
		}
		*epoch = *l
	case kindAccepted:
		st.accepted = l.acceptance()
	case kindRefused:
		st.refuse(l)
	case kindReported:
		st.refused = slices.DeleteFunc(st.refused, func(n uint64) bool { return slices.Contains(l.Numbers, n) })
	}
}

// readSegments finds the records behind the cursor, from the newest one back.
// It returns the last number of all, that of a damaged record included.
func (st *state) readSegments(dir string, cursor line) (end batch.Mark, damaged bool, err error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix)) // sorted, and so by id
	if err != nil {
		return end, false, fmt.Errorf("list segments: %w", err)
	}
	b := boundary{cursor: cursor.mark()}
	for _, path := range slices.Backward(paths) {
		seg := &segment{path: path}
		if _, err := fmt.Sscanf(filepath.Base(path), "%x", &seg.id); err != nil {
			return end, false, fmt.Errorf("unknown file %s in the spool: %w", path, err)
		}
		if b.passed {
			err = st.keep(seg)
		} else {
			damaged, err = st.readSegment(seg, &b, &end, damaged)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // else it was removed meanwhile
			return end, false, fmt.Errorf("read segment: %w", err)
		}
	}
	slices.Reverse(st.segments)
	slices.Reverse(st.kept)
	return end, damaged, nil
}

// readSegment adds the segment, whose records are older than all that were read.
func (st *state) readSegment(seg *segment, b *boundary, end *batch.Mark, damaged bool) (bool, error) {
	data, err := os.ReadFile(seg.path)
	if err != nil {
		return damaged, err
	}
	st.segments = append(st.segments, seg)
	var entries []entry
	entries, seg.damage = scan(data)
	if *end == (batch.Mark{}) {
		*end = seg.damage.lost
		if n := len(entries); n > 0 && seg.damage.lost.Sequence == 0 {
			*end = entries[n-1].Mark
		}
	}
	for _, e := range slices.Backward(entries) {
		seg.size += int64(e.size)
		if b.pass(e.Mark) {
			st.headOff += int64(e.size)
			continue
		}
		st.unsent++
		st.unsentBytes += int64(e.size)
	}
	return damaged || seg.damage.bytes > 0, nil
}

// keep adds a segment of which everything is settled.
func (st *state) keep(seg *segment) error {
	info, err := os.Stat(seg.path)
	if err != nil {
		return err
	}
	seg.size, seg.settledAt = info.Size(), info.ModTime()
	st.kept = append(st.kept, seg)
	st.keptBytes += seg.size
	return nil
}

// boundary parts what is settled from what is not, going back through the
// records. They were settled in their order, so the cursor's own record need not
// be readable.
type boundary struct {
	cursor batch.Mark
	passed bool // all that is older is settled
	seen   bool // a record of the cursor's epoch
}

// pass reports whether the next older record is settled.
func (b *boundary) pass(m batch.Mark) bool {
	switch {
	case b.cursor.Sequence == 0: // nothing is known to be settled
	case m.Epoch == b.cursor.Epoch:
		b.seen = true
		b.passed = b.passed || m.Sequence <= b.cursor.Sequence
	case b.seen: // an epoch before
		b.passed = true
	}
	return b.passed
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
