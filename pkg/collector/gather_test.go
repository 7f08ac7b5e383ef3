package collector

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"pganalytics/pkg/collector/pgread"
	"pganalytics/pkg/collector/spool"
)

func TestSplitKeepsEveryRowInOrderAndWithinBounds(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var items []pgread.Item
		var want []string
		for i := range rapid.IntRange(0, 20).Draw(t, "items") {
			it := pgread.Item{Family: "f", Server: fmt.Sprint(i), Columns: []string{"a"}}
			size := rapid.SampledFrom([]int{1, 100, 10_000, maxBatchBytes / 2, maxBatchBytes + 1}).Draw(t, "size")
			n := rapid.IntRange(0, min(2*maxBatchRows, 5*maxBatchBytes/size)).Draw(t, "rows")
			row := []byte(strings.Repeat("x", size))
			for range n {
				it.Rows = append(it.Rows, row)
				want = append(want, it.Server)
			}
			items = append(items, it)
		}
		var got []string
		for _, part := range split(items) {
			if n := rows(part); n == 0 || n > maxBatchRows || len(part) > maxBatchItems {
				t.Fatalf("%d rows in %d items", n, len(part))
			}
			if size(part) > maxBatchBytes+512 && rows(part) > 1 {
				t.Fatalf("%d bytes in %d rows", size(part), rows(part))
			}
			for _, it := range part {
				for range it.Rows {
					got = append(got, it.Server)
				}
			}
		}
		if strings.Join(got, ",") != strings.Join(want, ",") {
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
	in := make(chan []pgread.Item)
	done := make(chan struct{})
	go func() { defer close(done); g.run(t.Context(), in) }()
	in <- goldenItems[:1]
	in <- goldenItems[1:]
	close(in)
	<-done
	rec, ok, err := sp.Oldest()
	require.NoError(t, err)
	require.True(t, ok)
	var body struct {
		Timestamp time.Time `json:"timestamp"`
		Metrics   []struct {
			Server string `json:"server"`
		} `json:"metrics"`
	}
	require.NoError(t, json.Unmarshal(inflate(t, rec.Body), &body))
	require.Len(t, body.Metrics, 2)
	sec, nsec := rec.BatchID.Time().UnixTime()
	require.Equal(t, time.Unix(sec, nsec).UTC(), body.Timestamp, "the batch's time is its id's")
	require.Equal(t, 1, sp.Stats().Unsent)
}

func TestAFullSpoolStopsTheReadersUntilThereIsRoom(t *testing.T) {
	t.Parallel()
	g, sp, logged := newTestGatherer(t, 4000)
	g.wait = time.Millisecond
	in := make(chan []pgread.Item)
	done := make(chan struct{})
	go func() { defer close(done); g.run(t.Context(), in) }()
	sent := 0
	full := func() bool {
		select {
		case in <- goldenItems:
			sent++
		case <-time.After(10 * time.Millisecond):
		}
		return testutil.ToFloat64(g.metrics.paused) == 1
	}
	require.Eventually(t, full, 60*time.Second, time.Millisecond)
	select {
	case in <- goldenItems:
		require.Fail(t, "more is taken although the spool is full")
	case <-time.After(300 * time.Millisecond):
	}

	// Sending makes room, and nothing that was handed over is missing.
	got := 0
	take := func() bool {
		rec, ok, err := sp.Oldest()
		require.NoError(t, err)
		if ok {
			var body struct {
				Count int `json:"metrics_count"`
			}
			require.NoError(t, json.Unmarshal(inflate(t, rec.Body), &body))
			got += body.Count
			require.NoError(t, sp.Accepted(rec, spool.Answer{}))
		}
		return got == sent*len(goldenItems)
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
	in := make(chan []pgread.Item)
	done := make(chan struct{})
	go func() { defer close(done); g.run(ctx, in) }()
	in <- goldenItems
	close(in)
	<-done
	require.InDelta(t, 3, testutil.ToFloat64(g.metrics.lostRows), 0)
	require.Contains(t, logged.String(), "level=ERROR")
}
