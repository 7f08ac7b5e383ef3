package store_test

import (
	"bytes"
	"slices"
	"strconv"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
)

// BenchmarkLoad compares what a load costs with what the database asks for
// the same bytes: 20,000 narrow rows, as 20 batches and as one plain COPY.
func BenchmarkLoad(b *testing.B) {
	const batches, rows = 20, 1000
	b.Run("load", func(b *testing.B) {
		f := setup(b)
		for b.Loop() {
			b.StopTimer()
			items := benchItems(batches, rows)
			b.StartTimer()
			f.load(items...)
		}
		b.ReportMetric(float64(b.N)*batches*rows/b.Elapsed().Seconds(), "rows/s")
	})
	b.Run("copy", func(b *testing.B) {
		f := setup(b)
		f.exec("set synchronous_commit = on")
		for b.Loop() {
			b.StopTimer()
			stream := slices.Clone(batch.CopyHeader)
			for _, it := range benchItems(batches, rows) {
				stream = append(stream, it.Sections[0].Tuples...)
			}
			stream = append(stream, batch.CopyTrailer...)
			b.StartTimer()
			_, err := f.conn.PgConn().CopyFrom(b.Context(), bytes.NewReader(stream), "copy metrics.narrow (time, server_id, v) from stdin (format binary)")
			require.NoError(b, err)
		}
		b.ReportMetric(float64(b.N)*batches*rows/b.Elapsed().Seconds(), "rows/s")
	})
	b.Run("already stored", func(b *testing.B) {
		f := setup(b)
		items := benchItems(batches, rows)
		f.load(items...)
		for b.Loop() {
			for _, o := range f.load(items...) {
				require.Equal(b, batch.AlreadyStored, o)
			}
		}
		b.ReportMetric(float64(b.N)*batches*rows/b.Elapsed().Seconds(), "rows/s")
	})
	b.Run("one small batch", func(b *testing.B) {
		f := setup(b)
		for b.Loop() {
			f.load(benchItems(1, 1)...)
		}
	})
}

// The same servers in every load, as in life.
var benchCollector = uuid.New()

func benchItems(batches, rows int) []batch.Item {
	items := make([]batch.Item, batches)
	for i := range items {
		items[i] = item(benchCollector, now, narrow(benchCollector, "db"+strconv.Itoa(i), now, rows))
	}
	return items
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
