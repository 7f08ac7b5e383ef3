package pgread

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/collector/pgread/redact"
)

// What a gateway takes. A row beyond it would have its whole section refused.
const (
	maxKeyBytes = push.MaxKeyBytes // here of all key columns together
	maxRowBytes = 1 << 20          // far below the largest message
)

// errShape is a query whose result is not what its family says: a fault of
// the catalogue, not of the server.
var errShape = errors.New("query does not fit its family")

// fix is what had to be done to a value or a row to make it acceptable.
type fix uint8

const (
	nulled    fix = iota // a number that is not finite or a time that is infinite: NULL
	repaired             // a text that was not UTF-8 or held a NUL
	keyless              // a row without a value in a key column: dropped
	oversized            // a row or a key that is too long: dropped
	fixes
)

var fixNames = [fixes]string{nulled: "nulled", repaired: "repaired", keyless: "no_key", oversized: "too_long"}

// result is the rows that one query gave, as COPY tuples back to back.
type result struct {
	tuples []byte
	ends   []int      // of each row in tuples
	ids    []identity // of each row, when somebody needs to know it again
	total  int64      // rows that there would have been without a limit; 0: not known
	capped bool       // the server had more than is read at all
	fixed  [fixes]int

	elsewhere int // rows that were cut before their content was asked for
}

// cut returns how many rows there were that are not in the result; at least
// one if it is not known.
func (r *result) cut() int {
	least := 0
	if r.capped {
		least = 1
	}
	read := len(r.ends) + r.fixed[keyless] + r.fixed[oversized]
	return max(int(r.total)-read, least) + r.elsewhere
}

// encoder makes tuples of a query's rows. A value in PostgreSQL's binary format
// is the very bytes of a COPY field, so it is looked at and copied.
type encoder struct {
	head    []byte // of every tuple: the number of fields, time, server
	columns []column
	total   int // place of catalogue.RowsTotal among the values, -1: there is none
	texts   TextPolicy
	known   func(tuples []byte, starts []int) identity // nil: rows need none
	starts  []int                                      // of the fields of the row at work, and its end
	res     *result
}

// column is where a field comes from and what it must be.
type column struct {
	*catalogue.Column
	from int // place among the values
	key  bool
}

// newEncoder makes the encoder of a question for an answer with these fields,
// which may stand in any order.
func newEncoder(q *question, fields []pgconn.FieldDescription, res *result) (*encoder, error) {
	e := &encoder{
		head:   batch.AppendTuple(nil, batch.LeadFields+len(q.places), q.at, q.server),
		total:  -1,
		texts:  q.texts,
		known:  q.known,
		starts: make([]int, len(q.places)+1),
		res:    res,
	}
	for _, place := range q.places {
		c := &q.family.Columns[place]
		e.columns = append(e.columns, column{Column: c, from: -1, key: c.NotNull})
	}
	for from, field := range fields {
		if field.Name == catalogue.RowsTotal && field.DataTypeOID == catalogue.BigInt.OID() {
			e.total = from
			continue
		}
		if err := e.assign(field, from); err != nil {
			return nil, fmt.Errorf("%w: column %q %w", errShape, field.Name, err)
		}
	}
	for _, c := range e.columns {
		if c.from < 0 {
			return nil, fmt.Errorf("%w: no column %q", errShape, c.Name)
		}
	}
	return e, nil
}

func (e *encoder) assign(field pgconn.FieldDescription, from int) error {
	for i := range e.columns {
		c := &e.columns[i]
		switch {
		case c.Name != field.Name:
			continue
		case c.from >= 0:
			return errors.New("stands twice")
		case field.DataTypeOID != c.Type.OID():
			return fmt.Errorf("has type OID %d, %s is %d", field.DataTypeOID, c.Type, c.Type.OID())
		}
		c.from = from
		return nil
	}
	return errors.New("is unknown")
}

// add appends a row, or leaves it out and counts why.
func (e *encoder) add(values [][]byte) error {
	if e.total >= 0 && values[e.total] != nil {
		e.res.total = int64(binary.BigEndian.Uint64(values[e.total]))
	}
	begin, keyBytes := len(e.res.tuples), 0
	dst := append(e.res.tuples, e.head...)
	for i := range e.columns {
		c := &e.columns[i]
		e.starts[i] = len(dst)
		var err error
		if dst, err = e.field(dst, c, values[c.from]); err != nil {
			return err
		}
		if !c.key {
			continue
		}
		n := int(int32(binary.BigEndian.Uint32(dst[e.starts[i]:])))
		if n < 0 {
			e.res.fixed[keyless]++
			return nil
		}
		if c.Type == catalogue.Text {
			keyBytes += n
		}
	}
	if keyBytes > maxKeyBytes || len(dst)-begin > maxRowBytes {
		e.res.fixed[oversized]++
		return nil
	}
	e.starts[len(e.columns)] = len(dst)
	if e.known != nil {
		e.res.ids = append(e.res.ids, e.known(dst, e.starts))
	}
	e.res.tuples, e.res.ends = dst, append(e.res.ends, len(dst))
	return nil
}

// field appends one value, nil for NULL.
func (e *encoder) field(dst []byte, c *column, v []byte) ([]byte, error) {
	switch {
	case v == nil, c.QueryText && e.texts == TextOff:
		return batch.AppendNull(dst), nil
	case c.Type == catalogue.Text:
		return e.text(dst, c, v), nil
	case len(v) != c.Type.Size():
		return nil, fmt.Errorf("%w: column %q of type %s has %d bytes, not %d", errShape, c.Name, c.Type, len(v), c.Type.Size())
	case batch.ValueFault(c.Type, v) != "":
		e.res.fixed[nulled]++
		return batch.AppendNull(dst), nil
	}
	return batch.AppendText(dst, v), nil
}

func (e *encoder) text(dst []byte, c *column, v []byte) []byte {
	if !utf8.Valid(v) || bytes.IndexByte(v, 0) >= 0 {
		e.res.fixed[repaired]++
		v = []byte(strings.ReplaceAll(strings.ToValidUTF8(string(v), "\uFFFD"), "\x00", ""))
	}
	if c.QueryText && e.texts == TextRedacted {
		return batch.AppendText(dst, redact.Text(string(v)))
	}
	return batch.AppendText(dst, v)
}
