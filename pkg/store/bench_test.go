package store_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
)

// BenchmarkLoad compares what a load costs with what the database asks for
// the same bytes: 20,000 narrow rows, as a load and as one plain COPY. Time is
// CPU time, in this process and in the database's, where it can be read.
func BenchmarkLoad(b *testing.B) {
	for _, shape := range []struct{ batches, rows int }{{20, 1000}, {2000, 10}, {1, 1}} {
		b.Run(fmt.Sprintf("load/%dx%d", shape.batches, shape.rows), func(b *testing.B) {
			f := setup(b)
			f.load(benchItems(1, 1)...) // the chunks are there
			f.measure(shape.batches*shape.rows, func() func() {
				items := benchItems(shape.batches, shape.rows)
				return func() { f.load(items...) }
			})
		})
	}
	b.Run("copy/20x1000", func(b *testing.B) {
		f := setup(b)
		f.exec("set synchronous_commit = on; set application_name = 'pganalytics-store'")
		f.measure(20*1000, func() func() {
			stream := slices.Clone(batch.CopyHeader)
			for _, it := range benchItems(20, 1000) {
				stream = append(stream, it.Sections[0].Tuples...)
			}
			stream = append(stream, batch.CopyTrailer...)
			return func() {
				_, err := f.conn.PgConn().CopyFrom(b.Context(), bytes.NewReader(stream), "copy metrics.narrow (time, server_id, v) from stdin (format binary)")
				require.NoError(b, err)
			}
		})
	})
	b.Run("already stored/2000x10", func(b *testing.B) {
		f := setup(b)
		items := benchItems(2000, 10)
		f.load(items...)
		f.measure(20000, func() func() {
			return func() {
				for _, o := range f.load(items...) {
					require.Equal(b, batch.AlreadyStored, o)
				}
			}
		})
	})
}

// measure reports nanoseconds of CPU a row for what prepare returns.
func (f *fixture) measure(rows int, prepare func() (load func())) {
	b := f.TB.(*testing.B)
	pids, err := connect(f, f.url).Query(f.Context(), "select pid from pg_stat_activity where datname = current_database() and application_name = 'pganalytics-store'")
	require.NoError(f, err)
	backends, err := pgx.CollectRows(pids, pgx.RowTo[int])
	require.NoError(f, err)
	var client, server time.Duration
	for b.Loop() {
		b.StopTimer()
		load := prepare()
		client -= ownCPU()
		server -= backendCPU(backends)
		b.StartTimer()
		load()
		b.StopTimer()
		client += ownCPU()
		server += backendCPU(backends)
		b.StartTimer()
	}
	perRow := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / float64(b.N*rows) }
	b.ReportMetric(perRow(client), "client-ns/row")
	b.ReportMetric(perRow(server), "server-ns/row")
}

func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// backendCPU is 0 for a database elsewhere.
func backendCPU(pids []int) (sum time.Duration) {
	for _, pid := range pids {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
		onCPU, _, _ := strings.Cut(string(text), " ")
		n, _ := strconv.ParseInt(onCPU, 10, 64)
		sum += time.Duration(n)
	}
	return sum
}

// The same servers in every load, as in life: 200 of them, in any order.
var benchCollector = uuid.New()

func benchItems(batches, rows int) []batch.Item {
	items := make([]batch.Item, batches)
	at := time.Now().UTC().Truncate(time.Microsecond)
	for i, server := range rand.Perm(batches) {
		items[i] = item(benchCollector, at, benchRows("db"+strconv.Itoa(server%200), at, rows))
	}
	return items
}

var benchTuples = map[string][]byte{}

// benchRows makes the same rows again cheaply, so that their making does not
// show in the client's time.
func benchRows(server string, at time.Time, n int) batch.Section {
	s := narrow(benchCollector, server, at, 1)
	key := fmt.Sprint(server, n)
	if benchTuples[key] == nil {
		benchTuples[key] = bytes.Repeat(s.Tuples, n)
	}
	s.Rows, s.Tuples = n, benchTuples[key]
	return s
}

// BenchmarkContested is the worst case: another loader holds all of a load.
func BenchmarkContested(b *testing.B) {
	f := setup(b)
	items := benchItems(2000, 10)
	f.load(item(benchCollector, now)) // the chunk is there
	f.hold(items...)
	for b.Loop() {
		for _, o := range f.load(items...) {
			require.Equal(b, batch.Contested, o)
		}
	}
}
