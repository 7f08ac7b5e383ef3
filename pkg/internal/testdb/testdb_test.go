package testdb_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pganalytics/pkg/internal/testdb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNewDatabasesAreApart(t *testing.T) {
	t.Parallel()
	for _, fresh := range []func(testing.TB) string{testdb.New, testdb.Empty} {
		a, b := connect(t, fresh(t)), connect(t, fresh(t))
		require.Equal(t, "1", value(t, a, "select count(*) from pg_extension where extname = 'timescaledb'"))
		_, err := a.Exec(t.Context(), "create table mine (time timestamptz not null); select create_hypertable('mine', 'time')")
		require.NoError(t, err)
		require.Equal(t, "true", value(t, b, "select to_regclass('mine') is null"))
	}
}

func TestNewHasTheProductsTables(t *testing.T) {
	t.Parallel()
	require.Equal(t, "true", value(t, connect(t, testdb.New(t)), `select to_regclass('ingest.batch') is not null
		and exists (select from timescaledb_information.hypertables where hypertable_schema = 'metrics')`))
	require.Equal(t, "true", value(t, connect(t, testdb.Empty(t)), "select to_regclass('ingest.batch') is null"))
}

func TestManyTestsAtOnceShareATemplate(t *testing.T) {
	t.Parallel()
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() { testdb.New(t) })
	}
	wait.Wait()
}

func TestTheDatabaseEndsWithItsTestAlthoughConnected(t *testing.T) {
	t.Parallel()
	var conn *pgx.Conn
	var databaseURL string
	t.Run("owner", func(t *testing.T) {
		databaseURL = testdb.Empty(t)
		var err error
		conn, err = pgx.Connect(t.Context(), databaseURL)
		require.NoError(t, err)
	})
	require.Error(t, conn.Ping(t.Context()))
	_ = conn.Close(t.Context())
	_, err := pgx.Connect(t.Context(), databaseURL)
	require.ErrorContains(t, err, "does not exist")
}

func TestACommitOutlivesTheServersKill(t *testing.T) {
	t.Parallel()
	cluster := testdb.StartCluster(t)
	conn := connect(t, cluster.URL())
	_, err := conn.Exec(t.Context(), "create table kept (n int)")
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), "insert into kept values (42)")
	require.NoError(t, err)

	cluster.Kill()
	_, err = pgx.Connect(t.Context(), cluster.URL())
	require.Error(t, err)

	cluster.Start()
	require.Equal(t, "42", value(t, connect(t, cluster.URL()), "select n from kept"))
	cluster.Stop()
	_, err = pgx.Connect(t.Context(), cluster.URL())
	require.Error(t, err)
	cluster.Start()
	require.Equal(t, "on", value(t, connect(t, cluster.URL()), "show fsync"))
}

func TestTheClusterIsDeletedWithItsTest(t *testing.T) {
	t.Parallel()
	var home, databaseURL string
	t.Run("owner", func(t *testing.T) {
		cluster := testdb.StartCluster(t)
		databaseURL = cluster.URL()
		home = value(t, connect(t, databaseURL), "show data_directory")
	})
	_, err := os.Stat(home)
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = pgx.Connect(t.Context(), databaseURL)
	require.Error(t, err)
}

func connect(t *testing.T, databaseURL string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), databaseURL)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func value(t *testing.T, conn *pgx.Conn, query string) string {
	t.Helper()
	var v any
	require.NoError(t, conn.QueryRow(t.Context(), query).Scan(&v))
	return fmt.Sprint(v)
}
