package catalogue_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/internal/testpg"
)

// several are versions with which each query of the catalogue but a few is run;
// make watch takes all.
var several = testpg.Versions(13, 16, 18, 19)

// onEveryServer runs f with a database of its own on the server of the tests
// and on one of each version, which the tests of this package share.
func onEveryServer(t *testing.T, f func(t *testing.T, databaseURL string)) {
	t.Run("server of the tests", func(t *testing.T) {
		t.Parallel()
		f(t, testdb.Empty(t))
	})
	for _, major := range several {
		t.Run(fmt.Sprintf("PostgreSQL %d", major), func(t *testing.T) {
			t.Parallel()
			s := testpg.Shared(t, major)
			f(t, s.URL(s.Database()))
		})
	}
}

// connect opens a session that ends with the test.
func connect(t *testing.T, databaseURL string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), databaseURL)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// monitor opens a session as a role that has pg_monitor and nothing else, with
// the limits that a collector sets.
func monitor(t *testing.T, databaseURL string) *pgx.Conn {
	t.Helper()
	conn := connect(t, databaseURL)
	role := "pganalytics_monitor_" + strings.ToLower(t.Name()[strings.LastIndex(t.Name(), "/")+1:])
	role = pgx.Identifier{fmt.Sprintf("%.40s_%d", role, time.Now().UnixNano())}.Sanitize()
	execute(t, conn, "create role "+role+" in role pg_monitor")
	t.Cleanup(func() { execute(t, conn, "reset all", "reset role", "drop role "+role) })
	execute(t, conn, "set role "+role, "set statement_timeout = '30s'", "set lock_timeout = '100ms'",
		"set default_transaction_read_only = on")
	return conn
}

func execute(t *testing.T, conn *pgx.Conn, statements ...string) {
	t.Helper()
	for _, s := range statements {
		_, err := conn.Exec(context.Background(), s)
		require.NoError(t, err, s)
	}
}

// major returns the server's major version.
func major(t *testing.T, conn *pgx.Conn) int {
	t.Helper()
	var num int
	require.NoError(t, conn.QueryRow(t.Context(), "select current_setting('server_version_num')::int").Scan(&num))
	return num / 10000
}
