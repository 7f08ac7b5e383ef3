package collector

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/collector/spool"
)

func TestSplitKeepsEveryRowInOrderAndWithinBounds(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var sections []batch.Section
		var want []byte
		for i := range rapid.IntRange(0, 20).Draw(t, "sections") {
			s := batch.Section{Family: "f", Server: fmt.Sprint(i), Columns: []batch.Column{{Name: "a", Type: catalogue.Text}}}
			size := rapid.SampledFrom([]int{1, 100, 10_000, maxBatchBytes / 2, maxBatchBytes + 1}).Draw(t, "size")
			s.Rows = rapid.IntRange(0, min(2*maxBatchRows, 5*maxBatchBytes/size)).Draw(t, "rows")
			for row := range s.Rows {
				s.Tuples = batch.AppendTuple(s.Tuples, batch.LeadFields+2, time.UnixMicro(int64(row)), uuid.UUID{byte(i)})
				s.Tuples = batch.AppendNull(batch.AppendText(s.Tuples, strings.Repeat("x", size)))
			}
			sections = append(sections, s)
			want = append(want, s.Tuples...)
		}
		var got []byte
		for _, part := range golden.split(sections) {
			if n := rows(part); n == 0 || n > maxBatchRows || len(part) > maxBatchSections {
				t.Fatalf("%d rows in %d sections", n, len(part))
			}
			if n := len(golden.push(goldenStamp, part).Append(nil)); n > maxBatchBytes && rows(part) > 1 {
				t.Fatalf("%d bytes in %d rows", n, rows(part))
			}
			for _, s := range part {
				n := 0
				for rest := s.Tuples; len(rest) > 0; n++ {
					rest = rest[tupleBytes(rest):]
				}
				if n != s.Rows {
					t.Fatalf("%d rows are said to be %d", n, s.Rows)
				}
				got = append(got, s.Tuples...)
			}
		}
		if !bytes.Equal(got, want) {
			t.Fatal("rows were lost or changed their order")
		}
	})
}

func newTestGatherer(t *testing.T, maxBytes int64) (*gatherer, *spool.Spool, *bytes.Buffer) {
	t.Helper()
	var logged bytes.Buffer
	log := slog.New(slog.NewTextHandler(&logged, nil))
	sp, err := spool.Open(spool.Config{Dir: filepath.Join(t.TempDir(), "spool"), MaxBytes: maxBytes}, log, prometheus.NewRegistry())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, sp.Close()) })
	g, err := newGatherer(golden, sp, log, newMetrics(prometheus.NewRegistry()))
	require.NoError(t, err)
	return g, sp, &logged
}

func TestFamiliesDueTogetherShareABatch(t *testing.T) {
	t.Parallel()
	g, sp, _ := newTestGatherer(t, 0)
	in := make(chan []batch.Section)
	done := make(chan struct{})
	go func() { defer close(done); g.run(t.Context(), in) }()
	in <- goldenSections[:1]
	in <- goldenSections[1:]
	close(in)
	<-done
	rec, ok, err := sp.Oldest()
	require.NoError(t, err)
	require.True(t, ok)
	m := parse(t, inflate(t, rec.Body))
	require.Len(t, m.Sections, 2)
	require.Equal(t, rec.BatchID[:], m.BatchId)
	require.Equal(t, 1, sp.Stats().Unsent)
}

func TestAFullSpoolStopsTheReadersUntilThereIsRoom(t *testing.T) {
	t.Parallel()
	g, sp, logged := newTestGatherer(t, 4000)
	g.wait = time.Millisecond
	in := make(chan []batch.Section)
	done := make(chan struct{})
	go func() { defer close(done); g.run(t.Context(), in) }()
	sent := 0
	full := func() bool {
		select {
		case in <- goldenSections:
			sent++
		case <-time.After(10 * time.Millisecond):
		}
		return testutil.ToFloat64(g.metrics.paused) == 1
	}
	require.Eventually(t, full, 60*time.Second, time.Millisecond)
	select {
	case in <- goldenSections:
		require.Fail(t, "more is taken although the spool is full")
	case <-time.After(300 * time.Millisecond):
	}

	// Sending makes room, and nothing that was handed over is missing.
	got := 0
	take := func() bool {
		rec, ok, err := sp.Oldest()
		require.NoError(t, err)
		if ok {
			got += len(parse(t, inflate(t, rec.Body)).Sections)
			require.NoError(t, sp.Accepted(rec, spool.Answer{}))
		}
		return got == sent*len(goldenSections)
	}
	close(in)
	require.Eventually(t, take, 30*time.Second, time.Millisecond)
	<-done
	require.Zero(t, testutil.ToFloat64(g.metrics.lostRows))
	require.Contains(t, logged.String(), "collecting stops")
	require.Contains(t, logged.String(), "collecting goes on")
}

func TestWhatAFullSpoolLeavesBehindAtTheEndIsCounted(t *testing.T) {
	t.Parallel()
	g, sp, logged := newTestGatherer(t, 600)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for {
		_, err := sp.Append(func(spool.Stamp) ([]byte, error) { return make([]byte, 100), nil })
		if errors.Is(err, spool.ErrFull) {
			break
		}
		require.NoError(t, err)
	}
	in := make(chan []batch.Section)
	done := make(chan struct{})
	go func() { defer close(done); g.run(ctx, in) }()
	in <- goldenSections
	close(in)
	<-done
	require.InDelta(t, 3, testutil.ToFloat64(g.metrics.lostRows), 0)
	require.Contains(t, logged.String(), "level=ERROR")
}
