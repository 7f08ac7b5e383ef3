package pgread

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/internal/testdb"
)

// cpu is the CPU time of this process so far, without the server's.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// statementsTable is 2,000 rows in the shape of pg_stat_statements, most
// columns of which are zero on most servers.
func statementsTable(f *catalogue.Family) string {
	columns := make([]string, len(f.Columns))
	for i, c := range f.Columns {
		value := "0"
		switch {
		case c.Type == catalogue.Text:
			value = "'application'"
		case c.Type == catalogue.Boolean:
			value = "true"
		case c.Type == catalogue.TimestampTZ:
			value = "now()"
		case c.NotNull || i%3 == 0:
			value = fmt.Sprintf("n * 7919 + %d", i)
		}
		columns[i] = fmt.Sprintf("(%s)::%s as %s", value, c.Type, c.Name)
	}
	return "create table statements as select " + strings.Join(columns, ", ") + " from generate_series(1, 2000) n"
}

// BenchmarkReading reads 2,000 statements of a real server in turn in both
// ways: as tuples that are passed on, and as values that are scanned and
// encoded again. It reports the CPU time of this process per row, but for the
// garbage collector's, and how much more scanning takes.
func BenchmarkReading(b *testing.B) {
	cat, err := catalogue.Default()
	require.NoError(b, err)
	f, ok := cat.Family("pg_stat_statements")
	require.True(b, ok)
	conn, err := pgx.Connect(b.Context(), testdb.Empty(b))
	require.NoError(b, err)
	b.Cleanup(func() { _ = conn.Close(b.Context()) })
	_, err = conn.Exec(b.Context(), statementsTable(f))
	require.NoError(b, err)

	keep, room := newFilter(f), 0
	_, places := fieldsOf(f)
	ways := []struct {
		name string
		read func() []byte
		took time.Duration
	}{
		{name: "tuples", read: func() []byte {
			res, err := ask(b.Context(), conn.PgConn(), &question{
				family: f, places: places, sql: "select * from statements", at: at, server: collectorID, known: keep.identify, room: make([]byte, 0, room),
			})
			require.NoError(b, err)
			room = len(res.tuples)
			return res.tuples
		}},
		{name: "scan", read: func() []byte { return scanned(b, conn, f, room) }},
	}
	require.Equal(b, ways[0].read(), ways[1].read())
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	for b.Loop() {
		for i := range ways {
			runtime.GC() // outside of what is measured
			began := cpu(b)
			ways[i].read()
			ways[i].took += cpu(b) - began
		}
	}
	for _, way := range ways {
		b.ReportMetric(float64(way.took.Nanoseconds())/float64(b.N)/2000, way.name+"-cpu-ns/row")
	}
	b.ReportMetric(float64(ways[1].took)/float64(ways[0].took), "scan/tuples")
}

// scanned reads the statements into Go's types and encodes these.
func scanned(b *testing.B, conn *pgx.Conn, f *catalogue.Family, room int) []byte {
	rows, err := conn.Query(b.Context(), "select * from statements")
	require.NoError(b, err)
	targets := make([]any, len(f.Columns))
	for i, c := range f.Columns {
		switch c.Type {
		case catalogue.Boolean:
			targets[i] = new(*bool)
		case catalogue.BigInt:
			targets[i] = new(*int64)
		case catalogue.DoublePrecision:
			targets[i] = new(*float64)
		case catalogue.Text:
			targets[i] = new(*string)
		case catalogue.TimestampTZ:
			targets[i] = new(*time.Time)
		default:
			require.Fail(b, "no such column before", c.Type)
		}
	}
	tuples := make([]byte, 0, room)
	for rows.Next() {
		require.NoError(b, rows.Scan(targets...))
		tuples = batch.AppendTuple(tuples, batch.LeadFields+len(targets), at, collectorID)
		for _, target := range targets {
			switch v := target.(type) {
			case **bool:
				tuples = batch.AppendBool(tuples, **v)
			case **int64:
				tuples = batch.AppendInt64(tuples, **v)
			case **float64:
				tuples = batch.AppendFloat64(tuples, **v)
			case **string:
				tuples = batch.AppendText(tuples, **v)
			case **time.Time:
				tuples = batch.AppendTime(tuples, **v)
			}
		}
	}
	require.NoError(b, rows.Err())
	return tuples
}
