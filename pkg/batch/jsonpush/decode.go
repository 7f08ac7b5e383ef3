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
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/fault"
)

// Holder is a body that bounds the memory it costs. Rows can take many times
// the bytes in a batch that they take in JSON.
type Holder interface {
	// Hold is told that the batch has grown by so many bytes. Its error ends
	// the decoding and is returned, wrapped.
	Hold(bytes int) error
}

// Decode reads a whole body, inflated, which may be a Holder, from the collector whose credential was
// verified. The batch is sealed and was received now. Errors are *fault.Error
// of class Invalid, Forbidden, TooLarge or, with code clock_skew, Unprocessable,
// and what the reader returns, wrapped. Beside an error the report is nil, save
// when no item was acceptable (nothing_accepted).
func Decode(body io.Reader, collector uuid.UUID, cat *catalogue.Catalogue, lim Limits, now time.Time) (*batch.Batch, *Report, error) {
	m := scratches.Get().(*scratch)
	m.scan.reset(&boundedReader{src: body, left: lim.MaxBodyBytes}, newBodyHash(collector))
	holder, _ := body.(Holder)
	d := &decoder{
		holder:    holder,
		scan:      &m.scan,
		collector: collector,
		catalogue: cat,
		limits:    lim,
		tuples:    m.tuples,
		servers:   map[string]server{},
		overhead:  envelopeOverhead,
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
	limits    Limits

	head       head
	items      []*item // accepted so far, with rows, in the body's order
	emptyItems int     // accepted without rows
	rejected   []Rejection
	itemCount  int
	rowCount   int
	tuples     []byte // of all items back to back
	overhead   int    // of the envelope around the tuples, from above
	holder     Holder // nil: nobody asks
	held       int    // bytes that it was told of
	servers    map[string]server
}

// server is a collector's name for a server, with its id.
type server struct {
	name string
	id   uuid.UUID
}

// server returns the server of that name and computes its id once per body.
func (d *decoder) server(name []byte) server {
	s, ok := d.servers[string(name)]
	if !ok {
		s.name = string(name)
		s.id = batch.ServerID(d.collector, s.name)
		d.servers[s.name] = s
	}
	return s
}

// lead is what leads the tuples of an item, as far as rows do not say
// themselves.
type lead struct {
	server server
	us     int64 // microseconds since 1970
}

// leadOf returns the lead of an item by what is known so far.
func (d *decoder) leadOf(it *item) lead {
	l := lead{server: d.head.hostname, us: d.head.timestamp}
	if it.server.name != "" {
		l.server = it.server
	}
	if it.hasTime {
		l.us = it.timestamp
	}
	return l
}

// Upper bounds of what the envelope takes beside the tuples: fixed fields, and
// of each label and section what is not names.
const (
	envelopeOverhead = 512
	labelOverhead    = 16
	sectionOverhead  = 96
	columnOverhead   = 12
	refusedOverhead  = 10
)

// addItem keeps an item whose rows are in the tuples.
func (d *decoder) addItem(it *item) error {
	d.items = append(d.items, it)
	d.overhead += sectionOverhead + len(it.family.Name) + maxNameBytes
	for _, c := range it.plan.columns {
		d.overhead += columnOverhead + len(c.Name)
	}
	return d.fits()
}

// fits checks the batch so far against its limit and the holder's.
func (d *decoder) fits() error {
	size := len(d.tuples) + d.overhead
	if size > d.limits.MaxEncodedBytes {
		return batchTooLarge()
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

func batchTooLarge() *fault.Error {
	return tooLarge("/metrics", codeBatchTooLarge, "the encoded batch is larger than one message may be; send it in parts")
}

// identify makes the batch without its rows and checks its time against the
// clock.
func (d *decoder) identify(now time.Time) (*batch.Batch, error) {
	h := &d.head
	if err := h.complete(d.itemCount); err != nil {
		return nil, err
	}
	b := &batch.Batch{
		CollectorID: d.collector,
		ID:          h.batchID,
		SentAt:      timeOf(h.timestamp),
		Epoch:       h.epoch,
		Sequence:    h.sequence,
		Previous:    h.previous,
		Refused:     h.refused,
		Labels:      h.labels,
		ReceivedAt:  now.UTC().Truncate(time.Microsecond),
	}
	if h.has("batch_id") {
		b.SentAt = timeOfUUIDv7(h.batchID)
	} else {
		b.ID = uuid.UUID(d.scan.passed.Sum(nil)[:len(uuid.UUID{})])
	}
	switch {
	case b.SentAt.Before(now.Add(-d.limits.MaxAge)):
		return nil, invalid("", codeTooOld, "the batch's time lies too far in the past")
	case b.SentAt.After(now.Add(d.limits.MaxAhead)):
		return nil, fault.New(fault.Unprocessable, codeClockSkew, "the batch's time lies ahead of the server's clock")
	}
	return b, nil
}

// assemble puts the accepted items into the batch. It is here that times are
// judged, because only now the batch's own time is known for certain.
func (d *decoder) assemble(b *batch.Batch) (*Report, error) {
	tuples := d.takeTuples()
	report := &Report{
		ItemsAccepted: d.emptyItems,
		MetricsCount:  d.itemCount,
		Hostname:      d.head.hostname.name,
		Version:       d.head.version,
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
			stamp(rows, final.server.id, final.us, it.ownTime)
		}
		b.Sections = append(b.Sections, batch.Section{
			Family:   it.family.Name,
			Server:   final.server.name,
			ServerID: final.server.id,
			Columns:  it.plan.columns,
			Rows:     it.rows,
			MinTime:  timeOf(it.minUS),
			MaxTime:  timeOf(it.maxUS),
			Tuples:   rows,
		})
		report.ItemsAccepted++
		report.RowsAccepted += it.rows
	}
	report.list(d.rejected)
	switch {
	case d.itemCount == 0 && b.Sequence == 0:
		return nil, invalid("/metrics", codeMetricsEmpty, "a batch without epoch and sequence must hold at least one item")
	case d.itemCount > 0 && report.ItemsAccepted == 0:
		return report, report.nothingAccepted()
	}
	return report, nil
}

// timely reports whether all rows of an item lie within what is kept of its
// family, seen from the batch's own time, and refuses the item if not.
func (d *decoder) timely(it *item, sentAt time.Time) bool {
	var row int
	switch {
	case it.minUS < sentAt.Add(-it.family.Retention).UnixMicro():
		row = it.minRow
	case it.maxUS > sentAt.Add(d.limits.MaxAhead).UnixMicro():
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
	it.refuse(pointer, timeOutOfRange)
	return false
}

func timeOf(us int64) time.Time { return time.UnixMicro(us).UTC() }

// newBodyHash begins the hash that is the id of a batch whose sender gave none.
func newBodyHash(collector uuid.UUID) hash.Hash {
	h := sha256.New()
	h.Write(collector[:])
	return h
}

// boundedReader bounds the body.
type boundedReader struct {
	src  io.Reader
	left int64
}

func (r *boundedReader) Read(p []byte) (int, error) {
	n, err := r.src.Read(p)
	if r.left -= int64(n); r.left < 0 {
		return 0, tooLarge("", codeBodyTooLarge, "the body is larger than allowed")
	}
	return n, err
}

func tooLarge(pointer, code, detail string) *fault.Error {
	e := fault.New(fault.TooLarge, code, detail)
	if pointer != "" {
		e.Fields = []fault.Field{{Pointer: pointer, Code: code, Detail: detail}}
	}
	return e
}
