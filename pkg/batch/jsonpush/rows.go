package jsonpush

import (
	"slices"
	"strconv"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/push"
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
	enc := rowEncoder{decoder: d, scan: scan, item: it}
	for row := 0; scan.more(); row++ {
		var err error
		if it.rejection != nil {
			err = scan.skip()
		} else {
			err = enc.row(row)
		}
		if err != nil {
			return err
		}
	}
	return scan.leave()
}

// rowEncoder appends the rows of one item to the tuples, value by value as they
// are read.
type rowEncoder struct {
	*decoder
	scan *scanner
	item *item
	lead []byte // what every tuple begins with

	// Of a row that is an object, whose members come in any order.
	values []byte  // encoded, as they came
	places []place // by field
	behind []int   // which field came behind which: that behind the first one is at 1
	us     int64   // the row's time
}

// place is where the value of a field lies in values.
type place struct {
	start, end int
	given      bool
}

// row encodes the next row. Its faults refuse the item.
func (e *rowEncoder) row(row int) error {
	it, p := e.item, e.item.plan
	if e.lead == nil {
		e.begin()
	}
	e.reserve()
	depth := len(e.scan.nest)
	e.scan.whole = true
	var err error
	switch k := e.scan.peek(); {
	case k == kindArray && !p.byName:
		err = e.array(row)
	case k == kindObject && p.byName:
		err = e.object(row)
	default:
		it.refuse(rowPointer(row), rowsInvalid)
		err = e.scan.skip()
	}
	if err != nil {
		return err
	}
	if err := e.scan.unwind(depth); err != nil {
		return err
	}
	e.scan.pass()
	if e.rowCount++; e.rowCount > e.limits.MaxRows {
		return push.TooLarge("/metrics", push.CodeTooManyRows, "the body has more rows than allowed")
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
	e.lead = batch.AppendTuple(make([]byte, 0, leadBytes), batch.LeadFields+len(it.plan.columns.List), timeOf(it.lead.us), it.lead.server.ID)
	if it.plan.byName {
		e.places = make([]place, len(it.plan.fields))
		e.behind = make([]int, len(it.plan.fields)+1)
		for i := range e.behind {
			e.behind[i] = i
		}
	}
}

// array encodes a row that is an array, up to its end or its first fault.
func (e *rowEncoder) array(row int) error {
	s, it, fields := e.scan, e.item, e.item.plan.fields
	if err := s.open(); err != nil {
		return err
	}
	start := len(e.tuples)
	dst := append(e.tuples, e.lead...)
	for i := 0; ; i++ {
		var short int
		dst, short = appendShort(dst, s, fields[i:])
		if i += short; i == len(fields) {
			break
		}
		f := &fields[i]
		if !s.more() {
			it.refuse(rowPointer(row), push.RowArity)
			return nil
		}
		raw, err := s.element()
		if err != nil {
			return err
		}
		var bad *push.Problem
		if f.isTime {
			var us int64
			if us, bad = rowTime(raw); bad == nil {
				e.setTime(dst[start:], us, row)
			}
		} else {
			dst, bad = f.append(dst, raw)
		}
		if bad != nil {
			it.refuse(rowPointer(row)+"/"+strconv.Itoa(i), bad)
			return nil
		}
	}
	if s.more() {
		it.refuse(rowPointer(row), push.RowArity)
	}
	e.tuples = dst
	return nil
}

// object encodes a row that is an object, up to its end or its first fault.
func (e *rowEncoder) object(row int) error {
	s, p := e.scan, e.item.plan
	if err := s.open(); err != nil {
		return err
	}
	clear(e.places)
	e.values = e.values[:0]
	for last := 0; s.more(); {
		at, quoted, err := e.column(last)
		if err != nil {
			return err
		}
		if at < 0 {
			e.item.refuse(rowPointer(row), push.ColumnUnknown)
			return e.pass(quoted)
		}
		e.places[at] = place{given: true, start: len(e.values)}
		bad, err := e.member(p.fields[at : at+1])
		if err != nil {
			return err
		}
		if bad != nil {
			e.item.refuse(rowPointer(row)+"/"+p.fields[at].name, bad)
			return e.pass(nil)
		}
		e.places[at].end = len(e.values)
		last = at + 1
	}
	e.join(row)
	return nil
}

// column reads the next name of a row and the colon, and returns the place of
// its field, or -1 and the name if there is no such field; the colon is then
// still to come. Rows name their columns in the same order as a rule, so the
// one is tried that came behind the last one in the row before.
func (e *rowEncoder) column(last int) (int, []byte, error) {
	s, p := e.scan, e.item.plan
	if at := e.behind[last]; at < len(p.fields) && !e.places[at].given && s.nameIs(p.fields[at].quoted) {
		return at, nil, nil
	}
	quoted, err := s.rawName()
	if err != nil {
		return 0, nil, err
	}
	at := p.find(text(quoted))
	if at < 0 {
		return at, quoted, nil
	}
	if e.places[at].given {
		return 0, nil, s.broken(-len(quoted), errDuplicate)
	}
	e.behind[last] = at
	return at, nil, s.colon()
}

// member encodes the next value of a row that is an object.
func (e *rowEncoder) member(f []field) (*push.Problem, error) {
	var short int
	if e.values, short = appendShort(e.values, e.scan, f); short == 1 {
		return nil, nil
	}
	raw, err := e.scan.element()
	if err != nil {
		return nil, err
	}
	var bad *push.Problem
	if f[0].isTime {
		e.us, bad = rowTime(raw)
	} else {
		e.values, bad = f[0].append(e.values, raw)
	}
	return bad, nil
}

// pass prepares the scanner to pass over the rest of a row that is an object:
// it must know the names so far to find one that comes twice. The last one may
// be that of no field.
func (e *rowEncoder) pass(quoted []byte) error {
	s := e.scan
	first := s.names.len()
	for i, place := range e.places {
		if place.given {
			s.names.add(e.item.plan.fields[i].quoted, first)
		}
	}
	if quoted != nil {
		s.names.add(quoted, first)
		if err := s.colon(); err != nil {
			return err
		}
	}
	if s.due == dueValue {
		return s.enter()
	}
	return nil
}

// join puts the values of a row that is an object into the order of the fields.
func (e *rowEncoder) join(row int) {
	it, p := e.item, e.item.plan
	timed := e.places[p.timeAt].given
	if it.rows > 0 && timed != it.ownTime {
		it.refuse(rowPointer(row), rowTimeMixed)
		return
	}
	start := len(e.tuples)
	dst := append(e.tuples, e.lead...)
	if timed {
		e.setTime(dst[start:], e.us, row)
	}
	for i, place := range e.places {
		switch {
		case i == p.timeAt:
		case place.given:
			dst = append(dst, e.values[place.start:place.end]...)
		case p.fields[i].NotNull:
			it.refuse(rowPointer(row)+"/"+p.fields[i].name, push.ValueNull)
			return
		default:
			dst = batch.AppendNull(dst)
		}
	}
	e.tuples = dst
}

// rowTime returns the time of a row in microseconds since 1970.
func rowTime(raw []byte) (int64, *push.Problem) {
	switch kindOf(raw) {
	case kindString:
		if us, ok := parseTime(text(raw)); ok {
			return us, nil
		}
	case kindNull:
		return 0, push.ValueNull
	}
	return 0, push.ValueTime
}

// setTime overwrites the time that the lead brought into a row's tuple.
func (e *rowEncoder) setTime(tuple []byte, us int64, row int) {
	batch.AppendTime(tuple[:timeOffset], timeOf(us))
	it := e.item
	if it.rows == 0 || us < it.minUS {
		it.minUS, it.minRow = us, row
	}
	if it.rows == 0 || us > it.maxUS {
		it.maxUS, it.maxRow = us, row
	}
	it.ownTime = true
}
