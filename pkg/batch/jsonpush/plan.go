package jsonpush

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/catalogue"
)

// timeColumn is the name under which rows bring their own time. No family has
// a column of this name.
const timeColumn = "time"

// field says how the values at one place of a row are encoded.
type field struct {
	push.Bounds
	name     string
	quoted   []byte // the name as JSON has it; of rows that are objects
	isTime   bool   // the row's time, which leads the tuple instead of standing here
	isNumber bool
}

// plan says how the rows of one item are encoded. It is made once per item.
type plan struct {
	fields  []field
	columns push.Columns // fields without the time
	timeAt  int          // position of the time in fields, -1 when rows have none
	byName  bool         // rows are objects
}

func newPlan(family *catalogue.Family) *plan {
	return &plan{fields: make([]field, 0, len(family.Columns)+1), columns: push.ColumnsOf(family), timeAt: -1}
}

// planOf returns the plan for rows that are arrays, whose columns are named by
// a raw JSON array. The position is that of the faulty name, -1 when the fault
// is not in one name.
func planOf(family *catalogue.Family, raw []byte, lim *push.Limits) (*plan, int, *push.Problem) {
	p := newPlan(family)
	names := scannerOf(raw)
	if names.open() != nil {
		return nil, -1, push.ColumnsInvalid
	}
	for i := 0; names.more(); i++ {
		quoted, err := names.scalar()
		if err != nil || kindOf(quoted) != kindString { // the text is valid, so an error means an object or array
			return nil, i, push.ColumnsInvalid
		}
		if bad := p.add(text(quoted), lim); bad != nil {
			return nil, i, bad
		}
	}
	return p, -1, p.columns.Complete()
}

// planByName returns the plan for rows that are objects: all columns of the
// family, because which of them the rows name is not known before the last row.
func planByName(family *catalogue.Family, lim *push.Limits) *plan {
	p := newPlan(family)
	p.byName = true
	_ = p.add([]byte(timeColumn), lim)
	for i := range family.Columns {
		_ = p.add([]byte(family.Columns[i].Name), lim) // the family has it, and once
	}
	for i := range p.fields {
		p.fields[i].quoted = []byte(`"` + p.fields[i].name + `"`)
	}
	return p
}

// add adds the field of that name.
func (p *plan) add(name []byte, lim *push.Limits) *push.Problem {
	if string(name) == timeColumn {
		if p.timeAt >= 0 {
			return push.ColumnTwice
		}
		p.timeAt = len(p.fields)
		p.fields = append(p.fields, field{name: timeColumn, isTime: true})
		return nil
	}
	if bad := p.columns.Add(name, lim); bad != nil {
		return bad
	}
	last := len(p.columns.List) - 1
	f := field{Bounds: p.columns.Bounds[last], name: p.columns.List[last].Name}
	switch f.Type {
	case catalogue.SmallInt, catalogue.Integer, catalogue.BigInt, catalogue.Real, catalogue.DoublePrecision:
		f.isNumber = true
	}
	p.fields = append(p.fields, f)
	return nil
}

// find returns the place of the named field, or -1.
func (p *plan) find(name []byte) int {
	return slices.IndexFunc(p.fields, func(f field) bool { return f.name == string(name) })
}

// appendShort appends the next values for the fields as long as these are
// numbers, and the values such as shortNumber knows and the fields hold exactly.
// It returns how many it appended. The loop is where most of the time for a row
// of counters goes.
func appendShort(dst []byte, s *scanner, fields []field) ([]byte, int) {
	buf, pos, comma, done := s.buf, s.pos, s.due == dueComma, 0
	for ; done < len(fields) && fields[done].isNumber && len(buf)-pos >= shortest; done++ {
		n, scale, end := shortNumber((*[shortest]byte)(buf[pos:]), comma)
		if end == 0 {
			break
		}
		before := len(dst)
		if dst = fields[done].appendExact(dst, n, scale); len(dst) == before {
			break
		}
		pos += end
		comma = true
	}
	if done > 0 {
		s.pos, s.due = pos, dueComma
	}
	return dst, done
}

// appendExact appends n divided by ten to the power of scale, or nothing if the
// field may be unable to hold it.
func (f *field) appendExact(dst []byte, n int64, scale int) []byte {
	switch {
	case f.Type == catalogue.BigInt && scale == 0:
		return batch.AppendInt64(dst, n)
	case f.Type == catalogue.Integer && scale == 0 && n == int64(int32(n)):
		return batch.AppendInt32(dst, int32(n))
	case f.Type == catalogue.SmallInt && scale == 0 && n == int64(int16(n)):
		return batch.AppendInt16(dst, int16(n))
	case f.Type == catalogue.DoublePrecision && -1<<53 <= n && n <= 1<<53:
		return batch.AppendFloat64(dst, float64(n)/powers[scale])
	case f.Type == catalogue.Real && -1<<24 <= n && n <= 1<<24 && scale < powers32:
		return batch.AppendFloat32(dst, float32(n)/float32(powers[scale]))
	}
	return dst
}

// append appends a raw JSON value as the field's value.
func (f *field) append(dst, raw []byte) ([]byte, *push.Problem) {
	k := kindOf(raw)
	if k == kindNull {
		if f.NotNull {
			return dst, push.ValueNull
		}
		return batch.AppendNull(dst), nil
	}
	switch f.Type {
	case catalogue.SmallInt, catalogue.Integer, catalogue.BigInt:
		return f.appendInt(dst, raw, k)
	case catalogue.Real, catalogue.DoublePrecision:
		return f.appendFloat(dst, raw, k)
	case catalogue.Boolean:
		if k != kindTrue && k != kindFalse {
			return dst, push.ValueType
		}
		return batch.AppendBool(dst, k == kindTrue), nil
	}
	if k != kindString {
		return dst, push.ValueType
	}
	switch f.Type {
	case catalogue.Text:
		return f.appendText(dst, raw)
	case catalogue.UUID:
		id, ok := parseUUID(text(raw))
		if !ok {
			return dst, valueUUID
		}
		return batch.AppendUUID(dst, id), nil
	case catalogue.TimestampTZ:
		us, ok := parseTime(text(raw))
		if !ok {
			return dst, push.ValueTime
		}
		return batch.AppendTime(dst, timeOf(us)), nil
	}
	return dst, push.ValueType
}

func (f *field) appendInt(dst, raw []byte, k kind) ([]byte, *push.Problem) {
	var n int64
	var bad *push.Problem
	switch {
	case k == kindNumber:
		n, bad = parseInt(raw)
	case k == kindString && f.Type == catalogue.BigInt:
		n, bad = parseIntText(text(raw))
	default:
		bad = push.ValueType
	}
	if bad != nil {
		return dst, bad
	}
	switch f.Type {
	case catalogue.SmallInt:
		if n != int64(int16(n)) {
			return dst, push.ValueRange
		}
		return batch.AppendInt16(dst, int16(n)), nil
	case catalogue.Integer:
		if n != int64(int32(n)) {
			return dst, push.ValueRange
		}
		return batch.AppendInt32(dst, int32(n)), nil
	}
	return batch.AppendInt64(dst, n), nil
}

func (f *field) appendFloat(dst, raw []byte, k kind) ([]byte, *push.Problem) {
	if k != kindNumber {
		return dst, push.ValueType
	}
	if f.Type == catalogue.Real {
		v, bad := parseFloat(raw, 32)
		if bad != nil {
			return dst, bad
		}
		return batch.AppendFloat32(dst, float32(v)), nil
	}
	v, bad := parseFloat(raw, 64)
	if bad != nil {
		return dst, bad
	}
	return batch.AppendFloat64(dst, v), nil
}

func (f *field) appendText(dst, raw []byte) ([]byte, *push.Problem) {
	if bytes.IndexByte(raw, '\\') < 0 {
		s := raw[1 : len(raw)-1]
		if len(s) > f.MaxText {
			return dst, f.TextTooLong()
		}
		return batch.AppendText(dst, s), nil
	}
	// Unescaped in place behind a length that is known only then.
	start := len(dst)
	dst = appendUnquoted(append(dst, 0, 0, 0, 0), raw)
	s := dst[start+4:]
	switch {
	case len(s) > f.MaxText:
		return dst, f.TextTooLong()
	case bytes.IndexByte(s, 0) >= 0:
		return dst, push.ValueNUL
	}
	binary.BigEndian.PutUint32(dst[start:], uint32(len(s)))
	return dst, nil
}

// The places of the two fields that lead a tuple, behind its number of fields,
// and where they end.
const (
	timeOffset   = 2
	serverOffset = timeOffset + 4 + 8
	leadBytes    = serverOffset + 4 + 16
)

// stamp writes the server and, unless rows have their own, the time into
// tuples that were encoded before these were known.
func stamp(tuples []byte, serverID uuid.UUID, us int64, ownTime bool) {
	for len(tuples) > 0 {
		fields := int(binary.BigEndian.Uint16(tuples))
		if !ownTime {
			batch.AppendTime(tuples[:timeOffset], timeOf(us))
		}
		batch.AppendUUID(tuples[:serverOffset], serverID)
		at := 2
		for range fields {
			n := int32(binary.BigEndian.Uint32(tuples[at:]))
			at += 4 + max(int(n), 0)
		}
		tuples = tuples[at:]
	}
}
