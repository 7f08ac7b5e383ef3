package native

import (
	"io"
	"slices"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/internal/wire"
	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/catalogue"
)

// Decode reads a whole body, inflated, which may be a push.Holder, from the
// collector whose credential was verified. Nothing in it is trusted: what it
// accepts, COPY accepts, and no row is of another collector's server. The batch
// is sealed and was received now; its tuples are parts of one copy of the body.
// Errors are *fault.Error of class Invalid, Forbidden, TooLarge or, with code
// clock_skew, Unprocessable, and what the reader returns, wrapped. Beside an
// error the report is nil, save when no section was acceptable
// (nothing_accepted). Pointers have the names of the message's fields; behind
// tuples stand the row and the field within it, time first.
func Decode(body io.Reader, collector uuid.UUID, cat *catalogue.Catalogue, lim push.Limits, now time.Time) (*batch.Batch, *push.Report, error) {
	data, err := readBody(body, &lim)
	if err != nil {
		return nil, nil, err
	}
	d := &decoder{collector: collector, catalogue: cat, limits: &lim, servers: push.ServersOf(collector), size: push.HeadBytes}
	if err := d.read(data); err != nil {
		return nil, nil, err
	}
	b, err := d.head.Batch(collector, uuid.Nil, time.Time{}, now, &lim)
	if err != nil {
		return nil, nil, err
	}
	report := &push.Report{ItemCount: len(d.sections), Hostname: d.head.Hostname, Version: d.head.Version}
	for i, section := range d.sections {
		if err := d.take(b, report, i, section); err != nil {
			return nil, nil, err
		}
	}
	report, err = report.Judge(b, d.refused, "/sections")
	if err != nil {
		return nil, report, err
	}
	b.Seal()
	return b, report, nil
}

// decoder is the state of one body.
type decoder struct {
	collector uuid.UUID
	catalogue *catalogue.Catalogue
	limits    *push.Limits
	servers   push.Servers

	head     push.Head
	sections [][]byte // as they came
	refused  []push.Rejection
	rows     int // found so far, those of refused sections included
	size     int // of the envelope, from above
}

// read reads the body but for what is in its sections, by the rules that hold
// for every form.
func (d *decoder) read(data []byte) error {
	seen, count := make([]bool, len(pushMessage)), uint64(0)
	for f, bad := range pushMessage.fields(data) {
		if bad != nil {
			return invalid("", bad)
		}
		seen[f.Num] = true
		if f.Num == fieldSectionCount {
			count = f.Uint
		} else if err := d.field(&f); err != nil {
			return err
		}
	}
	switch {
	case !seen[fieldCollectorID]:
		return push.Invalid("/collector_id", push.CodeMissing, "the message needs this field")
	case !seen[fieldHostname]:
		return push.Invalid("/hostname", push.CodeMissing, "the message needs this field")
	case !seen[fieldBatchID]:
		return push.Invalid("/batch_id", push.CodeMissing, "the message needs this field")
	case count != uint64(len(d.sections)):
		return push.Invalid("/section_count", codeSectionCount, "is not the number of sections")
	}
	return nil
}

func (d *decoder) field(f *wire.Field) (err error) {
	h := &d.head
	id, idErr := uuid.FromBytes(f.Bytes)
	isUUID := idErr == nil
	switch f.Num {
	case fieldCollectorID:
		return h.SetCollector(id, isUUID, d.collector)
	case fieldHostname:
		return h.SetHostname(f.Bytes)
	case fieldVersion:
		return h.SetVersion(f.Bytes, true)
	case fieldBatchID:
		return h.SetBatchID(id, isUUID)
	case wire.Epoch:
		h.Epoch, err = push.Epoch(id, isUUID, "/epoch")
	case wire.Sequence:
		h.Sequence, err = push.Number(f.Uint, true, "/sequence")
	case wire.Previous:
		return d.previous(f.Bytes)
	case wire.Refused:
		return d.refusedNumbers(f)
	case fieldLabels:
		return d.label(f.Bytes)
	case fieldSections:
		if len(d.sections) == d.limits.MaxItems {
			return push.TooLarge("/sections", push.CodeTooManyItems, "the body has more sections than allowed")
		}
		d.sections = append(d.sections, f.Bytes)
	}
	return err
}

func (d *decoder) previous(data []byte) (err error) {
	d.head.Previous = new(batch.Mark)
	for f, bad := range markMessage.fields(data) {
		switch {
		case bad != nil:
			return invalid("/previous", bad)
		case f.Num == wire.MarkEpoch:
			id, idErr := uuid.FromBytes(f.Bytes)
			d.head.Previous.Epoch, err = push.Epoch(id, idErr == nil, "/previous/epoch")
		default:
			d.head.Previous.Sequence, err = push.Number(f.Uint, true, "/previous/sequence")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *decoder) refusedNumbers(f *wire.Field) error {
	list, err := f.Numbers(nil)
	if err != nil {
		return invalid("/refused", malformed)
	}
	for _, n := range list {
		if err := d.head.AddRefused(n, true); err != nil {
			return err
		}
		d.size += push.RefusedBytes
	}
	return nil
}

func (d *decoder) label(data []byte) error {
	var name, value []byte
	for f, bad := range labelMessage.fields(data) {
		switch {
		case bad != nil:
			return invalid("/labels", bad)
		case f.Num == wire.LabelName:
			name = f.Bytes
		default:
			value = f.Bytes
		}
	}
	if err := d.head.AddLabel(name, value, true); err != nil {
		return err
	}
	d.size += push.LabelBytes(batch.Label{Name: string(name), Value: string(value)})
	return nil
}

// take puts a section into the batch, or among those that are refused. An error
// concerns the whole body.
func (d *decoder) take(b *batch.Batch, report *push.Report, index int, data []byte) error {
	s := section{decoder: d, sentAt: b.SentAt}
	refused := s.read(data)
	if d.rows += s.found.rows; d.rows > d.limits.MaxRows {
		return push.TooLarge("/sections", push.CodeTooManyRows, "the body has more rows than allowed")
	}
	if refused != nil {
		d.refused = append(d.refused, refused.rejection(index, s.family))
		return nil
	}
	report.ItemsAccepted++
	if s.found.rows == 0 {
		return nil
	}
	if d.size += push.SectionBytes(s.family, s.columns.List) + len(s.tuples); d.size > d.limits.MaxEncodedBytes {
		return tooLarge()
	}
	report.RowsAccepted += s.found.rows
	b.Sections = append(b.Sections, batch.Section{
		Family: s.family, Server: s.server.Name, ServerID: s.server.ID, Columns: s.columns.List,
		Rows: s.found.rows, MinTime: timeOf(s.found.first), MaxTime: timeOf(s.found.last), Tuples: slices.Clip(s.tuples),
	})
	return nil
}
