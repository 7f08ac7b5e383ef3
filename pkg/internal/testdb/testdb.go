// Package testdb gives tests real TimescaleDB databases of their own: a fresh one per test on a shared server, or a
// whole private server for tests that stop or kill it.
//
// Each database is its test's alone and gone when the test ends. Nothing here stands in for a database.
package testdb

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// variable holds the URL of a server where the tests may make and drop databases.
const variable = "TEST_DATABASE_URL"

// prefix begins the name of every database that this package makes; it drops no others.
const prefix = "pganalytics_test_"

// stale is the age from which a database that a killed test left behind is dropped, and a template that no run has
// wanted. No test binary may run for longer.
const stale = time.Hour

// New returns the URL of a fresh database with the product's migrations and catalogue tables applied.
// It skips the test where there is no server, and fails it under CI=true.
func New(tb testing.TB) string {
	tb.Helper()
	return fromTemplate(tb, full)
}

// Empty returns the URL of a fresh database that has the timescaledb extension and nothing else.
// It skips the test where there is no server, and fails it under CI=true.
func Empty(tb testing.TB) string {
	tb.Helper()
	return fromTemplate(tb, bare)
}

func fromTemplate(tb testing.TB, template func(server string) (string, error)) string {
	tb.Helper()
	server := serverURL(tb)
	source, err := template(server)
	if err != nil {
		tb.Fatalf("testdb: %v", err)
	}
	name := fmt.Sprintf("%s%d_%s", prefix, time.Now().Unix(), strings.ToLower(rand.Text()[:10]))
	if err := onServer(server, func(ctx context.Context, conn *pgx.Conn) error {
		return execute(ctx, conn, "create database "+name+" template "+source)
	}); err != nil {
		tb.Fatalf("testdb: %v", err)
	}
	tb.Cleanup(func() {
		if err := onServer(server, func(ctx context.Context, conn *pgx.Conn) error {
			return execute(ctx, conn, "drop database "+name+" with (force)")
		}); err != nil {
			tb.Errorf("testdb: %v", err)
		}
	})
	return withDatabase(server, name)
}

// The templates, made once per server and schema version; each test binary looks once.
var (
	bare = once(template{name: "bare"})
	full = once(template{name: "full", version: schemaVersion, apply: applySchema})
)

type template struct {
	name    string
	version func() (string, error)
	apply   func(ctx context.Context, databaseURL string) error
}

func once(t template) func(server string) (string, error) {
	var made sync.Map // server → func() (string, error)
	return func(server string) (string, error) {
		f, _ := made.LoadOrStore(server, sync.OnceValues(func() (string, error) { return t.ensure(server) }))
		return f.(func() (string, error))()
	}
}

// ensure makes the template unless another test binary has, and returns its database's name.
func (t template) ensure(server string) (string, error) {
	database := prefix + t.name
	if t.version != nil {
		version, err := t.version()
		if err != nil {
			return "", fmt.Errorf("find the schema's version: %w", err)
		}
		database += "_" + version
	}
	err := onServer(server, func(ctx context.Context, conn *pgx.Conn) error {
		// Test binaries of several packages start at once: the first makes it, the others wait here.
		if err := execute(ctx, conn, "select pg_advisory_lock(hashtext('pganalytics testdb'))"); err != nil {
			return err
		}
		var exists bool
		if err := conn.QueryRow(ctx, "select exists (select from pg_database where datname = $1)", database).Scan(&exists); err != nil {
			return fmt.Errorf("look for template %s: %w", database, err)
		}
		if !exists {
			if err := t.build(ctx, conn, server, database); err != nil {
				return fmt.Errorf("make template %s: %w", database, err)
			}
		}
		if err := dropStale(ctx, conn, database); err != nil {
			return err
		}
		return execute(ctx, conn, fmt.Sprintf("comment on database %s is '%d'", database, time.Now().Unix()))
	})
	return database, err
}

// build makes the template under a passing name, so that a database of the final name is always whole, and closes it
// to connections for good: one would make every copy fail, and TimescaleDB's workers would open it.
func (t template) build(ctx context.Context, conn *pgx.Conn, server, database string) error {
	draft := database + "_draft"
	if err := execute(ctx, conn, "drop database if exists "+draft+" with (force)", "create database "+draft); err != nil {
		return err
	}
	draftURL := withDatabase(server, draft)
	if err := onServer(draftURL, func(ctx context.Context, conn *pgx.Conn) error {
		return execute(ctx, conn, "create extension timescaledb")
	}); err != nil {
		return err
	}
	if t.apply != nil {
		if err := t.apply(ctx, draftURL); err != nil {
			return err
		}
	}
	if err := execute(ctx, conn, "alter database "+draft+" allow_connections false"); err != nil {
		return err
	}
	for { // until ctx ends: a worker may be just starting
		if err := execute(ctx, conn, "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = '"+draft+"'"); err != nil {
			return err
		}
		err := execute(ctx, conn, "alter database "+draft+" rename to "+database)
		if !errors.Is(err, errInUse) {
			return err
		}
	}
}

// dropStale drops what killed tests and other versions of the schema left behind. A test's database has its time in
// its name, a template the time of its last use in its comment.
func dropStale(ctx context.Context, conn *pgx.Conn, keep string) error {
	rows, err := conn.Query(ctx, `
		select datname
		from pg_database
		where starts_with(datname, $1) and datname <> $2
		  and coalesce(substring(datname from '^'||$1||'([0-9]+)_'), shobj_description(oid, 'pg_database'))::bigint < $3`,
		prefix, keep, time.Now().Add(-stale).Unix())
	if err != nil {
		return fmt.Errorf("look for stale databases: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("look for stale databases: %w", err)
	}
	for _, name := range names {
		if err := execute(ctx, conn, "drop database if exists "+name+" with (force)"); err != nil {
			return err
		}
	}
	return nil
}

func serverURL(tb testing.TB) string {
	tb.Helper()
	server := os.Getenv(variable)
	if server == "" {
		requireServer(tb)
	}
	return server
}

// requireServer ends a test that has no server to run on.
func requireServer(tb testing.TB) {
	tb.Helper()
	reason := "needs TimescaleDB: set " + variable + " or run make test"
	if os.Getenv("CI") == "true" {
		tb.Fatal(reason) // a skipped test would be a silent green
	}
	tb.Skip(reason)
}
