package main

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/bus/natsserver"
	"pganalytics/pkg/health"
	"pganalytics/pkg/service"
)

func facts() health.Facts {
	fullIn, load := health.Span(26*time.Hour+3*time.Minute), health.Span(2*time.Second)
	return health.Facts{
		Serve: &health.Serve{Ready: true},
		Stream: &health.Stream{
			Batches: 181440, Bytes: 5 << 30, MaxBytes: 10 << 30, FirstSequence: 1000, LastSequence: 182439, Window: health.Span(72 * time.Hour),
			Backlog: 12, Lag: health.Span(1400 * time.Millisecond), AckPending: 11, Redelivered: 1, Kept: 80 << 20, Inflow: 57000, FullIn: &fullIn,
			Copies: 3, Holds: []health.Hold{},
		},
		Database:   &health.Database{Version: 170005, SizeBytes: 77 << 30, Ingesters: 2, LastLoad: &load},
		Collectors: &health.Collectors{Registered: 1, Active: 40, Disabled: 2},
	}
}

func TestStatusIsGolden(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	show := func(f health.Facts) {
		require.NoError(t, (&status{f, health.Advise(f)}).print(&out))
		out.WriteString("\n----\n\n")
	}
	show(facts())

	f := facts()
	f.Serve.Ready, f.Serve.Detail = false, "it does not run"
	f.Stream.DeadLetters, f.Collectors.Offline = 3, 7
	f.Stream.Holds = []health.Hold{{Name: health.Gap, From: 1200, To: 9000}}
	show(f)

	f = facts()
	f.Database, f.Collectors, f.DatabaseError = nil, nil, "connection refused"
	show(f)
	show(health.Facts{StreamError: "no route", Database: &health.Database{ReadOnly: true}})
	golden(t, "status.txt", out.Bytes())
}

func TestStreamStatusIsGolden(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	f, ingesters := facts(), 2
	require.NoError(t, printWholeStream(&out, f.Stream, &ingesters))
	out.WriteString("\n----\n\n")
	f.Stream.FullIn, f.Stream.Inflow, f.Stream.Behind, f.Stream.Faults = nil, 0, []string{"nats2"}, "stream BATCHES: max age is 1h0m0s"
	f.Stream.Holds = []health.Hold{
		{Name: "replay-7", From: 5, To: 8, Age: health.Span(time.Hour), By: "pganalytics replay", Reason: "replay"},
		{Name: health.Gap, From: 1200, To: 9000, Age: health.Span(3 * time.Hour), By: "ingester", Reason: "the database is behind the stream"},
	}
	require.NoError(t, printWholeStream(&out, f.Stream, nil))
	out.WriteString("\n----\n\n")
	require.NoError(t, printExported(&out, &service.Exported{First: 5, Last: 99, Messages: 90, Bytes: 12345, Segments: 2, Missing: 5, Late: true}))
	golden(t, "stream.txt", out.Bytes())
}

func TestStatusForScriptsHasTheFactsAndTheAdvice(t *testing.T) {
	t.Parallel()
	f := facts()
	f.Stream.DeadLetters = 3
	out, err := json.Marshal(status{f, health.Advise(f)})
	require.NoError(t, err)
	for _, part := range []string{`"dead_letters":3`, `"window_seconds":259200`, `"full_in_seconds":93780`, `"advice":[{"wrong":"3 batches`, `"ingesters":2`} {
		require.Contains(t, string(out), part)
	}
}

func TestSizesAreShortForPeople(t *testing.T) {
	t.Parallel()
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1 << 20: "1.0 MiB", 3 << 40: "3.0 TiB", 1 << 63: "8.0 EiB"} {
		require.Equal(t, want, size(n))
	}
}

// What is away is said in one line, and the exit status tells how much is known.
func TestCommandsSayInOneLineWhatIsAway(t *testing.T) {
	nowhere := "127.0.0.1:1" // where nobody listens
	t.Setenv("DATABASE_URL", "postgres://nobody@"+nowhere+"/none")
	dir := t.TempDir()
	for _, c := range []struct{ args, want string }{
		{"status --nats-url nats://" + nowhere, "neither NATS nor the database answers"},
		{"stream status --nats-url nats://" + nowhere, "connect to nats"},
		{"stream export --nats-url nats://" + nowhere + " --from 2026-01-01T00:00:00Z " + filepath.Join(dir, "x"), "connect to nats"},
		{"status --data-dir " + dir, "or give --nats-url"},
		{"stream export --from 2026-01-02T00:00:00Z --to 2026-01-01T00:00:00Z x", "is not after"},
		{"stream export --from 2026-01-02T00:00:00Z --segment-bytes 0 x", "is not positive"},
	} {
		var out bytes.Buffer
		err := run(t.Context(), append(strings.Fields(c.args), "--timeout", "1s"), &out, &out)
		require.ErrorContains(t, err, c.want)
		require.NotErrorIs(t, err, errPartial)
		require.NotContains(t, err.Error(), "\n")
		require.Empty(t, out.String())
	}

	nats, err := natsserver.Start(natsserver.Config{StoreDir: t.TempDir(), Listen: true}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	defer nats.Stop()
	in := service.Installation{Timeout: 10 * time.Second}
	in.NATS.URL = nats.URL()
	require.NoError(t, service.MakeStreams(t.Context(), in.NATS, os.Stderr))
	var out bytes.Buffer
	err = run(t.Context(), []string{"status", "--nats-url", nats.URL(), "--timeout", "2s"}, &out, &out)
	require.ErrorIs(t, err, errPartial, "the stream answers, and something is wrong")
	require.Contains(t, out.String(), "FIRST: the database does not answer")
	out.Reset()
	require.NoError(t, run(t.Context(), []string{"stream", "status", "--nats-url", nats.URL(), "--timeout", "2s", "--output", "json"}, &out, &out))
	require.Contains(t, out.String(), `"ingesters":null`)
}
