package jsonpush

import (
	"slices"
	"strconv"

	"pganalytics/pkg/batch"
)

// rows decodes the rows of an item, or holds them back as they are while what
// tells their form is still to come. Final means that nothing is to come.
func (d *decoder) rows(scan *scanner, it *item, final bool) error {
	if scan.peek() != kindArray {
		it.refuse("/rows", rowsInvalid)
		return scan.skip()
	}
	if err := scan.open(); err != nil {
		return err
	}
	if scan.more() {
		byName := scan.peek() == kindObject
		switch {
		case it.plan != nil && byName:
			it.refuse("/columns", columnsWithNames)
		case it.plan != nil:
		case it.family != nil && byName && !it.hasColumns:
			it.plan = planByName(it.family, &d.limits)
		case final:
			it.refuse("", columnsMissing)
		default:
			var err error
			if it.held, err = scan.rest(); err != nil {
				return err
			}
			return scan.leave()
		}
	}
	enc := rowEncoder{decoder: d, item: it}
	for row := 0; scan.more(); row++ {
		if it.rejection != nil {
			if err := scan.skip(); err != nil {
				return err
			}
			continue
		}
		raw, err := scan.value()
		if err != nil {
			return err
		}
		if err := enc.row(raw, row); err != nil {
			return err
		}
	}
	return scan.leave()
}

// rowEncoder appends the rows of one item to the tuples.
type rowEncoder struct {
	*decoder
	item   *item
	lead   []byte   // what every tuple begins with
	values [][]byte // of a row that is an object, by field
}

// row encodes one row. Its faults refuse the item.
func (e *rowEncoder) row(raw []byte, row int) error {
	it, p := e.item, e.item.plan
	if e.lead == nil {
		e.begin()
	}
	if e.rowCount++; e.rowCount > e.limits.MaxRows {
		return tooLarge("/metrics", codeTooManyRows, "the body has more rows than allowed")
	}
	e.reserve()
	switch k := kindOf(raw); {
	case k == kindArray && !p.byName:
		e.array(raw, row)
	case k == kindObject && p.byName:
		e.object(raw, row)
	default:
		it.refuse(rowPointer(row), rowsInvalid)
	}
	it.rows++
	return e.fits()
}

// reserve doubles the room for tuples before it runs out. Append alone grows
// large slices by a quarter and copies them three times as often.
func (d *decoder) reserve() {
	const spare = 4 << 10 // more than most rows take
	if cap(d.tuples)-len(d.tuples) < spare {
		d.tuples = slices.Grow(d.tuples, max(4*spare, len(d.tuples)))
	}
}

// begin makes the lead from what is known so far; the rest is stamped later.
func (e *rowEncoder) begin() {
	it := e.item
	it.lead = e.leadOf(it)
	e.lead = batch.AppendTuple(nil, batch.LeadFields+len(it.plan.columns), timeOf(it.lead.us), it.lead.server.id)
	if it.plan.byName {
		e.values = make([][]byte, len(it.plan.fields))
	}
}

func (e *rowEncoder) array(raw []byte, row int) {
	start := len(e.tuples)
	e.tuples = append(e.tuples, e.lead...)
	fields := e.item.plan.fields
	values := walk(raw)
	for i := range fields {
		value, ok := values.next()
		if !ok {
			e.item.refuse(rowPointer(row), rowArity)
			return
		}
		if bad := e.value(&fields[i], value, start, row); bad != nil {
			e.item.refuse(rowPointer(row)+"/"+strconv.Itoa(i), bad)
			return
		}
	}
	if _, more := values.next(); more {
		e.item.refuse(rowPointer(row), rowArity)
	}
}

func (e *rowEncoder) object(raw []byte, row int) {
	p := e.item.plan
	clear(e.values)
	members := walk(raw)
	at := 0
	for {
		quoted, ok := members.next()
		if !ok {
			break
		}
		value, _ := members.next()
		name := text(quoted)
		if at, ok = p.find(name, at); !ok {
			e.item.refuse(rowPointer(row), columnUnknown)
			return
		}
		if k := kindOf(value); k == kindObject || k == kindArray {
			e.item.refuse(rowPointer(row)+"/"+p.fields[at].name, valueType)
			return
		}
		e.values[at] = value
		at++
	}
	if hasTime := e.values[p.timeAt] != nil; e.item.rows > 0 && hasTime != e.item.ownTime {
		e.item.refuse(rowPointer(row), rowTimeMixed)
		return
	}
	start := len(e.tuples)
	e.tuples = append(e.tuples, e.lead...)
	for i, value := range e.values {
		if value == nil {
			if i == p.timeAt {
				continue
			}
			value = null
		}
		if bad := e.value(&p.fields[i], value, start, row); bad != nil {
			e.item.refuse(rowPointer(row)+"/"+p.fields[i].name, bad)
			return
		}
	}
}

var null = []byte("null")

// value appends one value, or puts a row's time to the front of its tuple,
// which begins at start.
func (e *rowEncoder) value(f *field, raw []byte, start, row int) *problem {
	if !f.isTime {
		var bad *problem
		e.tuples, bad = f.append(e.tuples, raw)
		return bad
	}
	switch kindOf(raw) {
	case kindString:
	case kindNull:
		return valueNull
	default:
		return valueTime
	}
	us, ok := parseTime(text(raw))
	if !ok {
		return valueTime
	}
	// Not appended: it overwrites the time that the lead brought.
	batch.AppendTime(e.tuples[:start+timeOffset], timeOf(us))
	it := e.item
	if it.rows == 0 || us < it.minUS {
		it.minUS, it.minRow = us, row
	}
	if it.rows == 0 || us > it.maxUS {
		it.maxUS, it.maxRow = us, row
	}
	it.ownTime = true
	return nil
}
