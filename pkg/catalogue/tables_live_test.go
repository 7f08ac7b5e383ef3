package catalogue_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// number returns what a query for one number gives.
func number(t *testing.T, conn *pgx.Conn, query string, args ...any) float64 {
	t.Helper()
	var n float64
	require.NoError(t, conn.QueryRow(t.Context(), query, args...).Scan(&n), query)
	return n
}

// own returns the rows of the test's relations: TimescaleDB has some besides.
func own(rows []row) []row {
	return slices.DeleteFunc(rows, func(r row) bool { return r["schemaname"] != "public" })
}

// named returns the one row of the relation, by the last columns of the key.
func named(t *testing.T, rows []row, names ...string) row {
	t.Helper()
	columns := []string{"relname", "indexrelname"}
	for _, r := range rows {
		if r[columns[0]] == names[0] && (len(names) == 1 || r[columns[1]] == names[1]) {
			return r
		}
	}
	require.Fail(t, "no such row", "%v", names)
	return nil
}

func TestTablesAreCountedAndMeasured(t *testing.T) {
	t.Parallel()
	f := family(t, "pg_stat_user_tables")
	onEveryServer(t, func(t *testing.T, databaseURL string) {
		owner := connect(t, databaseURL)
		execute(t, owner,
			"create table worked (id int primary key, body text) with (autovacuum_enabled = off)",
			"insert into worked select g, repeat('x', 100) from generate_series(1, 3000) g", "delete from worked where id <= 1000",
			"update worked set body = 'y' where id > 2900", "analyze worked",
			"create table large (id int, body text)", "alter table large alter body set storage external",
			"insert into large select g, repeat('x', 5000) from generate_series(1, 100) g", "vacuum large",
			"create table parts (id int) partition by range (id)", "create table parts_1 partition of parts for values from (0) to (10)",
			"insert into parts values (1)", "create materialized view sums as select count(*) as n from worked",
			"create temp table passing (id int)")
		_ = owner.Close(t.Context()) // a session's counters are seen at its end at the latest

		conn := monitor(t, databaseURL)
		var rows []row
		require.Eventually(t, func() bool {
			rows = own(read(t, conn, f))
			return named(t, rows, "worked")["n_tup_del"] == int64(1000)
		}, waitFor, tick)
		kinds := map[string]any{}
		for _, r := range rows {
			kinds[r["relname"].(string)] = r["relkind"]
		}
		expected := map[string]any{"worked": "r", "large": "r", "parts": "p", "parts_1": "r", "sums": "m"}
		if major(t, conn) < 14 { // the view has no partitioned tables
			delete(expected, "parts")
		} else {
			require.Nil(t, named(t, rows, "parts")["relfrozenxid_age"])
		}
		require.Equal(t, expected, kinds)
		worked, large := named(t, rows, "worked"), named(t, rows, "large")
		require.Equal(t, []any{int64(3000), int64(100)}, []any{worked["n_tup_ins"], worked["n_tup_upd"]})
		require.InDelta(t, 1100, worked["n_dead_tup"], 100, "some may have been pruned")
		require.NotNil(t, worked["last_analyze"])
		require.Nil(t, worked["last_vacuum"])
		require.NotNil(t, large["last_vacuum"])
		require.Positive(t, worked["relfrozenxid_age"])
		require.NotNil(t, worked["relminmxid_age"])
		require.Greater(t, large["toast_bytes"], int64(500_000))
		for _, r := range []row{worked, large} {
			size := func(expression string) float64 {
				return number(t, conn, "select "+expression+" from pg_class where relname = $1", r["relname"])
			}
			require.InDelta(t, size("pg_total_relation_size(oid)"), r["total_bytes"], 0)
			require.InDelta(t, size("pg_indexes_size(oid)"), r["index_bytes"], 0)
			require.InDelta(t, size("pg_total_relation_size(reltoastrelid)"), r["toast_bytes"], 0)
			require.EqualValues(t, r["total_bytes"], r["table_bytes"].(int64)+r["index_bytes"].(int64)+r["toast_bytes"].(int64))
			require.InDelta(t, number(t, conn, "select heap_blks_read + heap_blks_hit from pg_statio_user_tables where relname = $1", r["relname"]),
				r["heap_blks_read"].(int64)+r["heap_blks_hit"].(int64), 0)
		}

		two := readAtMost(t, conn, f, 2)
		require.Len(t, two, 2)
		require.EqualValues(t, len(read(t, conn, f)), two[0]["rows_total"])
		require.Contains(t, two, named(t, two, "worked"), "it is the greatest of those that were analyzed or vacuumed, and the most active")
	})
}

func TestIndexesTellWhetherTheyAreUsedAndValid(t *testing.T) {
	t.Parallel()
	f := family(t, "pg_stat_user_indexes")
	onEveryServer(t, func(t *testing.T, databaseURL string) {
		owner := connect(t, databaseURL)
		execute(t, owner,
			"create table goods (id int primary key, kind int, body text)",
			"insert into goods select g, g % 5, repeat('x', 20) || g from generate_series(1, 20000) g",
			"create index unused on goods (body)", "create temp table passing (id int primary key)",
			"set enable_seqscan = off", "select body from goods where id = 7", "analyze goods")
		_, err := owner.Exec(t.Context(), "create unique index concurrently broken on goods (kind)")
		require.Error(t, err, "the values are not unique")
		_ = owner.Close(t.Context()) // a session's counters are seen at its end at the latest

		conn := monitor(t, databaseURL)
		var rows []row
		require.Eventually(t, func() bool {
			rows = own(read(t, conn, f))
			return named(t, rows, "goods", "goods_pkey")["idx_scan"] == int64(1)
		}, waitFor, tick)
		require.Len(t, rows, 3)
		used, unused, broken := named(t, rows, "goods", "goods_pkey"), named(t, rows, "goods", "unused"), named(t, rows, "goods", "broken")
		require.Equal(t, []any{true, true, true, true}, []any{used["is_unique"], used["is_primary"], used["is_valid"], used["is_ready"]})
		require.EqualValues(t, 1, used["idx_tup_fetch"])
		require.Equal(t, major(t, conn) >= 16, used["last_idx_scan"] != nil)
		require.Equal(t, []any{false, false, true, "btree"}, []any{unused["is_unique"], unused["is_primary"], unused["is_valid"], unused["access_method"]})
		require.EqualValues(t, 0, unused["idx_scan"])
		require.Equal(t, []any{true, false}, []any{broken["is_unique"], broken["is_valid"]})
		require.InDelta(t, number(t, conn, "select pg_table_size('unused'::regclass)"), unused["index_bytes"], 0)
		require.InDelta(t, number(t, conn, "select idx_blks_read + idx_blks_hit from pg_statio_user_indexes where indexrelname = 'unused'"),
			unused["idx_blks_read"].(int64)+unused["idx_blks_hit"].(int64), 0)

		greatest := readAtMost(t, conn, f, 1)
		require.Len(t, greatest, 1)
		require.GreaterOrEqual(t, greatest[0]["rows_total"], int64(3))
		require.Equal(t, "unused", greatest[0]["indexrelname"])
	})
}

func TestLockedRelationsHoldNeitherIndexesNorSequencesUp(t *testing.T) {
	t.Parallel()
	onEveryServer(t, func(t *testing.T, databaseURL string) {
		setup := connect(t, databaseURL)
		execute(t, setup, family(t, "pg_sequences").Setup,
			"create table free_one (id serial primary key)", "insert into free_one default values",
			"create table rebuilt (id serial primary key)", "insert into rebuilt default values",
			"begin", "reindex index rebuilt_pkey", "lock table rebuilt in access exclusive mode",
			"alter table rebuilt alter id drop default", "drop sequence rebuilt_id_seq")

		conn := monitor(t, databaseURL) // its lock_timeout would end a query that waits
		began := time.Now()
		indexes := read(t, conn, family(t, "pg_stat_user_indexes"))
		require.Nil(t, named(t, indexes, "rebuilt", "rebuilt_pkey")["index_bytes"])
		require.NotNil(t, named(t, indexes, "rebuilt", "rebuilt_pkey")["idx_scan"])
		require.NotNil(t, named(t, indexes, "free_one", "free_one_pkey")["index_bytes"])

		sequences := read(t, conn, family(t, "pg_sequences"))
		require.Nil(t, find(t, sequences, "sequencename", "rebuilt_id_seq")["last_value"])
		require.Nil(t, find(t, sequences, "sequencename", "rebuilt_id_seq")["used_ratio"])
		require.EqualValues(t, 1, find(t, sequences, "sequencename", "free_one_id_seq")["last_value"])
		require.Less(t, time.Since(began), 20*time.Second)
	})
}

func TestSequencesSayHowMuchIsLeft(t *testing.T) {
	t.Parallel()
	f := family(t, "pg_sequences")
	onEveryServer(t, func(t *testing.T, databaseURL string) {
		owner := connect(t, databaseURL)
		execute(t, owner, f.Setup, f.Setup, // twice, as after an update of the collector
			"create table orders (id int generated always as identity)",
			"select setval('orders_id_seq', 2147483000)",
			"create sequence wide", "create table narrow (id int default nextval('wide'))", "alter sequence wide owned by narrow.id",
			"select setval('wide', 1073741824)",
			"create sequence tiny as smallint maxvalue 10 increment 3 cycle", "select nextval('tiny'), nextval('tiny'), nextval('tiny')",
			"create sequence down increment -1 minvalue -100 maxvalue 100 start 100", "select nextval('down')", "select setval('down', 0)",
			`create sequence "Not, Used"`,
			"create sequence vast minvalue -9223372036854775808 maxvalue 9223372036854775807", "select nextval('vast')",
			"create sequence spent maxvalue 5", "select setval('spent', 5)", "create sequence pair minvalue 7 maxvalue 8",
			"create temp sequence passing")
		conn := monitor(t, databaseURL)
		rows := own(read(t, conn, f))
		require.Len(t, rows, 8)
		check := func(name string, last, limit, remaining any, used float64) {
			t.Helper()
			r := find(t, rows, "sequencename", name)
			require.Equal(t, []any{last, limit, remaining}, []any{r["last_value"], r["limit_value"], r["remaining"]}, name)
			require.InDelta(t, used, r["used_ratio"], 1e-6, name)
			require.GreaterOrEqual(t, r["rows_total"], int64(8))
		}
		check("orders_id_seq", int64(2147483000), int64(2147483647), int64(647), 0.9999997)
		check("wide", int64(1073741824), int64(2147483647), int64(1073741823), 0.5)
		check("tiny", int64(7), int64(10), int64(1), 6.0/9)
		check("down", int64(0), int64(-100), int64(100), 0.5)
		check("Not, Used", nil, int64(9223372036854775807), int64(9223372036854775807), 0)
		check("vast", int64(-9223372036854775808), int64(9223372036854775807), int64(9223372036854775807), 0)
		check("spent", int64(5), int64(5), int64(0), 1)
		check("pair", nil, int64(8), int64(2), 0)
		r := find(t, rows, "sequencename", "wide")
		require.Equal(t, []any{"public.narrow", "id", "bigint", false}, []any{r["table_name"], r["column_name"], r["data_type"], r["cycle"]})
		require.Equal(t, true, find(t, rows, "sequencename", "tiny")["cycle"])

		narrowest := readAtMost(t, conn, f, 1)
		require.Len(t, narrowest, 1)
		require.Equal(t, "pair", narrowest[0]["sequencename"])
	})
}

// Thousands of them would leave no room for the locks of others.
func TestSequencesAreNotKeptLocked(t *testing.T) {
	t.Parallel()
	f := family(t, "pg_sequences")
	onEveryServer(t, func(t *testing.T, databaseURL string) {
		execute(t, connect(t, databaseURL), f.Setup,
			"do $$ begin for i in 1..100 loop execute format('create sequence s%s', i); end loop; end $$")
		conn := monitor(t, databaseURL)
		execute(t, conn, "begin")
		require.Len(t, own(read(t, conn, f)), 100)
		require.Zero(t, number(t, conn, `select count(*) from pg_locks l join pg_class c on c.oid = l.relation
			 where l.pid = pg_backend_pid() and c.relkind = 'S'`))
		execute(t, conn, "rollback")
	})
}

// The estimate's documented tolerance for tables, and for indexes that were
// built or filled in order.
const tolerance = 0.12

func TestBloatIsEstimatedNearWhatReadingEveryPageFinds(t *testing.T) {
	t.Parallel()
	f := family(t, "pg_bloat_estimate")
	onEveryServer(t, func(t *testing.T, databaseURL string) {
		owner := connect(t, databaseURL)
		execute(t, owner, f.Setup, f.Setup, "create extension pgstattuple",
			"create table plain (id bigint primary key, body text, at timestamptz default now()) with (autovacuum_enabled = off)",
			"insert into plain select g, repeat('x', g % 200) from generate_series(1, 40000) g",
			"create table nulls (id int, a int, b text, c bool, d bool, e bool, f bool, g bool, h bool, i text) with (autovacuum_enabled = off)",
			"insert into nulls select g, nullif(g % 2, 0), case when g % 3 = 0 then repeat('some text', 20) end from generate_series(1, 40000) g",
			"create table packed (id int, body text) with (fillfactor = 60, autovacuum_enabled = off)",
			"insert into packed select g, md5(g::text) from generate_series(1, 20000) g",
			"create index nulls_a on nulls (a)", "create index nulls_many on nulls (id, b)", "create index plain_expression on plain ((id + 1), body)",
			"create index nulls_part on nulls (id) where a is null", "create index packed_index on packed (body) with (fillfactor = 50, deduplicate_items = off)",
			"vacuum analyze plain, nulls, packed")
		conn := monitor(t, databaseURL)
		requireNear := func(when string, least float64) {
			t.Helper()
			rows := own(read(t, conn, f))
			require.Len(t, rows, 9)
			for _, r := range rows {
				table, index := r["relname"].(string), r["indexrelname"].(string)
				free := fmt.Sprintf("select (free_space + dead_tuple_len) / table_len::float8 from pgstattuple('%s')", table)
				if index != "" { // pages that are free as a whole are beside those whose density is told
					free = fmt.Sprintf("select 1 - leaf_pages * avg_leaf_density / %v / (leaf_pages + empty_pages + deleted_pages) from pgstatindex('%s')", r["fillfactor"], index)
				}
				measured := number(t, owner, free)
				if index == "" && r["fillfactor"] != int32(100) { // its free space at first is wanted
					measured = 1 - (1-measured)*100/float64(r["fillfactor"].(int32))
				}
				require.InDelta(t, max(measured, 0), r["bloat_ratio"], tolerance, "%s %s %s", when, table, index)
				require.GreaterOrEqual(t, r["bloat_ratio"], least, "%s %s %s", when, table, index)
				require.InDelta(t, float64(r["real_bytes"].(int64))*r["bloat_ratio"].(float64), r["bloat_bytes"], 1)
				if index == "" {
					index = table
				}
				require.InDelta(t, number(t, owner, "select pg_relation_size($1::text::regclass)", index), r["real_bytes"], 0)
			}
		}
		requireNear("just written", 0)
		execute(t, owner, "delete from plain where id % 4 < 2", "delete from nulls where id % 4 < 2", "delete from packed where id % 4 < 2",
			"vacuum analyze plain, nulls, packed")
		requireNear("half deleted", 0.3)
	})
}

func TestBloatIsUnknownWithoutStatistics(t *testing.T) {
	t.Parallel()
	f := family(t, "pg_bloat_estimate")
	onEveryServer(t, func(t *testing.T, databaseURL string) {
		owner := connect(t, databaseURL)
		execute(t, owner, f.Setup,
			"create table fresh (id int primary key) with (autovacuum_enabled = off)", "insert into fresh select generate_series(1, 1000)",
			"create table half_known (id int, late int) with (autovacuum_enabled = off)",
			"insert into half_known select generate_series(1, 1000)", "analyze half_known (id)", "vacuum half_known",
			"create table emptied (id int) with (autovacuum_enabled = off)", "insert into emptied select generate_series(1, 100000)",
			"delete from emptied where id < 100000", "vacuum emptied", "delete from emptied", "analyze emptied")
		rows := read(t, monitor(t, databaseURL), f)
		for _, names := range [][]string{{"fresh", ""}, {"fresh", "fresh_pkey"}, {"half_known", ""}} {
			r := named(t, rows, names...)
			require.Nil(t, r["expected_bytes"], names)
			require.Nil(t, r["bloat_bytes"], names)
			require.Nil(t, r["bloat_ratio"], names)
		}
		r := named(t, rows, "emptied", "")
		require.EqualValues(t, 0, r["expected_bytes"])
		require.InDelta(t, 1, r["bloat_ratio"], 0)
	})
}

func TestHelpersServeOnlyMonitorsAndTellNoValues(t *testing.T) {
	t.Parallel()
	onEveryServer(t, func(t *testing.T, databaseURL string) {
		owner := connect(t, databaseURL)
		execute(t, owner, family(t, "pg_bloat_estimate").Setup, family(t, "pg_sequences").Setup,
			"create table people (name text)", "insert into people select 'secret person' from generate_series(1, 100)", "analyze people")
		conn := monitor(t, databaseURL)
		var all string
		require.NoError(t, conn.QueryRow(t.Context(), "select string_agg(s::text, ' ') from pganalytics.column_statistics(array['people'::regclass::oid]) s").Scan(&all))
		require.NotEmpty(t, all)
		require.NotContains(t, all, "secret")

		role := fmt.Sprintf("pganalytics_anyone_%d", time.Now().UnixNano())
		execute(t, owner, "create role "+role)
		t.Cleanup(func() { execute(t, owner, "reset role", "drop role "+role) })
		execute(t, owner, "set role "+role)
		for _, call := range []string{"column_statistics", "sequence_last_values"} {
			_, err := owner.Exec(t.Context(), "select * from pganalytics."+call+"('{}')")
			require.ErrorContains(t, err, "permission denied", call)
		}
	})
}

// Who owns the schema could put a function of his own in the place of a helper,
// and the collector would call it.
func TestHelpersAreNotPutIntoAStrangersSchema(t *testing.T) {
	t.Parallel()
	onEveryServer(t, func(t *testing.T, databaseURL string) {
		owner := connect(t, databaseURL)
		role := fmt.Sprintf("pganalytics_stranger_%d", time.Now().UnixNano())
		execute(t, owner, "create role "+role, "create schema pganalytics authorization "+role)
		t.Cleanup(func() { execute(t, owner, "drop owned by "+role, "drop role "+role) })
		for _, name := range []string{"pg_bloat_estimate", "pg_sequences"} {
			_, err := owner.Exec(t.Context(), family(t, name).Setup)
			require.ErrorContains(t, err, "belongs to a role", name)
		}
	})
}

func TestExtensionsTellTheirVersions(t *testing.T) {
	t.Parallel()
	f := family(t, "pg_extensions")
	onEveryServer(t, func(t *testing.T, databaseURL string) {
		owner := connect(t, databaseURL)
		execute(t, owner, "create schema apart", "create extension pgstattuple schema apart version '1.4'")
		r := find(t, read(t, monitor(t, databaseURL), f), "extname", "pgstattuple")
		require.Equal(t, []any{"1.4", "1.5", "apart"}, []any{r["version"], r["default_version"], r["schemaname"]})
		require.Equal(t, owner.Config().Database, r["datname"])
	})
}
