package pgread

import (
	"encoding/binary"
	"hash/maphash"
	"slices"
	"time"

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
// It remembers only what the last sample had; a row that comes back is new.
type filter struct {
	key     []int // columns that tell rows apart
	watched []int // columns whose change sends a row
	before  bool
	resend  time.Duration
	seed    maphash.Seed
	rows    map[string]*remembered
}

// remembered is the last sample's row.
type remembered struct {
	hash   uint64
	at     time.Time
	unsent []byte // nil when it was sent
	due    time.Time
}

// newFilter returns the family's filter, or nil when all rows are sent.
func newFilter(f *catalogue.Family) *filter {
	if !f.Dimension && len(f.ChangedBy) == 0 {
		return nil
	}
	t := &filter{seed: maphash.MakeSeed(), resend: resendContent, rows: map[string]*remembered{}}
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

// sample is one row as the filter sees it.
type sample struct {
	key  string
	hash uint64 // of the watched columns
	row  []byte // encoded
}

// sample makes a sample of a row. values are in the family's order and in
// PostgreSQL's binary format; they are not kept.
func (t *filter) sample(values [][]byte, row []byte) sample {
	return sample{
		key:  string(join(values, t.key)),
		hash: maphash.Bytes(t.seed, join(values, t.watched)),
		row:  row,
	}
}

// pass returns the rows of this sample that are to be sent and those of the
// last one that must go before them, with that one's time.
func (t *filter) pass(samples []sample, at time.Time) (now, before [][]byte, beforeAt time.Time) {
	for _, s := range samples {
		r, known := t.rows[s.key]
		if !known {
			r = &remembered{}
			t.rows[s.key] = r
		}
		changed := known && r.hash != s.hash
		if changed && r.unsent != nil {
			before, beforeAt = append(before, r.unsent), r.at
		}
		r.unsent = nil
		// Due too far ahead: the clock was set back.
		if !known || changed || !at.Before(r.due) || r.due.Sub(at) > t.resend {
			now = append(now, s.row)
			r.due = at.Add(t.resend - t.spread(s.key))
		} else if t.before {
			r.unsent = s.row
		}
		r.hash, r.at = s.hash, at
	}
	for key, r := range t.rows {
		if !r.at.Equal(at) {
			delete(t.rows, key)
		}
	}
	return now, before, beforeAt
}

// spread takes up to a tenth off the time until a row is sent again, so that
// they do not all come at once.
func (t *filter) spread(key string) time.Duration {
	return time.Duration(maphash.String(t.seed, key) % uint64(t.resend/10))
}

// join returns the values of some columns so that no two different lists are
// the same bytes.
func join(values [][]byte, columns []int) []byte {
	var b []byte
	for _, c := range columns {
		if values[c] == nil {
			b = binary.BigEndian.AppendUint32(b, ^uint32(0))
			continue
		}
		b = binary.BigEndian.AppendUint32(b, uint32(len(values[c])))
		b = append(b, values[c]...)
	}
	return b
}
