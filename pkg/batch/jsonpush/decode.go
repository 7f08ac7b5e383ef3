// Package jsonpush decodes the JSON form of a push: once, in a stream, straight
// into PostgreSQL's binary COPY tuples. What it accepts, COPY accepts.
//
// A fault of the body's structure refuses the body: broken JSON, a name twice,
// an unknown or missing member, an id that is not well-formed, a limit. A fault
// within one item of metrics refuses that item and nothing of it is in the
// batch. The outcome depends on body, catalogue and limits alone, and not on
// the order of members; the clock decides only whether the batch's own time is
// acceptable.
//
// Rows are decoded as they come, so memory holds one value of JSON and the
// tuples. Only an item whose type or columns stand behind its rows has its rows
// held back; a server or time that comes late is stamped into the tuples.
package jsonpush

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/catalogue"
)

// Decode reads a whole body, inflated, which may be a push.Holder, from the
// collector whose credential was verified. The batch is sealed and was received now. Errors are *fault.Error
// of class Invalid, Forbidden, TooLarge or, with code clock_skew, Unprocessable,
// and what the reader returns, wrapped. Beside an error the report is nil, save
// when no item was acceptable (nothing_accepted).
func Decode(body io.Reader, collector uuid.UUID, cat *catalogue.Catalogue, lim push.Limits, now time.Time) (*batch.Batch, *push.Report, error) {
	m := scratches.Get().(*scratch)
	m.scan.reset(push.Bounded(body, lim.MaxBodyBytes, push.BodyTooLarge), newBodyHash(collector))
	holder, _ := body.(push.Holder)
	d := &decoder{
		holder:    holder,
		scan:      &m.scan,
		collector: collector,
		catalogue: cat,
		limits:    lim,
		tuples:    m.tuples,
		servers:   push.ServersOf(collector),
		overhead:  push.HeadBytes,
	}
	defer func() { m.release(d.tuples) }()
	if err := d.members(); err != nil {
		return nil, nil, err
	}
	if err := d.scan.end(); err != nil {
		return nil, nil, err
	}
	b, err := d.identify(now)
	if err != nil {
		return nil, nil, err
	}
	report, err := d.assemble(b)
	if err != nil {
		return nil, report, err
	}
	b.Seal()
	return b, report, nil
}

// scratch is memory that decoding takes and the batch does not keep. Without
// it, getting and clearing memory costs more than reading the JSON.
type scratch struct {
	scan   scanner
	tuples []byte
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// maxScratch is the largest buffer in bytes that is kept for the next body. It
// holds the tuples of usual batches, and is little beside what an unusual one
// takes.
const maxScratch = 256 << 10

func (m *scratch) release(tuples []byte) {
	m.scan.reset(nil, nil) // lets go of the body
	if cap(tuples) <= maxScratch {
		m.tuples = tuples[:0]
	}
	scratches.Put(m)
}

// takeTuples returns the tuples for the batch to keep: a copy, unless they are
// too large to be kept for the next body.
func (d *decoder) takeTuples() []byte {
	if cap(d.tuples) > maxScratch {
		return d.tuples
	}
	return slices.Clone(d.tuples)
}

// decoder is the state of one body.
type decoder struct {
	scan      *scanner
	collector uuid.UUID
	catalogue *catalogue.Catalogue
	limits    push.Limits

	head       push.Head
	seen       []string    // members that were given and not null
	hostname   push.Server // the one that rows are of if they do not say
	timestamp  int64       // microseconds since 1970
	counted    int64       // metrics_count
	items      []*item     // accepted so far, with rows, in the body's order
	emptyItems int         // accepted without rows
	rejected   []push.Rejection
	itemCount  int
	rowCount   int
	tuples     []byte      // of all items back to back
	overhead   int         // of the envelope around the tuples, from above
	holder     push.Holder // nil: nobody asks
	held       int         // bytes that it was told of
	servers    push.Servers
}

// lead is what leads the tuples of an item, as far as rows do not say
// themselves.
type lead struct {
	server push.Server
	us     int64 // microseconds since 1970
}

// leadOf returns the lead of an item by what is known so far.
func (d *decoder) leadOf(it *item) lead {
	l := lead{server: d.hostname, us: d.timestamp}
	if it.server.Name != "" {
		l.server = it.server
	}
	if it.hasTime {
		l.us = it.timestamp
	}
	return l
}

// addItem keeps an item whose rows are in the tuples.
func (d *decoder) addItem(it *item) error {
	d.items = append(d.items, it)
	d.overhead += push.SectionBytes(it.family.Name, it.plan.columns.List)
	return d.fits()
}

// fits checks the batch so far against its limit and the holder's.
func (d *decoder) fits() error {
	size := len(d.tuples) + d.overhead
	if size > d.limits.MaxEncodedBytes {
		return push.BatchTooLarge("/metrics")
	}
	const step = 16 << 10 // the holder need not hear of every row
	if d.holder == nil || size < d.held+step {
		return nil
	}
	grown := size - d.held
	d.held = size
	if err := d.holder.Hold(grown); err != nil {
		return fmt.Errorf("hold rows: %w", err)
	}
	return nil
}

// identify makes the batch without its rows and checks its time against the
// clock.
func (d *decoder) identify(now time.Time) (*batch.Batch, error) {
	if err := d.complete(); err != nil {
		return nil, err
	}
	var derived uuid.UUID
	if d.scan.passed != nil {
		derived = uuid.UUID(d.scan.passed.Sum(nil)[:len(uuid.UUID{})])
	}
	return d.head.Batch(d.collector, derived, timeOf(d.timestamp), now, &d.limits)
}

// assemble puts the accepted items into the batch. It is here that times are
// judged, because only now the batch's own time is known for certain.
func (d *decoder) assemble(b *batch.Batch) (*push.Report, error) {
	tuples := d.takeTuples()
	report := &push.Report{
		ItemsAccepted: d.emptyItems,
		ItemCount:     d.itemCount,
		Hostname:      d.head.Hostname,
		Version:       d.head.Version,
	}
	for _, it := range d.items {
		final := d.leadOf(it)
		if !it.ownTime {
			it.minUS, it.maxUS = final.us, final.us
		}
		if !d.timely(it, b.SentAt) {
			d.rejected = append(d.rejected, *it.rejection)
			continue
		}
		rows := tuples[it.start:it.end:it.end]
		if final != it.lead {
			stamp(rows, final.server.ID, final.us, it.ownTime)
		}
		b.Sections = append(b.Sections, batch.Section{
			Family:   it.family.Name,
			Server:   final.server.Name,
			ServerID: final.server.ID,
			Columns:  it.plan.columns.List,
			Rows:     it.rows,
			MinTime:  timeOf(it.minUS),
			MaxTime:  timeOf(it.maxUS),
			Tuples:   rows,
		})
		report.ItemsAccepted++
		report.RowsAccepted += it.rows
	}
	return report.Judge(b, d.rejected, "/metrics")
}

// timely reports whether all rows of an item lie within what is kept of its
// family, seen from the batch's own time, and refuses the item if not.
func (d *decoder) timely(it *item, sentAt time.Time) bool {
	first, last := d.limits.Window(sentAt, it.family.Retention)
	var row int
	switch {
	case it.minUS < first:
		row = it.minRow
	case it.maxUS > last:
		row = it.maxRow
	default:
		return true
	}
	pointer := ""
	if it.ownTime {
		pointer = rowPointer(row)
	} else if it.hasTime {
		pointer = "/timestamp"
	}
	it.refuse(pointer, push.TimeOutOfRange)
	return false
}

func timeOf(us int64) time.Time { return time.UnixMicro(us).UTC() }

// newBodyHash begins the hash that is the id of a batch whose sender gave none.
func newBodyHash(collector uuid.UUID) hash.Hash {
	h := sha256.New()
	h.Write(collector[:])
	return h
}
