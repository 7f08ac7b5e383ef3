package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"pganalytics/schemas"
)

// Keys of the advisory locks that make one of many processes do what one must
// do. Any fixed numbers serve, as long as nobody else uses them: "pga" and a
// counter.
const (
	migrateLock = 0x706761_01 + iota
	schemaLock
	maintainLock
	replayLock
)

// oldestTimescale is the oldest supported version of TimescaleDB.
var oldestTimescale = [2]int{2, 19}

const ddlConnectTimeout = 10 * time.Second

// Migrate brings the database's schema to this version, forward only: a
// database that is newer already is left alone. Any number of processes may
// call it at once; one does the work and the others wait for it. It makes the
// extension timescaledb where it may, and refuses a database without it, with
// one that is too old, or with fsync off.
func Migrate(ctx context.Context, databaseURL string) (err error) {
	cfg, err := ddlSession(databaseURL)
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	if err := prepareDatabase(ctx, cfg); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	files, err := fs.Sub(schemas.SQL, "sql")
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	db := stdlib.OpenDB(*cfg)
	defer func() { err = errors.Join(err, db.Close()) }()
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithTableName("ingest.migration"),
		goose.WithSessionLocker(sessionLock(migrateLock)),
		goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("migrate: read the migrations: %w", err)
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}

// prepareDatabase makes what must be there before the first migration.
// "If not exists" does not make two at once safe, hence the lock.
func prepareDatabase(ctx context.Context, cfg *pgx.ConnConfig) (err error) {
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }() // and so unlocks
	if err := refuseFsyncOff(ctx, conn); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, "select pg_advisory_lock($1)", int64(migrateLock)); err != nil {
		return fmt.Errorf("wait for other migrations: %w", err)
	}
	if err := requireTimescale(ctx, conn); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, "create schema if not exists ingest"); err != nil {
		return fmt.Errorf("make schema ingest: %w", err)
	}
	return nil
}

func requireTimescale(ctx context.Context, conn *pgx.Conn) error {
	const installed = "select extversion from pg_extension where extname = 'timescaledb'"
	var version string
	err := conn.QueryRow(ctx, installed).Scan(&version)
	if errors.Is(err, pgx.ErrNoRows) {
		if _, err := conn.Exec(ctx, "create extension if not exists timescaledb"); err != nil {
			return fmt.Errorf("the database needs TimescaleDB %d.%d or later, which cannot be added to it: %w",
				oldestTimescale[0], oldestTimescale[1], err)
		}
		err = conn.QueryRow(ctx, installed).Scan(&version)
	}
	if err != nil {
		return fmt.Errorf("read the version of TimescaleDB: %w", err)
	}
	return checkTimescale(version)
}

// checkTimescale refuses versions that are too old or make no sense.
func checkTimescale(version string) error {
	majorText, rest, _ := strings.Cut(version, ".")
	minorText, _, _ := strings.Cut(rest, ".")
	minorText, _, _ = strings.Cut(minorText, "-") // 2.21-dev
	major, err1 := strconv.Atoi(majorText)
	minor, err2 := strconv.Atoi(minorText)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("cannot read the version of TimescaleDB %q: %w", version, err)
	}
	if major < oldestTimescale[0] || major == oldestTimescale[0] && minor < oldestTimescale[1] {
		return fmt.Errorf("the database needs TimescaleDB %d.%d or later and has %s: run \"alter extension timescaledb update\"",
			oldestTimescale[0], oldestTimescale[1], version)
	}
	return nil
}

// ddlSession is the configuration of a session that changes the schema. It
// has no timeouts of its own: waiting for another process is what it is for.
func ddlSession(databaseURL string) (*pgx.ConnConfig, error) {
	cfg, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return nil, fmt.Errorf("database url: %w", err)
	}
	configure(&cfg.Config, "pganalytics-schema", ddlConnectTimeout)
	return cfg, nil
}

// sessionLock is goose's lock.SessionLocker that waits in the database; the
// one goose brings polls.
type sessionLock int64

// SessionLock waits for the lock.
func (l sessionLock) SessionLock(ctx context.Context, conn *sql.Conn) error {
	_, err := conn.ExecContext(ctx, "select pg_advisory_lock($1)", int64(l))
	return err
}

// SessionUnlock gives the lock back.
func (l sessionLock) SessionUnlock(ctx context.Context, conn *sql.Conn) error {
	_, err := conn.ExecContext(ctx, "select pg_advisory_unlock($1)", int64(l))
	return err
}
