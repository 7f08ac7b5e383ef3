package pgread

import (
	"cmp"
	"fmt"
	"hash/maphash"
	"slices"
	"time"

	"github.com/klauspost/compress/s2"

	"pganalytics/pkg/catalogue"
)

// How long an unchanged row may go unsent.
const (
	resendCounters = time.Hour      // so that a rate never reaches back further
	resendContent  = 24 * time.Hour // settings, texts: nothing is computed from neighbours
)

// filter keeps the rows that nobody needs from being sent: those of a family
// with changed_by whose columns did not change, and those of a dimension that
// were sent already. Of a row that changed, the one before is sent too, with
// its own time, so that a rate does not smear over the time in between.
//
// It remembers only what the last sample had; a row that comes back is new. A
// row is a few numbers in a sorted list, and the last sample is compressed: ten
// servers with 2,000 statements each have to fit into a small process. Were two
// keys to have the same 64 bits, their rows would only be sent more often.
type filter struct {
	key     []int // columns that tell rows apart, as places among the row's
	watched []int // columns whose change sends a row
	before  bool
	resend  time.Duration
	seed    maphash.Seed
	rows    []remembered // of the last sample, by key
	at      time.Time    // of the last sample
	size    int          // bytes of its tuples
	last    [][]byte     // its tuples as s2 blocks of blockBytes each, if any of them may be sent later
}

// identity is what the filter knows a row by.
type identity struct {
	key     uint64
	content uint64 // of the watched columns
}

// remembered is a row of the last sample.
type remembered struct {
	key        uint64
	content    uint64
	due        int64  // when it is sent again, microseconds since 1970
	begin, end uint32 // of its tuple, unless that was sent
}

// newFilter returns the family's filter, or nil when all rows are sent.
func newFilter(f *catalogue.Family) *filter {
	if !f.Dimension && len(f.ChangedBy) == 0 {
		return nil
	}
	t := &filter{seed: maphash.MakeSeed(), resend: resendContent}
	for i, c := range f.Columns {
		if slices.Contains(f.Key, c.Name) {
			t.key = append(t.key, i)
		}
		if f.Dimension || slices.Contains(f.ChangedBy, c.Name) {
			t.watched = append(t.watched, i)
		}
		if c.Kind == catalogue.Counter {
			t.before, t.resend = true, resendCounters
		}
	}
	return t
}

// identify returns what a row is known by. starts are those of its fields in
// tuples, and its end.
func (t *filter) identify(tuples []byte, starts []int) identity {
	return identity{hash(t.seed, tuples, starts, t.key), hash(t.seed, tuples, starts, t.watched)}
}

// hash of some fields. Each begins with its length, so that no two different
// lists are the same bytes.
func hash(seed maphash.Seed, tuples []byte, starts, fields []int) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	for _, f := range fields {
		_, _ = h.Write(tuples[starts[f]:starts[f+1]]) // never fails
	}
	return h.Sum64()
}

// part is rows of one time.
type part struct {
	tuples []byte
	rows   int
	at     time.Time
}

// pass returns the rows of a result that are to be sent, in the result's own
// memory, and those of the last one that must go before them.
func (t *filter) pass(res *result, at time.Time) (now, before part, err error) {
	last, err := t.unpack()
	if err != nil {
		return part{}, part{}, fmt.Errorf("expand the last sample: %w", err)
	}
	defer giveBack(last)
	now, before = part{tuples: res.tuples[:0], at: at}, part{at: t.at}
	if t.before {
		t.keep(res.tuples)
	}
	t.at = at
	rows, begin := make([]remembered, 0, len(res.ids)), 0
	for i, id := range res.ids {
		end := res.ends[i]
		r, known := t.find(id.key)
		changed := known && r.content != id.content
		if changed && r.end > r.begin {
			before.add(last[r.begin:r.end])
		}
		r = remembered{key: id.key, content: id.content, due: r.due}
		if !known || changed || overdue(r.due, at, t.resend) {
			now.add(res.tuples[begin:end]) // never beyond where it was
			r.due = dueAfter(t.resend, at, id.key)
		} else if t.before {
			r.begin, r.end = uint32(begin), uint32(end)
		}
		rows = append(rows, r)
		begin = end
	}
	slices.SortFunc(rows, func(a, b remembered) int { return cmp.Compare(a.key, b.key) })
	t.rows = rows
	return now, before, nil
}

// blockBytes is how much of a sample is compressed at once: much enough to
// become a fifth, little enough not to need as much room as the sample.
const blockBytes = 128 << 10

// keep makes these tuples those of the last sample.
func (t *filter) keep(tuples []byte) {
	t.size, t.last = len(tuples), nil
	room := make([]byte, s2.MaxEncodedLen(min(len(tuples), blockBytes)))
	for block := range slices.Chunk(tuples, blockBytes) {
		t.last = append(t.last, slices.Clone(s2.Encode(room, block)))
	}
}

// unpack returns the tuples of the last sample, in borrowed memory.
func (t *filter) unpack() ([]byte, error) {
	tuples := borrow(t.size)
	for _, block := range t.last {
		rest := tuples[len(tuples):t.size]
		more, err := s2.Decode(rest, block)
		if err != nil {
			return nil, err
		}
		tuples = tuples[:len(tuples)+len(more)]
	}
	return tuples, nil
}

func (p *part) add(tuple []byte) {
	p.tuples = append(p.tuples, tuple...)
	p.rows++
}

// find returns what is remembered of a row, if the last sample had it.
func (t *filter) find(key uint64) (remembered, bool) {
	i, known := slices.BinarySearchFunc(t.rows, key, func(r remembered, key uint64) int { return cmp.Compare(r.key, key) })
	if !known {
		return remembered{}, false
	}
	return t.rows[i], true
}

// dueAfter returns when a row that is sent now is sent again at the latest, in
// microseconds since 1970. Up to a tenth of the time is taken off, so that rows
// do not all come at once.
func dueAfter(resend time.Duration, at time.Time, key uint64) int64 {
	return at.Add(resend - time.Duration(key%uint64(resend/10))).UnixMicro()
}

// overdue reports whether that time has come. One too far ahead means that the
// clock was set back.
func overdue(due int64, at time.Time, resend time.Duration) bool {
	wait := due - at.UnixMicro()
	return wait <= 0 || wait > resend.Microseconds()
}
