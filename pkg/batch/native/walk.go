package native

import (
	"bytes"
	"encoding/binary"
	"math"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/catalogue"
)

// found is what the tuples of a section turn out to be.
type found struct {
	rows        int
	first, last int64 // least and greatest time, in PostgreSQL's microseconds
}

// plan says what every tuple of a section must be. It is made once, so that a
// row costs comparisons only.
type plan struct {
	server      uuid.UUID
	first, last int64 // times, in PostgreSQL's microseconds
	steps       []step
}

// step is one field behind the two that lead.
type step struct {
	push.Bounds
	size  int // bytes; of a text what no field can say of itself
	check check
}

// check is what a value of the right size must be besides.
type check uint8

const (
	anything check = iota
	boolean
	finite32
	finite64
	storable // a time
)

func planOf(columns *push.Columns, server uuid.UUID, first, last time.Time) plan {
	p := plan{server: server, first: pgMicros(first), last: pgMicros(last), steps: make([]step, len(columns.Bounds))}
	for i, b := range columns.Bounds {
		p.steps[i] = step{Bounds: b, size: b.Type.Size()}
		switch b.Type {
		case catalogue.Text:
			p.steps[i].size = math.MinInt
		case catalogue.Boolean:
			p.steps[i].check = boolean
		case catalogue.Real:
			p.steps[i].check = finite32
		case catalogue.DoublePrecision:
			p.steps[i].check = finite64
		case catalogue.TimestampTZ:
			p.steps[i].check = storable
		}
	}
	return p
}

// pgMicros returns a time as it stands in a tuple.
func pgMicros(t time.Time) int64 {
	return int64(binary.BigEndian.Uint64(batch.AppendTime(nil, t)[4:]))
}

// timeOf is the inverse of pgMicros.
func timeOf(us int64) time.Time {
	return time.UnixMicro(us - pgMicros(time.UnixMicro(0))).UTC()
}

// walk checks the tuples of the section.
func (s *section) walk() *problem {
	first, last := s.limits.Window(s.sentAt, s.columns.Family.Retention)
	p := planOf(&s.columns, s.server.ID, time.UnixMicro(first), time.UnixMicro(last))
	s.found.first, s.found.last = math.MaxInt64, math.MinInt64
	for rest := s.tuples; len(rest) > 0; s.found.rows++ {
		us, n, field, bad := p.tuple(rest)
		if bad != nil {
			pointer := "/tuples/" + strconv.Itoa(s.found.rows)
			if field >= 0 {
				pointer += "/" + strconv.Itoa(field)
			}
			return at(pointer, bad)
		}
		s.found.first, s.found.last = min(s.found.first, us), max(s.found.last, us)
		rest = rest[n:]
	}
	return nil
}

// Where the fields that lead a tuple have their values, behind the number of
// fields and each behind its length, and where they end.
const (
	timeAt   = 2 + 4
	serverAt = timeAt + 8 + 4
	leadEnd  = serverAt + 16
)

// tuple checks the tuple that data begins with and returns its time and size,
// or the place of the field that is bad, -1 if it is the tuple itself.
func (p *plan) tuple(data []byte) (us int64, size, field int, bad *push.Problem) {
	switch {
	case len(data) < 2:
		return 0, 0, -1, tuplesMalformed
	case int(binary.BigEndian.Uint16(data)) != batch.LeadFields+len(p.steps):
		return 0, 0, -1, push.RowArity
	case len(data) < leadEnd:
		return 0, 0, -1, tuplesMalformed
	case binary.BigEndian.Uint32(data[timeAt-4:]) != 8:
		return 0, 0, 0, push.ValueType
	}
	us = int64(binary.BigEndian.Uint64(data[timeAt:]))
	switch {
	case us < p.first || us > p.last:
		return 0, 0, 0, push.TimeOutOfRange
	case binary.BigEndian.Uint32(data[serverAt-4:]) != 16 || uuid.UUID(data[serverAt:leadEnd]) != p.server:
		return 0, 0, 1, serverForeign
	}
	rest := data[leadEnd:]
	for i := range p.steps {
		s := &p.steps[i]
		if len(rest) < 4 {
			return 0, 0, batch.LeadFields + i, tuplesMalformed
		}
		n := int(int32(binary.BigEndian.Uint32(rest)))
		rest = rest[4:]
		if n != s.size { // a text, NULL or a fault
			if bad := s.other(n, rest); bad != nil {
				return 0, 0, batch.LeadFields + i, bad
			}
			rest = rest[max(n, 0):]
			continue
		}
		if n > len(rest) {
			return 0, 0, batch.LeadFields + i, tuplesMalformed
		}
		if bad := s.fixed(rest[:n]); bad != nil {
			return 0, 0, batch.LeadFields + i, bad
		}
		rest = rest[n:]
	}
	return us, len(data) - len(rest), 0, nil
}

// fixed checks a value of a type of fixed size, which it has.
func (s *step) fixed(v []byte) *push.Problem {
	switch s.check {
	case boolean:
		if v[0] > 1 {
			return push.ValueType
		}
	case finite32:
		const exponent = 0x7f80_0000 // all of it set: infinite or no number
		if binary.BigEndian.Uint32(v)&exponent == exponent {
			return valueInfinite
		}
	case finite64:
		const exponent = 0x7ff0_0000_0000_0000
		if binary.BigEndian.Uint64(v)&exponent == exponent {
			return valueInfinite
		}
	case storable:
		if batch.ValueFault(catalogue.TimestampTZ, v) != "" {
			return valueTime
		}
	}
	return nil
}

// other checks a field of n bytes that is not of a fixed size as it should be.
func (s *step) other(n int, rest []byte) *push.Problem {
	switch {
	case n == -1 && s.NotNull:
		return push.ValueNull
	case n == -1:
		return nil
	case n < 0 || n > len(rest):
		return tuplesMalformed
	case s.Type != catalogue.Text:
		return push.ValueType
	case n > s.MaxText:
		return s.TextTooLong()
	case plain(rest[:n]):
		return nil
	case bytes.IndexByte(rest[:n], 0) >= 0:
		return push.ValueNUL
	case !utf8.Valid(rest[:n]):
		return valueUTF8
	}
	return nil
}

// plain reports whether a text is ASCII without NUL, as nearly all are. It looks
// at eight bytes at once: such a byte, and no other before it, leaves its highest
// bit set.
func plain(v []byte) bool {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	for ; len(v) >= 8; v = v[8:] {
		if x := binary.LittleEndian.Uint64(v); (x|(x-ones))&tops != 0 {
			return false
		}
	}
	for _, c := range v {
		if c == 0 || c >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
