package collector

import (
	"bytes"
	"context"
	"crypto/rand"
	"os/exec"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/schemas"
)

// withHelper is the built-in catalogue and a family that needs a function.
func withHelper(t *testing.T) *catalogue.Catalogue {
	t.Helper()
	c, err := catalogue.Load(schemas.Metrics, fstest.MapFS{"secret.yaml": {Data: []byte(`
name: secret_rows
description: "Rows of a table that the role may not read."
scope: database
requires: {function: pganalytics.secret_rows, extension: pg_stat_statements}
setup: |
  create table if not exists public.secret (id integer);
  create or replace function pganalytics.secret_rows() returns bigint
  language sql stable security definer set search_path = pg_catalog as 'select count(*) from public.secret';
interval: 60s
retention: 1d
chunk: 1h
key: [datname]
columns:
  - {name: datname, type: text}
  - {name: total, type: bigint, kind: gauge}
queries:
  - min_version: 13
    sql: select pg_catalog.current_database()::text as datname, pganalytics.secret_rows() as total
`)}})
	require.NoError(t, err)
	return c
}

// execute runs SQL over a connection of its own.
func execute(t *testing.T, conninfo, sql string) ([]*pgconn.Result, error) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context()) // cleanups use it too
	conn, err := pgconn.Connect(ctx, conninfo)
	require.NoError(t, err)
	defer func() { _ = conn.Close(ctx) }()
	return conn.Exec(ctx, sql).ReadAll()
}

// as returns the conninfo of another role.
func as(conninfo, role, password string) string {
	_, rest, _ := strings.Cut(conninfo, "@")
	return "postgres://" + role + ":" + password + "@" + rest
}

// prepare runs the script as its head says, gives the role a password and
// returns its conninfo.
func prepare(t *testing.T, conninfo string, cat *catalogue.Catalogue) (string, string) {
	t.Helper()
	role := "collector-" + strings.ToLower(rand.Text()[:10]) // roles belong to the whole server
	script, err := SetupSQL(cat, role)
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := execute(t, conninfo, `drop owned by "`+role+`"; drop role "`+role+`"`)
		require.NoError(t, err)
	})
	for range 2 { // it may be run again
		if psql, err := exec.LookPath("psql"); err == nil {
			cmd := exec.Command(psql, "-X", "-q", "-d", conninfo)
			cmd.Stdin = strings.NewReader(script)
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
		}
		_, err := execute(t, conninfo, strings.Replace(script, `\set ON_ERROR_STOP on`, "", 1)) // psql's own
		require.NoError(t, err)
	}
	_, err = execute(t, conninfo, `alter role "`+role+`" password 'pw'`)
	require.NoError(t, err)
	return as(conninfo, role, "pw"), role
}

func TestTheSetupScriptGivesTheRoleWhatItNeedsAndNoMore(t *testing.T) {
	t.Parallel()
	own, _ := prepare(t, testdb.Empty(t), withHelper(t))
	_, err := execute(t, own, "select pganalytics.secret_rows()")
	require.NoError(t, err)
	_, err = execute(t, own, "select from public.secret")
	require.ErrorContains(t, err, "42501")
	_, err = execute(t, own, "create function pganalytics.f() returns int language sql as 'select 1'")
	require.ErrorContains(t, err, "42501")
	res, err := execute(t, own, `select has_function_privilege('public', 'pganalytics.secret_rows()', 'execute'), rolsuper or rolcreaterole or rolcreatedb or rolreplication or rolbypassrls, pg_has_role('pg_monitor', 'usage'),
		exists (select from pg_extension where extname = 'pg_stat_statements') from pg_roles where rolname = current_user`)
	require.NoError(t, err)
	require.Equal(t, "f f t t", string(bytes.Join(res[0].Rows[0], []byte(" "))))
}

func TestTheSetupScriptDoesNotTrustASchemaOfStrangers(t *testing.T) {
	t.Parallel()
	db := testdb.Empty(t)
	_, role := prepare(t, db, withHelper(t))
	_, err := execute(t, db, `alter schema pganalytics owner to "`+role+`"`)
	require.NoError(t, err)
	script, err := SetupSQL(withHelper(t), role)
	require.NoError(t, err)
	_, err = execute(t, db, strings.Replace(script, `\set ON_ERROR_STOP on`, "", 1))
	require.ErrorContains(t, err, "schema pganalytics belongs to another role")
	_, err = execute(t, db, "alter schema pganalytics owner to current_user")
	require.NoError(t, err)
}

func TestTheSetupScriptHoldsNoPasswordAndNoStrangeRole(t *testing.T) {
	t.Parallel()
	cat := withHelper(t)
	script, err := SetupSQL(cat, "monitor")
	require.NoError(t, err)
	require.Contains(t, script, `\password monitor`)
	require.NotRegexp(t, `(?i)password\s+'`, script)
	for _, role := range []string{"", `a"b`, "a'b", "a$b", "a b", strings.Repeat("x", 64)} {
		_, err := SetupSQL(cat, role)
		require.ErrorContains(t, err, "role", role)
	}
}
