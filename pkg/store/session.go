package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"pganalytics/pkg/fault"
)

const (
	// applicationName tells sessions that load from all others.
	applicationName = "pganalytics-store"

	// A peer that vanished without a word is noticed after this much silence
	// on the wire, on both ends: shorter than a stream's patience with an
	// unanswered message (60 s).
	silence = 30 * time.Second

	// cleanup bounds what is done for a session that failed.
	cleanup = 5 * time.Second
)

// session is one session of the pool, in use.
type session struct{ *pgx.Conn }

// session runs f on a session of the pool. A session on which f failed is
// not used again, what is left on its wire and in it is not worth finding out:
// unless the rows were at fault, and the database has rolled back. A sender of
// bad rows only would else cost a new session with each of its batches.
func (s *Store) session(ctx context.Context, f func(session) error) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return failure("connect", err, connectionLost)
	}
	defer conn.Release() // which destroys a closed one
	ses := session{conn.Conn()}
	if err := f(ses); err != nil {
		if rolledBack := ses.rollback(ctx); !rolledBack || fault.ClassOf(err) != fault.Invalid {
			_ = ses.close(ctx) // it failed before, and it is gone either way
		}
		return err
	}
	return nil
}

// rollback ends the transaction, if there is one, and reports whether the
// session is as good as before it. It comes before a close too: the database
// notices that a moment later, and till then the locks of the failed
// transaction would be in the way of the next try.
func (ses session) rollback(ctx context.Context) bool {
	if ses.IsClosed() || ses.PgConn().TxStatus() == 'I' {
		return !ses.IsClosed()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanup)
	defer cancel()
	_, err := ses.Exec(ctx, "rollback")
	return err == nil && ses.PgConn().TxStatus() == 'I'
}

func (ses session) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanup)
	defer cancel()
	return ses.Close(ctx)
}

// failed classifies an error of this session.
func (ses session) failed(doing string, err error) error {
	if ses.IsClosed() {
		return failure(doing, err, connectionLost)
	}
	return failure(doing, err, connectionAlive)
}

// commit ends the transaction. A commit that waits for a standby must not run
// into the statement timeout: PostgreSQL would then stop waiting and call it
// committed. So the timeout is off and only ctx ends the wait. An error means
// that the outcome is not known unless the database told it.
func (ses session) commit(ctx context.Context) error {
	return ses.commitAfter(ctx, &pgx.Batch{})
}

// commitAfter is commit after the statements in last, in one round trip.
func (ses session) commitAfter(ctx context.Context, last *pgx.Batch) error {
	var tag pgconn.CommandTag
	last.Queue("set local statement_timeout = 0")
	last.Queue("commit").Exec(func(ct pgconn.CommandTag) error { tag = ct; return nil })
	if err := ses.SendBatch(ctx, last).Close(); err != nil {
		return ses.failed("commit", err)
	}
	if tag.String() != "COMMIT" {
		return fmt.Errorf("commit: the database answered %s", tag)
	}
	return nil
}

// loadingSessions is the configuration of the pool. Whatever a role or a
// database has set, a session that loads is durable, READ COMMITTED, in UTC
// and waits for nothing without end. admit sees each new session first, then
// stages is run in it once.
func loadingSessions(cfg Config, admit func(context.Context, *pgx.Conn) error, stages string, log *slog.Logger) (*pgxpool.Config, error) {
	pool, err := pgxpool.ParseConfig(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("database url: %w", err)
	}
	pool.MaxConns = cfg.MaxConns
	configure(&pool.ConnConfig.Config, applicationName, cfg.ConnectTimeout)
	params := pool.ConnConfig.RuntimeParams
	params["statement_timeout"] = milliseconds(cfg.StatementTimeout)
	params["lock_timeout"] = milliseconds(cfg.LockTimeout)
	params["idle_in_transaction_session_timeout"] = milliseconds(cfg.IdleTimeout)
	pool.ConnConfig.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if n.Severity == "WARNING" {
			log.Warn("database warns", "sqlstate", n.Code, "warning", n.Message)
		}
	}
	pool.MinConns, pool.MinIdleConns = 0, 0 // each is made, and admitted, for somebody who waits for it
	pool.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		if err := admit(ctx, conn); err != nil {
			return err
		}
		if err := refuseFsyncOff(ctx, conn); err != nil {
			return err
		}
		if stages == "" {
			return nil
		}
		if _, err := conn.Exec(ctx, stages); err != nil {
			return fmt.Errorf("make the tables that stage dimensions: %w", err)
		}
		return nil
	}
	return pool, nil
}

// configure sets what all sessions of this package have in common.
func configure(cfg *pgconn.Config, name string, connectTimeout time.Duration) {
	cfg.ConnectTimeout = connectTimeout
	cfg.DialFunc = (&net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: silence / 3, Interval: silence / 3, Count: 2},
		Control:         userTimeout,
	}).DialContext
	params := cfg.RuntimeParams
	params["application_name"] = name
	params["synchronous_commit"] = "on"
	params["default_transaction_isolation"] = "read committed"
	params["timezone"] = "UTC"
	params["tcp_keepalives_idle"] = strconv.Itoa(int(silence.Seconds()) / 3)
	params["tcp_keepalives_interval"] = strconv.Itoa(int(silence.Seconds()) / 3)
	params["tcp_keepalives_count"] = "2"
	params["tcp_user_timeout"] = milliseconds(silence)
}

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// errFsyncOff is Unavailable, not fatal: nothing is acknowledged, nothing is
// lost, and loading goes on by itself once fsync is on again.
var errFsyncOff = fault.Wrap(fault.Unavailable, errors.New(
	"the database runs with fsync = off: what it calls committed is lost when its host fails"))

func refuseFsyncOff(ctx context.Context, conn *pgx.Conn) error {
	var fsync string
	if err := conn.QueryRow(ctx, "select current_setting('fsync')").Scan(&fsync); err != nil {
		return fmt.Errorf("read the fsync setting: %w", err)
	}
	if fsync != "on" {
		return errFsyncOff
	}
	return nil
}
