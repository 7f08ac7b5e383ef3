package catalogue_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/internal/testpg"
)

// Whatever file lies in schemas/metrics is read here as a collector would: on a
// server of each version, in an ordinary database and in one of odd things, as a
// role that has pg_monitor and no more.
func TestEveryFamilyIsReadOnEveryVersionByAMonitoringRole(t *testing.T) {
	t.Parallel()
	c, err := catalogue.Default()
	require.NoError(t, err)
	for major := catalogue.OldestServer; major <= catalogue.NewestServer; major++ {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			s := testpg.Shared(t, major)
			database := s.Database()
			s.Exec(database, slices.Concat(odd, []string{"create extension pg_stat_statements"}, setup(c))...)
			s.Exec("postgres", setup(c)...)
			s.Linger(database, "create temp table passing (id int)", "lock table parts_1 in share mode")
			conn := asMonitor(t, s, database)
			for _, f := range c.Families() {
				q, ok := f.Query(major)
				if !ok {
					continue // read by other means, or not on servers this old
				}
				t.Run(f.Name, func(t *testing.T) {
					all := answer(t, conn, f, q, 2000)
					require.True(t, len(all) > 0 || slices.Contains(eventful, f.Name), "no rows")
					if strings.Contains(q.SQL+q.Keys, "$1") {
						require.Len(t, answer(t, conn, f, q, 1), min(len(all), 1), "the limit")
					}
				})
			}
		})
	}
}

// eventful families have rows only while something happens.
var eventful = []string{"pg_blocking", "pg_long_running", "pg_progress", "pg_replication_slots", "pg_standby", "pg_stat_replication"}

// odd is what a database may hold and a query may stumble over.
var odd = []string{
	"create table parts (id int primary key, body text) partition by range (id)",
	"create table parts_1 partition of parts for values from (0) to (1000)",
	"insert into parts select g, repeat('x', g) from generate_series(0, 999) g",
	`create schema "Odd schema"`,
	`create table "Odd schema"."Odd name" (id int)`,
	`create index on "Odd schema"."Odd name" ((id + 1))`,
	"create table empty ()",
	"create unlogged table forgotten (id serial)",
	"create sequence down increment -1 cycle",
	"create materialized view sums as select count(*) as n from parts",
	"create materialized view unfilled as select 1 as n with no data",
	"analyze",
}

// setup returns what an administrator runs before a collector reads.
func setup(c *catalogue.Catalogue) []string {
	var statements []string
	for _, f := range c.Families() {
		if f.Setup != "" {
			statements = append(statements, f.Setup)
		}
	}
	return statements
}

// asMonitor opens a session of a role that has pg_monitor only, with the
// settings of a collector's.
func asMonitor(t *testing.T, s *testpg.Server, database string) *pgx.Conn {
	t.Helper()
	role := database + "_monitor"
	s.Exec("postgres", "create role "+role+" login in role pg_monitor")
	t.Cleanup(func() { s.Exec("postgres", "drop role "+role) })
	conn := connect(t, s.URLAs(role, database))
	execute(t, conn, "set default_transaction_read_only = on", "set statement_timeout = '60s'", "set lock_timeout = '100ms'",
		"set search_path = pg_catalog, public") // public: pg_stat_statements is there
	return conn
}

// answer reads a family and checks what every reader relies on: the columns with
// their types, and keys that are whole and unique.
func answer(t *testing.T, conn *pgx.Conn, f *catalogue.Family, q catalogue.Query, limit int64) []string {
	t.Helper()
	var args []any
	if strings.Contains(q.SQL, "$1") {
		args = []any{limit}
	}
	if q.Keys != "" {
		args = make([]any, len(f.Key))
		for _, key := range collect(t, conn, f, q.Keys, f.Key, limit) {
			for i, value := range key {
				values, _ := args[i].([]any)
				args[i] = append(values, value)
			}
		}
	}
	names := make([]string, len(f.Columns))
	for i, c := range f.Columns {
		names[i] = c.Name
	}
	var keys []string
	for _, row := range collect(t, conn, f, q.SQL, names, args...) {
		var key []string
		for _, name := range f.Key {
			at, _ := f.Column(name)
			key = append(key, fmt.Sprintf("%q", fmt.Sprint(row[at])))
		}
		keys = append(keys, strings.Join(key, " "))
	}
	slices.Sort(keys)
	require.Equal(t, slices.Compact(slices.Clone(keys)), keys, "keys of %s are not unique", f.Name)
	return keys
}

// collect returns the rows of a query with the values in the order of the
// columns, which it checks.
func collect(t *testing.T, conn *pgx.Conn, f *catalogue.Family, sql string, columns []string, args ...any) [][]any {
	t.Helper()
	rows, err := conn.Query(context.Background(), sql, args...)
	require.NoError(t, err)
	defer rows.Close()
	want, got := map[string]uint32{}, map[string]uint32{}
	places := make([]int, len(columns))
	for _, name := range columns {
		at, _ := f.Column(name)
		want[name] = f.Columns[at].Type.OID()
	}
	for i, d := range rows.FieldDescriptions() {
		require.NotContains(t, got, d.Name, "column of %s", f.Name)
		got[d.Name] = d.DataTypeOID
		if d.Name == catalogue.RowsTotal {
			want[d.Name] = catalogue.BigInt.OID()
		} else if at := slices.Index(columns, d.Name); at >= 0 {
			places[at] = i
		}
	}
	var all [][]any
	for rows.Next() {
		values, err := rows.Values()
		require.NoError(t, err)
		row := make([]any, len(columns))
		for at, place := range places {
			row[at] = values[place]
			if column, _ := f.Column(columns[at]); f.Columns[column].NotNull {
				require.NotNil(t, row[at], "%s of %s", columns[at], f.Name)
			}
		}
		all = append(all, row)
	}
	require.NoError(t, rows.Err(), state(rows.Err()))
	require.Equal(t, want, got, "columns of %s", f.Name)
	return all
}

// state tells where in a query an error is.
func state(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return fmt.Sprintf("%s at %d: %s", pgErr.Code, pgErr.Position, pgErr.Hint)
	}
	return ""
}
