package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/ingester"
	"pganalytics/pkg/replay"
	"pganalytics/pkg/service"
)

func TestTextsOfReplayAreGolden(t *testing.T) { // not parallel: the time zone
	begin := time.Date(2026, 1, 31, 2, 0, 0, 0, time.UTC)
	plan := replay.Plan{
		First: 4, Last: 1200, Begins: begin, Ends: begin.Add(6 * time.Hour),
		Collectors: []replay.CollectorPlan{{
			ID: uuid.UUID{1}, Selected: replay.Counts{Batches: 1000, Rows: 200_000, Bytes: 4_200_000},
			Missing: replay.Counts{Batches: 1, Rows: 200, Bytes: 4200},
		}},
		Selected: replay.Counts{Batches: 1000, Rows: 200_000, Bytes: 4_200_000}, Missing: replay.Counts{Batches: 1, Rows: 200, Bytes: 4200},
		Unreadable: 1, Unknown: 2, Gone: []replay.Jump{{From: 4, To: 9}}, Late: true,
	}
	gap := &replay.Gap{Gap: ingester.Gap{From: 4, To: 1200}}
	job := replay.Job{
		ID: "0a1b2c3d", First: 4, Last: 1200, Next: 700, Gap: gap,
		Done: replay.Done{Stored: replay.Counts{Batches: 400, Rows: 80_000}, Skipped: 290, Buried: 1, Unreadable: 1},
	}
	var out bytes.Buffer
	show := func(err error) { require.NoError(t, err); out.WriteString("\n") }
	show(printPlan(&out, plan))
	show(printResult(&out, replay.Result{Job: job, Filled: true, Gone: plan.Gone}, false))
	show(printResult(&out, replay.Result{Job: job}, false))
	show(printResult(&out, replay.Result{Job: job}, true))
	for _, p := range []replay.Progress{
		{Planning: true, First: 4, Last: 1200, Next: 700, Missing: replay.Counts{Batches: 90}},
		{Missing: replay.Counts{Batches: 500, Rows: 100_000}, Done: job.Done, RowsPerSec: 2000},
		{Missing: replay.Counts{Batches: 500, Rows: 100_000}, Done: job.Done, RowsPerSec: 2000, Waiting: "live batches go first"},
	} {
		out.WriteString(progressText(p) + "\n")
	}
	file := filepath.Join("testdata", "replay.txt")
	if *update {
		require.NoError(t, os.WriteFile(file, out.Bytes(), 0o600))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), out.String())
}

func TestExitCodesOfReplayTellWhatIsLeft(t *testing.T) {
	t.Parallel()
	gone := []replay.Jump{{From: 1, To: 2}}
	for name, c := range map[string]struct {
		res  replay.Result
		err  error
		want int
	}{
		"done":                {want: 0},
		"interrupted":         {err: context.Canceled, want: 1},
		"left":                {res: replay.Result{Left: 1}, want: 2},
		"gone":                {res: replay.Result{Gone: gone}, want: 2},
		"gone, and allowed":   {res: replay.Result{Gone: gone, Job: replay.Job{Partial: true}}, want: 0},
		"interrupted and all": {res: replay.Result{Left: 1, Gone: gone}, err: context.Canceled, want: 1},
	} {
		got := 0
		if err := verdict(c.res, c.err, "again"); err != nil {
			got = exitCode(err)
		}
		require.Equal(t, c.want, got, name)
	}
}

func TestWithoutATerminalNothingIsReplayedUnasked(t *testing.T) { // go test has none
	t.Parallel()
	con := console{t.Context(), io.Discard, io.Discard}
	require.ErrorContains(t, confirm(con, false, "Really?"), "--yes")
	require.NoError(t, confirm(con, true, "Really?"))
}

func TestOnlyYesIsYes(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	con := console{t.Context(), io.Discard, &out}
	for answer, agreed := range map[string]bool{"y\n": true, "Yes\n": true, " y \n": true, "n\n": false, "\n": false, "": false, "yesterday\n": false} {
		err := ask(con, strings.NewReader(answer), "Really?")
		require.Equal(t, agreed, err == nil, "%q", answer)
		require.True(t, err == nil || errors.Is(err, errNotAgreed))
	}
	require.Contains(t, out.String(), "Really? [y/N] ")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	silent, w := io.Pipe()
	defer func() { _ = w.Close() }()
	require.ErrorIs(t, ask(console{ended, io.Discard, io.Discard}, silent, "Really?"), errNotAgreed)
}

func TestProgressIsOneLineOnATerminalAndSeldomElsewhere(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	l := newProgressLine(&out)
	l.show("one")
	l.show("two")
	l.end()
	require.Equal(t, "one\n", out.String())
	out.Reset()
	l = &progressLine{out: &out, terminal: true}
	l.show("long")
	l.show("so")
	l.end()
	l.end()
	require.Equal(t, "\rlong\rso  \n", out.String())
}

func TestAMomentIsATimeOrHowLongAgo(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Time{
		"2026-01-31T15:04:05Z": time.Date(2026, 1, 31, 15, 4, 5, 0, time.UTC),
		"2026-01-31 15:04":     time.Date(2026, 1, 31, 15, 4, 0, 0, time.Local),
		"2026-01-31 15:04:05":  time.Date(2026, 1, 31, 15, 4, 5, 0, time.Local),
		"2026-01-31":           time.Date(2026, 1, 31, 0, 0, 0, 0, time.Local),
	} {
		var m moment
		require.NoError(t, m.UnmarshalText([]byte(text)))
		require.True(t, want.Equal(m.Time), text)
	}
	var m moment
	require.NoError(t, m.UnmarshalText([]byte("6h")))
	require.WithinDuration(t, time.Now().Add(-6*time.Hour), m.Time, time.Minute)
	require.ErrorContains(t, m.UnmarshalText([]byte("-6h")), "how long ago")
	require.ErrorContains(t, m.UnmarshalText([]byte("yesterday")), "how long ago")
}

func TestReplayWithoutAStreamSaysHowToReachIt(t *testing.T) {
	t.Setenv("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing")
	var out bytes.Buffer
	err := run(t.Context(), []string{"replay", "--data-dir", t.TempDir(), "--from", "1h", "--yes"}, &out, &out)
	require.ErrorContains(t, err, "--nats-url")
	require.Equal(t, 1, exitCode(err))
	require.Equal(t, 2, exitCode(found{service.ErrPartial}))
}
