package verify

import (
	"bytes"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
)

// tally gathers what is known of every collector's numbers. It grows with the
// collectors, their epochs and the holes in them, not with the batches.
type tally struct {
	Request
	collectors map[uuid.UUID]*collector
	// closed: which numbers are asked about is settled, and only where they are
	// is still added.
	closed bool
}

type collector struct {
	epochs     map[uuid.UUID]*epoch
	unnumbered Counts
	newest     Number
}

type epoch struct {
	numbering
	first, last uint64    // of the numbers seen in the window; 0: none
	named       uint64    // the last number, as the epoch after it tells
	namedAt     time.Time // when that was sent
}

func newTally(req Request) *tally {
	return &tally{Request: req, collectors: map[uuid.UUID]*collector{}}
}

// stepped is how far a sender's clock may have been put back between two of its
// batches: so far around the window a batch is looked for before it counts as
// lost.
const stepped = 24 * time.Hour

// near reports whether a batch can say something about the window.
func (t *tally) near(b *batch.Batch) bool {
	return t.wants(b.CollectorID) &&
		(t.From.IsZero() || !b.SentAt.Before(t.From.Add(-stepped))) &&
		(t.To.IsZero() || !b.SentAt.After(t.To.Add(stepped)))
}

// within reports whether a batch is one of those that are asked about.
func (t *tally) within(b *batch.Batch) bool {
	return (t.From.IsZero() || !b.SentAt.Before(t.From)) && (t.To.IsZero() || !b.SentAt.After(t.To))
}

func (t *tally) wants(collector uuid.UUID) bool {
	return len(t.Collectors) == 0 || slices.Contains(t.Collectors, collector)
}

// add notes where a batch is. One that has no number must be added once.
func (t *tally) add(b *batch.Batch, class Class) {
	if !t.near(b) {
		return
	}
	c := t.collectors[b.CollectorID]
	if c == nil {
		if t.closed {
			return
		}
		c = &collector{epochs: map[uuid.UUID]*epoch{}}
		t.collectors[b.CollectorID] = c
	}
	asked := !t.closed && t.within(b)
	if asked {
		c.newest = newer(c.newest, Number{b.Epoch, b.Sequence, b.SentAt})
	}
	if b.Epoch == uuid.Nil || b.Sequence == 0 {
		if asked {
			c.unnumbered[class]++
		}
		return
	}
	e := c.epoch(b.Epoch)
	if class == Stored && e.numbering[Discarded].has(b.Sequence) {
		class = Discarded // who saw it on the stream knows only that the ledger has it
	}
	e.numbering[class].add(b.Sequence, b.SentAt)
	for _, n := range b.Refused {
		if n > 0 {
			e.numbering[Refused].add(n, time.Time{})
		}
	}
	if !asked {
		return
	}
	if e.first == 0 || b.Sequence < e.first {
		e.first = b.Sequence
	}
	e.last = max(e.last, b.Sequence)
	if b.Previous.Epoch != uuid.Nil && b.Previous.Sequence > 0 {
		before := c.epoch(b.Previous.Epoch)
		before.named, before.namedAt = max(before.named, b.Previous.Sequence), b.SentAt
	}
}

// entered notes what the ledger has.
func (t *tally) entered(b *batch.Batch, discarded bool) error {
	class := Stored
	if discarded {
		class = Discarded
	}
	t.add(b, class)
	return nil
}

func newer(a, b Number) Number {
	if b.SentAt.After(a.SentAt) || b.Epoch == a.Epoch && b.Sequence > a.Sequence {
		return b
	}
	return a
}

func (c *collector) epoch(id uuid.UUID) *epoch {
	e := c.epochs[id]
	if e == nil {
		e = &epoch{}
		c.epochs[id] = e
	}
	return e
}

// asked returns the numbers of an epoch that are asked about, none if last is
// zero. Whether those before the first one seen are missing, or only out of
// sight, is known if the epoch itself began in sight.
func (e *epoch) asked(id uuid.UUID, inSight time.Time) (first, last uint64) {
	last = max(e.last, e.named)
	switch {
	case inSight.IsZero(), id.Version() == 7 && !began(id).Before(inSight):
		return 1, last
	case e.first == 0:
		return 0, 0
	}
	return e.first, last
}

// began returns the time in a UUIDv7.
func began(id uuid.UUID) time.Time {
	sec, nsec := id.Time().UnixTime()
	return time.Unix(sec, nsec)
}

// gaps calls f for the parts of an epoch's numbers, the stored ones too, with
// the times that their neighbours lend them.
func (e *epoch) gaps(first, last uint64, f func(Gap)) {
	var open *Gap // waits for the time of its successor
	var before time.Time
	flush := func(after time.Time) {
		if open == nil {
			return
		}
		if open.To.IsZero() {
			open.To = after
		}
		f(*open)
		open = nil
	}
	e.each(first, last, func(class Class, s span) {
		flush(s.begin)
		open = &Gap{First: s.first, Last: s.last, Class: class, From: s.begin, To: s.end}
		if open.From.IsZero() {
			open.From = before
		}
		before = s.end
	})
	if e.last < last {
		flush(e.namedAt)
	}
	flush(time.Time{})
}

// report fills in what was found of the numbers.
func (t *tally) report(r *Report) {
	inSight := t.From
	if r.Known.After(inSight) {
		inSight = r.Known
	}
	for _, id := range sorted(t.collectors) {
		c := t.collectors[id]
		found := Collector{ID: id, Batches: c.unnumbered, Newest: c.newest}
		for _, n := range c.unnumbered {
			found.Unnumbered += n
		}
		for _, epochID := range sorted(c.epochs) {
			e := c.epochs[epochID]
			first, last := e.asked(epochID, inSight)
			if last == 0 {
				continue
			}
			found.Epochs++
			e.gaps(first, last, func(g Gap) {
				found.Batches[g.Class] += g.Last - g.First + 1
				if g.Class != Stored {
					g.Collector, g.Epoch = id, epochID
					r.gap(g, t.List)
				}
			})
		}
		if found.Batches != (Counts{}) {
			r.Collectors = append(r.Collectors, found)
		}
	}
}

func (r *Report) gap(g Gap, most int) {
	if r.GapCount++; len(r.Gaps) < most {
		r.Gaps = append(r.Gaps, g)
	}
}

// lost returns the collectors of which something seems to be lost.
func (t *tally) lost(known time.Time) []uuid.UUID {
	var ids []uuid.UUID
	var r Report
	r.Known = known
	t.report(&r)
	for _, c := range r.Collectors {
		if c.Batches[Lost] > 0 {
			ids = append(ids, c.ID)
		}
	}
	return ids
}

func sorted[V any](m map[uuid.UUID]V) []uuid.UUID {
	return slices.SortedFunc(maps.Keys(m), func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) })
}
