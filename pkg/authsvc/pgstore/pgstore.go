// Package pgstore keeps authsvc's collectors, certificates, enrolment tokens
// and audit in schema identity of PostgreSQL.
//
// Invariant: an act and its audit row are one transaction, and what decides
// between two requests is a row lock or a constraint, never something that was
// read before.
//
// The package must not decide who may do what; it only answers what is so.
package pgstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"pganalytics/pkg/fault"
)

// maxConns is small on purpose: enrolments and renewals are rare, and a storm
// of them must queue here rather than take the loader's connections.
const maxConns = 8

// Store is safe for use by many at once.
type Store struct {
	pool *pgxpool.Pool
}

// Open makes the pool. It connects to nothing yet: the service starts, and
// hands out tokens, while the database is away.
func Open(ctx context.Context, url string) (*Store, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("open identity store: %w", err) // pgx keeps the password out of it
	}
	cfg.MaxConns = maxConns
	for name, value := range map[string]string{
		"application_name":                    "pganalytics-authsvc",
		"timezone":                            "UTC",
		"synchronous_commit":                  "on", // an answer means that it is on disk
		"default_transaction_isolation":       "read committed",
		"statement_timeout":                   "10s",
		"lock_timeout":                        "5s",
		"idle_in_transaction_session_timeout": "15s",
	} {
		cfg.ConnConfig.RuntimeParams[name] = value
	}
	if cfg.ConnConfig.ConnectTimeout == 0 {
		cfg.ConnConfig.ConnectTimeout = 5 * time.Second
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("open identity store: %w", err)
	}
	return &Store{pool: pool}, nil
}

// Close waits until all connections are given back.
func (s *Store) Close() { s.pool.Close() }

// Ping errs with Unavailable unless the database answers.
func (s *Store) Ping(ctx context.Context) error { return classify("ping", s.pool.Ping(ctx)) }

// inTx runs do in one transaction. A fault that do returns stands; any other
// error is classified.
func (s *Store) inTx(ctx context.Context, what string, do func(pgx.Tx) error) error {
	return classify(what, pgx.BeginFunc(ctx, s.pool, do))
}

// classify tells a database that is away, or was just then, from everything
// else. Both are answered with 503; only the one is nobody's bug.
func classify(what string, err error) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s: %w", what, err)
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && !passing(pg.Code) {
		return err
	}
	return fault.Wrap(fault.Unavailable, err)
}

// passing SQLSTATEs: connection lost, resources, locks and timeouts, shutdown,
// read only after a failover.
func passing(code string) bool {
	switch code[:min(2, len(code))] {
	case "08", "40", "53", "55", "57", "58":
		return true
	}
	return code == "25006" || code == "25P03"
}

func violates(err error, constraint string) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == "23505" && pg.ConstraintName == constraint
}

// act is a row of the audit.
type act struct {
	at           time.Time
	actor        string
	action       string
	resourceType string
	resourceID   string
	result       string
	source       netip.Addr // zero: none, as on the command line
	changes      any        // JSON
}

const insertAudit = `
insert into identity.audit (at, actor, action, resource_type, resource_id, result, source_ip, changes)
values ($1, $2, $3, $4, $5, $6, $7, $8)`

// transaction is one of this package, or of another that takes a witness.
type transaction interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// audit writes the row in the transaction of the act.
func audit(ctx context.Context, tx transaction, a act) error {
	changes, err := json.Marshal(a.changes)
	if err != nil {
		return fmt.Errorf("encode audit: %w", err)
	}
	var source *netip.Addr
	if a.source.IsValid() {
		source = &a.source
	}
	if _, err := tx.Exec(ctx, insertAudit, a.at, a.actor, a.action, a.resourceType, a.resourceID, a.result, source, changes); err != nil {
		return fmt.Errorf("write audit: %w", err)
	}
	return nil
}
