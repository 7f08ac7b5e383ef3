package pgread

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pganalytics/pkg/catalogue"
)

// Item is rows of one family from one server at one time.
type Item struct {
	Family  string
	Server  string
	At      time.Time // collector's clock, just before the query
	Columns []string
	Rows    [][]byte // each a JSON array
}

// maxRows bounds one result. The catalogue's queries limit themselves far
// lower; this is for queries of operators.
const maxRows = 50_000

// errShape is a query whose result is not what its family says: a fault of
// the catalogue, not of the server.
var errShape = errors.New("query does not fit its family")

// result is what one query gave.
type result struct {
	rows     [][]byte
	samples  []sample // when there is a filter, in place of rows
	nulled   int      // values sent as null because JSON cannot say them
	repaired int      // texts that were not valid
	cut      bool     // at maxRows
}

// query reads a family. Values are passed from PostgreSQL's binary format
// into JSON; the columns of the result may come in any order.
func query(ctx context.Context, conn *pgconn.PgConn, f *catalogue.Family, sql string, keep *filter) (*result, error) {
	reader := conn.ExecParams(ctx, sql, nil, nil, nil, []int16{1})
	res, err := readRows(reader, f, keep)
	if _, closeErr := reader.Close(); err == nil && closeErr != nil {
		err = closeErr
	}
	if err != nil {
		return nil, err
	}
	return res, nil
}

func readRows(reader *pgconn.ResultReader, f *catalogue.Family, keep *filter) (*result, error) {
	res := &result{}
	var order []int
	values := make([][]byte, len(f.Columns))
	for reader.NextRow() {
		if order == nil {
			var err error
			if order, err = columnOrder(reader.FieldDescriptions(), f); err != nil {
				return nil, err
			}
		}
		if len(res.rows)+len(res.samples) == maxRows {
			res.cut = true
			break
		}
		raw := reader.Values()
		for i, at := range order {
			values[i] = raw[at]
		}
		row, err := res.encode(f, values)
		if err != nil {
			return nil, err
		}
		if keep != nil {
			res.samples = append(res.samples, keep.sample(values, row))
		} else {
			res.rows = append(res.rows, row)
		}
	}
	if order == nil { // no rows: still say whether it fits
		if fields := reader.FieldDescriptions(); len(fields) > 0 {
			if _, err := columnOrder(fields, f); err != nil {
				return nil, err
			}
		}
	}
	return res, nil
}

func (r *result) encode(f *catalogue.Family, values [][]byte) ([]byte, error) {
	row := make([]byte, 0, 16*len(values))
	row = append(row, '[')
	for i, v := range values {
		if i > 0 {
			row = append(row, ',')
		}
		var what repair
		var err error
		if row, what, err = appendValue(row, f.Columns[i].Type, v); err != nil {
			return nil, fmt.Errorf("column %s: %w", f.Columns[i].Name, err)
		}
		switch what {
		case nulled:
			r.nulled++
		case repaired:
			r.repaired++
		}
	}
	return append(row, ']'), nil
}

// columnOrder returns, for each column of the family, its place in the result.
func columnOrder(fields []pgconn.FieldDescription, f *catalogue.Family) ([]int, error) {
	order := make([]int, len(f.Columns))
	seen := make([]bool, len(f.Columns))
	for at, field := range fields {
		i, ok := f.Column(field.Name)
		switch {
		case !ok:
			return nil, fmt.Errorf("%w: unknown column %q", errShape, field.Name)
		case seen[i]:
			return nil, fmt.Errorf("%w: column %q twice", errShape, field.Name)
		case field.DataTypeOID != f.Columns[i].Type.OID():
			return nil, fmt.Errorf("%w: column %q has type OID %d, %s is %d",
				errShape, field.Name, field.DataTypeOID, f.Columns[i].Type, f.Columns[i].Type.OID())
		}
		order[i], seen[i] = at, true
	}
	for i, ok := range seen {
		if !ok {
			return nil, fmt.Errorf("%w: no column %q", errShape, f.Columns[i].Name)
		}
	}
	return order, nil
}

// majorVersion returns the major number of a server_version such as
// "17.4 (Debian 17.4-1)" or "18beta1".
func majorVersion(version string) (int, error) {
	end := strings.IndexFunc(version, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(version)
	}
	major, err := strconv.Atoi(version[:end])
	if err != nil || major == 0 {
		return 0, fmt.Errorf("unreadable server version %q", version)
	}
	return major, nil
}

// sqlState returns the SQLSTATE of an error, or a word for what it is else.
// It names a failure in logs' decisions; never its text.
func sqlState(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Code
	}
	switch {
	case errors.Is(err, errShape):
		return "shape"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	return "other"
}
