package pgread

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/policy"
)

// texts is a family of a name and a text.
func textFamily(name, more, sql string) string {
	return `
name: ` + name + `
description: Texts.
scope: instance
interval: 1s
retention: 30d
` + more + `
key: [k]
columns:
  - {name: k, type: text, help: x}
  - {name: v, type: text, kind: info, help: x, query_text: true}
queries:
  - min_version: 13
` + sql
}

func query(sql string) string { return "    sql: |\n      " + sql + "\n" }

const chunk = "chunk: 1d"

// database is a connection to a database of the test's own.
type database struct {
	t    *testing.T
	url  string
	conn *pgx.Conn
}

func open(t *testing.T, url string) *database {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return &database{t, url, conn}
}

func (d *database) execute(statements ...string) {
	d.t.Helper()
	for _, s := range statements {
		_, err := d.conn.Exec(context.Background(), s)
		require.NoError(d.t, err, s)
	}
}

func (d *database) number(sql string, args ...any) (n int) {
	d.t.Helper()
	require.NoError(d.t, d.conn.QueryRow(d.t.Context(), sql, args...).Scan(&n))
	return n
}

func (r *running) fixed(family string, what fix) float64 {
	return testutil.ToFloat64(r.metrics.fixed.WithLabelValues("db1", family, fixNames[what]))
}

func TestWhatAGatewayWouldRefuseIsSetRightAndCounted(t *testing.T) {
	t.Parallel()
	server := open(t, testdb.Empty(t))
	ascii := server.conn.Config().Database + "_ascii"
	server.execute("create database " + ascii + " encoding 'SQL_ASCII' template template0 locale 'C'")
	t.Cleanup(func() { server.execute("drop database " + ascii + " with (force)") })
	url := strings.Replace(server.url, server.conn.Config().Database, ascii, 1)

	r := start(t, Config{Name: "db1", Conninfo: url}, load(t, textFamily("odd", chunk, query(
		`select k::text, convert_from('\x61ff62'::bytea, 'SQL_ASCII') as v
         from (values ('good'), (null), (repeat('k', 2000)), (repeat('k', 2001))) x(k)
        union all select 'huge', repeat('v', 1048576)`))))
	got := table(t, r.of("odd"))
	require.Equal(t, []string{"good", "a\uFFFDb"}, got[0])
	require.Equal(t, strings.Repeat("k", 2000), got[1][0])
	require.Len(t, got, 2)
	r.of("odd")
	require.InDelta(t, 2, r.fixed("odd", keyless), 0)
	require.InDelta(t, 4, r.fixed("odd", oversized), 0)
	require.GreaterOrEqual(t, r.fixed("odd", repaired), 6.0)
	require.Equal(t, 1, strings.Count(r.log(), "rows are dropped"), r.log())
}

func TestResultsAreCutAtTheirLimitAndItIsSaid(t *testing.T) {
	t.Parallel()
	d := open(t, testdb.Empty(t))
	d.execute("create table many (n bigint)", "insert into many select generate_series(1, 10)")
	cat := load(t, family("limited", "instance",
		"select n::text as datname, n as v, count(*) over () as rows_total from public.many order by n limit $1"))
	r := start(t, Config{Name: "db1", Conninfo: d.url, Families: map[string]policy.Reading{"limited": {Interval: time.Second, MaxRows: 3}}}, cat)
	cut := func() float64 { return testutil.ToFloat64(r.metrics.cut.WithLabelValues("db1", "limited")) }

	got := r.of("limited")
	require.Equal(t, [][]string{{"1", "1"}, {"2", "2"}, {"3", "3"}}, table(t, got))
	require.Len(t, got.Columns, 2, "the total is no column of the family")
	r.of("limited")
	require.GreaterOrEqual(t, cut(), 14.0)
	require.Equal(t, 1, strings.Count(r.log(), "result is cut"), r.log())
	require.Contains(t, r.log(), "family=limited rows=3 cut_rows=7 max_rows=3")

	d.execute("delete from many where n > 3")
	r.eventually(func() bool { return strings.Contains(r.log(), "no longer cut") }, "the end of the cut")
	d.execute("insert into many select generate_series(4, 10)")
	r.eventually(func() bool { return strings.Count(r.log(), "result is cut") == 2 }, "another cut")
}

func TestAQueryWithoutALimitIsStoppedAtFiftyThousandRows(t *testing.T) {
	t.Parallel()
	cat := load(t, family("endless", "instance", "select 'x'::text as datname, generate_series(1, 1000000000000)::bigint as v"), family("good", "instance", number))
	r := start(t, Config{Name: "db1", Conninfo: testdb.Empty(t), StatementTimeout: time.Minute}, cat)
	require.Equal(t, maxRows, r.of("endless").Rows)
	r.of("good")
	require.Contains(t, r.log(), "result is cut")
	require.NotContains(t, r.log(), "connection lost", "the statement is cancelled, not the connection given up")
	require.Positive(t, testutil.ToFloat64(r.metrics.cut.WithLabelValues("db1", "endless")))
}

func TestContentsAreReadOnlyForKeysThatAreNew(t *testing.T) {
	t.Parallel()
	d := open(t, testdb.Empty(t))
	d.execute("create extension pg_stat_statements",
		"create table stored (k text primary key, v text)", "insert into stored select n, 'text of ' || n from generate_series(1, 3) n")
	mark := fmt.Sprintf("m%d", time.Now().UnixNano())
	cat := load(t, textFamily("texts", "kind: dimension", fmt.Sprintf(`    keys: "select k, count(*) over () as rows_total from public.stored as %[1]s_keys order by k limit $1"
    sql: "select k, v from public.stored as %[1]s_contents where k = any($1)"
`, mark)))
	calls := func(what string) int {
		return d.number("select coalesce(sum(calls), 0)::int from pg_stat_statements where query like $1 and query not like '%like%'", "%"+mark+"_"+what+"%")
	}
	r := start(t, Config{
		Name: "db1", Conninfo: d.url, QueryText: TextFull,
		Families: map[string]policy.Reading{"texts": {Interval: time.Second, MaxRows: 5}},
	}, cat)
	require.Equal(t, [][]string{{"1", "text of 1"}, {"2", "text of 2"}, {"3", "text of 3"}}, table(t, r.of("texts")))
	r.eventually(func() bool { return calls("keys") >= 3 }, "keys read again")
	require.Equal(t, 1, calls("contents"), "nothing new, nothing asked")

	d.execute("insert into stored values ('4', 'new')")
	require.Equal(t, [][]string{{"4", "new"}}, table(t, r.of("texts")))
	require.Equal(t, 2, calls("contents"))

	// What went and came back is new; what is beyond the limit is counted.
	d.execute("delete from stored where k = '2'")
	before := calls("keys")
	r.eventually(func() bool { return calls("keys") >= before+2 }, "a sample without the key")
	d.execute("insert into stored values ('2', 'again'), ('5', 'last'), ('6', 'beyond')")
	require.Equal(t, [][]string{{"2", "again"}, {"5", "last"}}, table(t, r.of("texts")))
	require.Contains(t, r.log(), "cut_rows=1")
}

func TestAKeyWhoseContentIsNotThereIsAskedForAgain(t *testing.T) {
	t.Parallel()
	f, _ := load(t, textFamily("texts", "kind: dimension", query("select 1"))).Family("texts")
	k := newSentKeys(f)
	answer := func(keys ...string) *result {
		res := &result{}
		for _, key := range keys {
			begin := len(res.tuples)
			res.tuples = batch.AppendText(res.tuples, key)
			res.ids = append(res.ids, k.known([]int{0})(res.tuples, []int{begin, len(res.tuples)}))
		}
		return res
	}
	at := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	keys := answer("a", "b")
	require.Equal(t, []int{0, 1}, k.wanted(keys, at))
	k.note(keys, []int{0, 1}, answer("a"), at)
	require.Empty(t, k.wanted(keys, at.Add(time.Minute)))
	require.Equal(t, []int{1}, k.wanted(keys, at.Add(askAgain)))
	require.Equal(t, []int{0, 1}, k.wanted(keys, at.Add(resendContent)))

	k.note(keys, []int{0, 1}, &result{capped: true}, at)
	require.Equal(t, []int{0, 1}, k.wanted(keys, at), "what had no room comes next")
}

func TestQueryTextGoesAsThePolicySays(t *testing.T) {
	t.Parallel()
	url := testdb.Empty(t)
	raw := textFamily("raw", chunk, query("select 'k'::text as k, $q$alter role x password 'hunter2'$q$::text as v"))
	only := textFamily("only_texts", "kind: dimension", query("select 'k'::text as k, 'v'::text as v"))
	for policy, want := range map[TextPolicy]string{
		TextOff: "NULL", TextRedacted: "alter role x password ?", TextFull: "alter role x password 'hunter2'",
	} {
		r := start(t, Config{Name: "db1", Conninfo: url, QueryText: policy}, load(t, raw, only))
		require.Equal(t, [][]string{{"k", want}}, table(t, r.of("raw")), policy)
		if policy == TextOff {
			r.eventually(func() bool { return strings.Contains(r.log(), "query texts are off") }, "a dimension of nothing but texts is off")
		} else {
			r.eventually(func() bool {
				return testutil.ToFloat64(r.metrics.rows.WithLabelValues("db1", "only_texts")) == 1
			}, "it is read")
		}
	}
	parsed, err := ParseTextPolicy("off")
	require.NoError(t, err)
	require.Equal(t, TextOff, parsed)
	_, err = ParseTextPolicy("on")
	require.Error(t, err)
}
