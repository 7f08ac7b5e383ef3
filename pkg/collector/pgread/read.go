package pgread

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/policy"
)

// Bounds of one result. The catalogue's queries limit themselves far lower;
// these are for queries of operators.
const (
	maxRows        = policy.MaxRows
	maxResultBytes = 16 << 20
)

// question is one query and what its rows are to become.
type question struct {
	family *catalogue.Family
	places []int // of the columns that it gives
	sql    string
	args   [][]byte // in binary format
	oids   []uint32 // of their types
	at     time.Time
	server uuid.UUID
	texts  TextPolicy
	known  func(tuples []byte, starts []int) identity
	room   []byte // empty, for the answer
}

// ask puts a question to a server. When ctx ends the statement is cancelled
// there.
func ask(ctx context.Context, conn *pgconn.PgConn, q *question) (*result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	formats := make([]int16, len(q.args))
	for i := range formats {
		formats[i] = 1
	}
	reader := conn.ExecParams(ctx, q.sql, q.args, q.oids, formats, []int16{1})
	res, err := readRows(reader, q)
	if err == nil && res.capped {
		cancel() // or the rest would be sent only to be thrown away
		_, _ = reader.Close()
		return res, nil
	}
	if _, closeErr := reader.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return nil, err
	}
	return res, nil
}

func readRows(reader *pgconn.ResultReader, q *question) (*result, error) {
	res := &result{tuples: q.room}
	var e *encoder
	for reader.NextRow() {
		if e == nil {
			var err error
			if e, err = newEncoder(q, reader.FieldDescriptions(), res); err != nil {
				return nil, err
			}
		}
		if len(res.ends) == maxRows || len(res.tuples) > maxResultBytes {
			res.capped = true
			return res, nil
		}
		if err := e.add(reader.Values()); err != nil {
			return nil, err
		}
	}
	if fields := reader.FieldDescriptions(); e == nil && len(fields) > 0 { // no rows: still say whether it fits
		if _, err := newEncoder(q, fields, res); err != nil {
			return nil, err
		}
	}
	return res, nil
}

// limit makes the parameter of a query that takes the most rows to return.
func (q *question) limit(rows int) {
	if strings.Contains(q.sql, "$1") {
		q.args = [][]byte{binary.BigEndian.AppendUint64(nil, uint64(rows))}
		q.oids = []uint32{catalogue.BigInt.OID()}
	}
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

// What an error means, beside the SQLSTATEs.
const (
	stateShape   = "shape"
	stateTimeout = "timeout"
	stateOther   = "other"
)

// sqlState returns the SQLSTATE of an error, or a word for what it is else.
// Decisions go by it, never by an error's text.
func sqlState(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Code
	}
	switch {
	case errors.Is(err, errShape):
		return stateShape
	case errors.Is(err, context.DeadlineExceeded):
		return stateTimeout
	}
	return stateOther
}

// timedOut reports whether the server or the collector gave up a statement.
func timedOut(err error) bool {
	state := sqlState(err)
	return state == stateTimeout || state == "57014" // query_canceled
}

// lacking reports whether something that a query names is not there, or may
// not be used.
func lacking(err error) bool {
	switch sqlState(err) {
	case "42883", "42P01", "42501", "3F000": // undefined function, undefined table, insufficient privilege, invalid schema
		return true
	}
	return false
}
