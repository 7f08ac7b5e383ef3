package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"pganalytics/pkg/fault"
)

// What a SQLSTATE hints at, by the whole state first and by its class of two
// characters else. What is not listed is Internal: retried, never dropped.
var states = map[string]fault.Class{
	"08":    fault.Unavailable, // connection lost
	"08P01": fault.Invalid,     // a malformed tuple, when the session lives on
	"22":    fault.Invalid,     // data exception
	"23":    fault.Invalid,     // a NOT NULL or CHECK that the rows violate
	"23505": fault.Internal,    // no table of rows has a unique key, so no row can be blamed
	"25006": fault.Unavailable, // read-only transaction: a standby, or set so
	"28":    fault.Unavailable, // refused at login
	"3D000": fault.Unavailable, // no such database
	"3F000": fault.Behind,      // no such schema
	"40001": fault.Contended,   // serialization failure
	"40003": fault.Unavailable, // completion unknown
	"40P01": fault.Contended,   // deadlock
	"42P01": fault.Behind,      // no such table
	"42703": fault.Behind,      // no such column
	"53":    fault.Unavailable, // disk full, out of memory, too many connections
	"54000": fault.Invalid,     // key too long for an index
	"55006": fault.Contended,   // object in use
	"55P03": fault.Contended,   // lock timeout
	"57P":   fault.Unavailable, // shutting down, starting up, terminated
	"58":    fault.Unavailable, // I/O error
}

// hint returns the class of an error that the database reported while the
// session lived on.
func hint(e *pgconn.PgError) fault.Class {
	// A relation dropped between its lookup and its opening, such as a chunk
	// that has just outlived its retention. It has no SQLSTATE of its own.
	if e.Code == "XX000" && e.Routine == "relation_open" {
		return fault.Contended
	}
	for _, n := range []int{5, 3, 2} {
		if len(e.Code) == 5 {
			if class, ok := states[e.Code[:n]]; ok {
				return class
			}
		}
	}
	return fault.Internal
}

// SQLState returns the SQLSTATE in err's chain, empty when there is none: the
// error is not the database's.
func SQLState(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return ""
}

// connection says what became of the session on which an error happened.
type connection bool

const (
	connectionAlive connection = true
	connectionLost  connection = false
)

// failure wraps err with what was being done and classifies it, unless that
// is done already. Whatever ended the session is Unavailable: the fault was
// not the batch's, or its retry on a new session will tell.
func failure(doing string, err error, conn connection) error {
	if err == nil {
		return nil
	}
	if _, done := errors.AsType[*fault.Error](err); done {
		return fmt.Errorf("%s: %w", doing, err)
	}
	pgErr, reported := errors.AsType[*pgconn.PgError](err)
	class := fault.Internal
	switch {
	case conn == connectionLost,
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		class = fault.Unavailable
	case reported:
		class = hint(pgErr)
	}
	return fault.Wrap(class, fmt.Errorf("%s: %w", doing, err))
}
