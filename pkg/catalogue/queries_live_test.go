package catalogue_test

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/internal/testdb"
)

// Bounds of polling: generous, for a busy host.
const (
	waitFor = time.Minute
	tick    = 50 * time.Millisecond
)

// row is one row of a family by column name.
type row map[string]any

// read runs the family's query for this server and checks what every reader
// relies on: the columns with their types, and keys that are whole and unique.
func read(t *testing.T, conn *pgx.Conn, f *catalogue.Family) []row {
	t.Helper()
	return readAtMost(t, conn, f, 2000)
}

// readAtMost is read with a limit of rows, for queries that have one.
func readAtMost(t *testing.T, conn *pgx.Conn, f *catalogue.Family, limit int64) []row {
	t.Helper()
	q, ok := f.Query(major(t, conn))
	require.True(t, ok, "no query of %s for this server", f.Name)
	var args []any
	if strings.Contains(q.SQL, "$1") {
		args = append(args, limit)
	}
	if q.Keys != "" {
		args = keyed(t, conn, f, q, limit)
	}
	return ask(t, conn, f, q.SQL, args...)
}

// keyed returns the keys that a dimension's query has, an array for each column.
func keyed(t *testing.T, conn *pgx.Conn, f *catalogue.Family, q catalogue.Query, limit int64) []any {
	t.Helper()
	rows, err := conn.Query(t.Context(), q.Keys, limit)
	require.NoError(t, err)
	defer rows.Close()
	arrays := make([][]any, len(f.Key))
	for rows.Next() {
		values, err := rows.Values()
		require.NoError(t, err)
		for i, d := range rows.FieldDescriptions() {
			if at := slices.Index(f.Key, d.Name); at >= 0 {
				arrays[at] = append(arrays[at], values[i])
			}
		}
	}
	require.NoError(t, rows.Err())
	var args []any
	for _, a := range arrays {
		args = append(args, a)
	}
	return args
}

// ask runs one query of a family and checks its result as read does.
func ask(t *testing.T, conn *pgx.Conn, f *catalogue.Family, sql string, args ...any) []row {
	t.Helper()
	rows, err := conn.Query(t.Context(), sql, args...)
	require.NoError(t, err)
	defer rows.Close()

	var all []row
	seen := map[string]bool{}
	for rows.Next() {
		values, err := rows.Values()
		require.NoError(t, err)
		r := row{}
		for i, d := range rows.FieldDescriptions() {
			r[d.Name] = values[i]
			if v, ok := values[i].(float64); ok {
				require.False(t, math.IsNaN(v) || math.IsInf(v, 0), "%s of %s", d.Name, f.Name)
			}
		}
		var key strings.Builder
		for _, name := range f.Key {
			require.NotNil(t, r[name], "key column %s of %s", name, f.Name)
			fmt.Fprintf(&key, "%q ", fmt.Sprint(r[name]))
		}
		require.False(t, seen[key.String()], "%s has two rows of key %s", f.Name, key.String())
		seen[key.String()] = true
		all = append(all, r)
	}
	require.NoError(t, rows.Err())

	want, got := map[string]uint32{}, map[string]uint32{}
	for _, c := range f.Columns {
		want[c.Name] = c.Type.OID()
	}
	for _, d := range rows.FieldDescriptions() {
		require.NotContains(t, got, d.Name, "columns of %s", f.Name)
		got[d.Name] = d.DataTypeOID
	}
	if oid, ok := got[catalogue.RowsTotal]; ok {
		require.Equal(t, catalogue.BigInt.OID(), oid, "%s of %s", catalogue.RowsTotal, f.Name)
		delete(got, catalogue.RowsTotal)
	}
	require.Equal(t, want, got, "columns of %s", f.Name)
	return all
}

func family(t *testing.T, name string) *catalogue.Family {
	t.Helper()
	c, err := catalogue.Default()
	require.NoError(t, err)
	f, ok := c.Family(name)
	require.True(t, ok, name)
	return f
}

// find returns the one row whose column has the value.
func find(t *testing.T, rows []row, column string, value any) row {
	t.Helper()
	for _, r := range rows {
		if r[column] == value {
			return r
		}
	}
	require.Fail(t, "no such row", "%s = %v in %v", column, value, rows)
	return nil
}

// withStatements creates the extension, or ends a test on a server that does not load it.
func withStatements(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	var loaded string
	require.NoError(t, conn.QueryRow(t.Context(), "show shared_preload_libraries").Scan(&loaded))
	if !strings.Contains(loaded, "pg_stat_statements") {
		const reason = "the server does not load pg_stat_statements: shared_preload_libraries"
		if os.Getenv("CI") == "true" {
			t.Fatal(reason)
		}
		t.Skip(reason)
	}
	execute(t, conn, "create extension if not exists pg_stat_statements")
}

func TestLockedTablesLoseTheirSizesAndHoldNobodyUp(t *testing.T) {
	t.Parallel()
	f := family(t, "pg_stat_user_tables")
	onEveryServer(t, func(t *testing.T, databaseURL string) {
		owner := connect(t, databaseURL)
		execute(t, owner,
			"create table free_one (id int primary key, body text)", "insert into free_one select 1, 'x'",
			"create table rewritten (id int primary key)",
			"create table reindexed (id int constraint reindexed_key primary key)",
			"create table toasted (id int, body text)",
			"begin", "lock table rewritten in access exclusive mode", "reindex index reindexed_key")
		var toast string
		require.NoError(t, owner.QueryRow(t.Context(),
			"select indexrelid::regclass::text from pg_index where indrelid = (select reltoastrelid from pg_class where relname = 'toasted')").Scan(&toast))
		execute(t, owner, "reindex index "+toast)

		rows := read(t, monitor(t, databaseURL), f) // its lock_timeout would end a query that waits
		for _, name := range []string{"rewritten", "reindexed", "toasted"} {
			r := find(t, rows, "relname", name)
			require.Nil(t, r["total_bytes"], name)
			require.Nil(t, r["table_bytes"], name)
			require.Nil(t, r["index_bytes"], name)
			require.Nil(t, r["toast_bytes"], name)
			require.NotNil(t, r["seq_scan"], name)
		}
		r := find(t, rows, "relname", "free_one")
		require.EqualValues(t, 8192, r["table_bytes"])
		require.EqualValues(t, 16384, r["index_bytes"])
		require.EqualValues(t, 8192, r["toast_bytes"])
		require.EqualValues(t, 8192+16384+8192, r["total_bytes"])
	})
}

func TestNoSecretLeavesTheServer(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	databaseURL := testdb.StartCluster(t).URL()
	owner := connect(t, databaseURL)
	withStatements(t, owner)
	execute(t, owner,
		"alter system set primary_conninfo = 'host=elsewhere password="+secret+"'",
		"alter system set archive_cleanup_command = 'clean --key "+secret+"'",
		"alter system set restore_command = 'fetch "+secret+"'",
		"select pg_reload_conf()",
		"create role somebody password '"+secret+"'",
		"alter role somebody with encrypted password $x$"+secret+"$x$",
		"do $$ begin perform 'password "+secret+"'; end $$",
		"do $body$ begin perform '"+secret+"'; end $body$",
		"set search_path = 'a', '"+secret+"'", "reset search_path",
		"select 'password "+secret+"'")
	applied := func() bool {
		var n int
		err := connect(t, databaseURL).QueryRow(t.Context(),
			"select count(*) from pg_settings where setting like '%"+secret+"%'").Scan(&n)
		return err == nil && n == 3
	}
	require.Eventually(t, applied, waitFor, tick)

	conn := monitor(t, databaseURL)
	settings := read(t, conn, family(t, "pg_settings"))
	require.Equal(t, "********", find(t, settings, "name", "primary_conninfo")["setting"])
	require.Empty(t, find(t, settings, "name", "ssl_passphrase_command")["setting"])
	require.Equal(t, "0", find(t, settings, "name", "statement_timeout")["setting"], "the reading session's own value")
	texts := read(t, conn, family(t, "pg_stat_statements_text"))
	require.NotContains(t, fmt.Sprint(settings), secret)
	require.NotContains(t, fmt.Sprint(texts), secret)
	require.Contains(t, fmt.Sprint(texts), "select count(*) from pg_settings where setting like $1")
	require.Contains(t, fmt.Sprint(texts), "alter system set restore_command = '********'")
}

func TestStatementsAreCountedOncePerUserAndDatabase(t *testing.T) {
	t.Parallel()
	onEveryServer(t, func(t *testing.T, databaseURL string) {
		owner := connect(t, databaseURL)
		withStatements(t, owner)
		conn := monitor(t, databaseURL)
		const text = "select $1 + 41 as one_of_a_kind"
		for range 3 {
			execute(t, owner, strings.Replace(text, "$1", "1", 1))
		}
		execute(t, conn, strings.Replace(text, "$1", "1", 1))
		var database string
		require.NoError(t, owner.QueryRow(t.Context(), "select current_database()").Scan(&database))

		var queryid any
		texts := 0
		for _, r := range read(t, conn, family(t, "pg_stat_statements_text")) {
			if r["datname"] == database && strings.Contains(r["query"].(string), "one_of_a_kind") {
				queryid, texts = r["queryid"], texts+1
			}
		}
		require.Equal(t, 1, texts)
		calls := map[string]int64{}
		for _, r := range read(t, conn, family(t, "pg_stat_statements")) {
			if r["datname"] == database && r["queryid"] == queryid {
				calls[r["username"].(string)] = r["calls"].(int64)
			}
		}
		require.Len(t, calls, 2)
		require.EqualValues(t, 3, calls["postgres"])
	})
}
