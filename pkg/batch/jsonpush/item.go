package jsonpush

import (
	"bytes"
	"strconv"

	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/catalogue"
)

// item is one entry of metrics while it is decoded.
type item struct {
	index      int
	typeName   string
	family     *catalogue.Family
	server     push.Server // without a name: the body's hostname
	timestamp  int64       // microseconds since 1970
	hasTime    bool        // timestamp was given; else it is the body's
	columns    []byte      // the raw value of columns, once read before type
	hasColumns bool
	plan       *plan
	held       []byte // the raw value of rows, when type or columns come later
	hasRows    bool

	rows           int
	ownTime        bool  // rows have their own times, within these bounds
	minUS, maxUS   int64 // microseconds since 1970
	minRow, maxRow int   // where the bounds were met first
	lead           lead  // what the tuples were encoded with
	start, end     int   // place of the tuples
	rejection      *push.Rejection
}

// refuse notes the item's first fault. All of the item that follows is read
// and passed over.
func (it *item) refuse(pointer string, p *push.Problem) {
	if it.rejection == nil {
		it.rejection = &push.Rejection{Index: it.index, Type: it.typeName, Pointer: itemPointer(it.index) + pointer, Code: p.Code, Reason: p.Reason}
	}
}

func itemPointer(index int) string { return "/metrics/" + strconv.Itoa(index) }

func rowPointer(row int) string { return "/rows/" + strconv.Itoa(row) }

// item decodes the next entry of metrics. Its faults are its own; an error
// concerns the whole body.
func (d *decoder) item(index int) error {
	it := &item{index: index}
	start := len(d.tuples)
	if err := d.itemMembers(it); err != nil {
		return err
	}
	if it.rejection == nil {
		if err := d.completeItem(it); err != nil {
			return err
		}
	}
	if it.rejection != nil {
		d.rejected = append(d.rejected, *it.rejection)
		d.tuples = d.tuples[:start]
		return nil
	}
	if it.rows == 0 {
		d.emptyItems++
		return nil
	}
	it.start, it.end = start, len(d.tuples)
	return d.addItem(it)
}

func (d *decoder) itemMembers(it *item) error {
	if d.scan.peek() != kindObject {
		it.refuse("", itemNotObject)
		return d.scan.skip()
	}
	if err := d.scan.open(); err != nil {
		return err
	}
	for d.scan.more() {
		name, err := d.scan.name()
		if err != nil {
			return err
		}
		if it.rejection != nil {
			err = d.scan.skip()
		} else {
			err = d.itemMember(it, name)
		}
		if err != nil {
			return err
		}
	}
	return d.scan.leave()
}

func (d *decoder) itemMember(it *item, name []byte) error {
	switch string(name) {
	case "rows":
		it.hasRows = true
		return d.rows(d.scan, it, false)
	case "type", "server", "timestamp", "columns":
	default:
		pointer := ""
		if known := push.Printable(name); known != "" {
			pointer = "/" + known
		}
		it.refuse(pointer, itemUnknownMember)
		return d.scan.skip()
	}
	raw, err := d.scan.value()
	if err != nil {
		return err
	}
	switch string(name) {
	case "type":
		d.setType(it, raw)
	case "server":
		if kindOf(raw) == kindNull {
			return nil
		}
		if kindOf(raw) != kindString || !push.ValidName(text(raw)) {
			it.refuse("/server", push.ServerInvalid)
			return nil
		}
		it.server = d.servers.Named(text(raw))
	case "timestamp":
		if kindOf(raw) == kindNull {
			return nil
		}
		ok := kindOf(raw) == kindString
		if ok {
			it.timestamp, ok = parseTime(text(raw))
		}
		it.hasTime = ok
		if !ok {
			it.refuse("/timestamp", timestampInvalid)
		}
	case "columns":
		it.hasColumns = true
		switch {
		case kindOf(raw) != kindArray:
			it.refuse("/columns", push.ColumnsInvalid)
		case it.plan != nil:
			it.refuse("/columns", columnsWithNames)
		case it.family == nil:
			it.columns = bytes.Clone(raw)
		default:
			d.setColumns(it, raw)
		}
	}
	return nil
}

func (d *decoder) setType(it *item, raw []byte) {
	if kindOf(raw) != kindString {
		it.refuse("/type", push.FamilyUnknown)
		return
	}
	name := text(raw)
	it.typeName = push.Printable(name)
	family, ok := d.catalogue.Family(string(name))
	if !ok {
		it.refuse("/type", push.FamilyUnknown)
		return
	}
	it.family, it.typeName = family, family.Name
}

func (d *decoder) setColumns(it *item, raw []byte) {
	p, at, bad := planOf(it.family, raw, &d.limits)
	switch {
	case bad == nil:
		it.plan = p
	case at < 0:
		it.refuse("/columns", bad)
	default:
		it.refuse("/columns/"+strconv.Itoa(at), bad)
	}
}

// completeItem decodes what had to wait for a later member.
func (d *decoder) completeItem(it *item) error {
	if it.family == nil || !it.hasRows {
		it.refuse("", itemMissing)
		return nil
	}
	if it.columns != nil {
		d.setColumns(it, it.columns)
	}
	if it.held != nil && it.rejection == nil {
		return d.rows(scannerOf(it.held), it, true)
	}
	return nil
}
