package store_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/store"
)

func TestReaderReadsAllMetricsAlsoThoseToComeAndNothingElse(t *testing.T) {
	t.Parallel()
	f := setup(t)
	require.NoError(t, store.EnsureReader(t.Context(), f.url))
	later := strings.Replace(narrowYAML, "name: narrow", "name: later", 1)
	require.NoError(t, store.EnsureSchema(t.Context(), f.url, families(t, later)))
	f.exec("set role pganalytics_reader")
	for _, from := range []string{"narrow", "narrow_rates", "narrow_rates(now() - interval '1 hour')", "texts", "server", "later", "later_rates", "later_rates('-infinity')"} {
		f.exec("select * from metrics." + from)
	}
	for _, statement := range []string{
		"select * from ingest.batch",
		"select * from ingest.floor",
		"select * from identity.collector",
		"select * from identity.app_user",
		"insert into metrics.later (time, server_id) values (now(), gen_random_uuid())",
		"insert into metrics.narrow (time, server_id) values (now(), gen_random_uuid())",
		"update metrics.server set name = 'x'",
		"delete from metrics.narrow",
		"truncate metrics.narrow",
		"drop view metrics.narrow_rates",
		"select drop_chunks('metrics.narrow', older_than => now())",
		"create table metrics.mine ()",
		"create table public.mine ()",
		"create schema mine",
	} {
		_, err := f.conn.Exec(t.Context(), statement)
		require.Equal(t, "42501", store.SQLState(err), "%s: %v", statement, err)
	}
}

func TestReaderIsGivenOnlyWhatIsLacking(t *testing.T) {
	t.Parallel()
	f := setup(t)
	require.NoError(t, store.EnsureReader(t.Context(), f.url))
	f.exec("revoke select on metrics.keyed from pganalytics_reader; create table metrics.strange ()")
	var g errgroup.Group
	for range 8 {
		g.Go(func() error { return store.EnsureReader(t.Context(), f.url) })
	}
	require.NoError(t, g.Wait())
	require.True(t, ask[bool](f, "select has_table_privilege('pganalytics_reader', 'metrics.keyed', 'select')"))
	forbidDDL(f)
	require.NoError(t, store.EnsureReader(t.Context(), f.url))
}

// A server of its own, for roles are the server's.
func TestOwnerWithoutTheRightToMakeRolesSaysWhatToRun(t *testing.T) {
	t.Parallel()
	cluster := testdb.StartCluster(t)
	super := connect(t, cluster.URL())
	run := func(sql string) {
		t.Helper()
		_, err := super.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	run("create role keeper login password 'x'")
	urls := map[string]string{} // database → of its owner
	for _, name := range []string{"one", "two", "three", "four"} {
		run("create database " + name + " owner keeper")
		u, err := url.Parse(cluster.URL())
		require.NoError(t, err)
		u.Path = "/" + name
		conn := connect(t, u.String())
		_, err = conn.Exec(t.Context(), "create extension if not exists timescaledb")
		require.NoError(t, err)
		require.NoError(t, conn.Close(t.Context()))
		u.User = url.UserPassword("keeper", "x")
		urls[name] = u.String()
		migrate(t, urls[name], allFamilies(t))
	}
	err := store.EnsureReader(t.Context(), urls["one"])
	require.ErrorIs(t, err, store.ErrNoReader)
	_, statement, _ := strings.Cut(err.Error(), `run "`)
	statement, _, _ = strings.Cut(statement, `"`)
	run(statement)
	require.NoError(t, store.EnsureReader(t.Context(), urls["one"]), "what it says helps")

	one := connect(t, urls["one"])
	_, err = one.Exec(t.Context(), `revoke all on all tables in schema metrics from pganalytics_reader;
		revoke all on schema metrics from pganalytics_reader;
		alter default privileges in schema metrics revoke all on tables from pganalytics_reader`, pgx.QueryExecModeSimpleProtocol)
	require.NoError(t, err)
	run("drop role pganalytics_reader; alter role keeper createrole")
	var g errgroup.Group
	for _, u := range urls {
		for range 4 {
			g.Go(func() error { return store.EnsureReader(t.Context(), u) })
		}
	}
	require.NoError(t, g.Wait(), "many at once, in many databases")
}
