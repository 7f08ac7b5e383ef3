package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/bus"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/internal/testnats"
)

// shell runs commands on a stream and a database.
type shell struct {
	t    *testing.T
	nats *testnats.Server
	db   string
	bus  *bus.Bus
}

func newShell(t *testing.T) *shell {
	t.Helper()
	o := &shell{t: t, nats: testnats.Start(t), db: testdb.New(t)}
	var err error
	o.bus, err = bus.Connect(t.Context(), bus.Config{URL: o.nats.URL(), BatchesMaxBytes: 64 << 20, DeadLettersMaxBytes: 16 << 20},
		slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(t, err)
	t.Cleanup(func() { _ = o.bus.Close(context.Background()) })
	require.NoError(t, o.bus.EnsureStreams(t.Context()))
	return o
}

// run runs a command and returns what it printed, and its exit status.
func (o *shell) run(args ...string) (stdout, stderr string, status int) {
	o.t.Helper()
	cmd := exec.CommandContext(o.t.Context(), filepath.Join(programs, "pganalytics"), append(args, "--nats-url", o.nats.URL(), "--timeout", "10s")...)
	cmd.Env = append(os.Environ(), "PGANALYTICS_DATABASE_URL="+o.db)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		require.NoError(o.t, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// done runs a command that must end with the status.
func (o *shell) done(status int, args ...string) string {
	o.t.Helper()
	out, errs, got := o.run(args...)
	require.Equal(o.t, status, got, "%v: %s%s", args, out, errs)
	return out
}

// bury lays a batch without rows into the dead letters.
func (o *shell) bury() *batch.Batch {
	o.t.Helper()
	b := &batch.Batch{CollectorID: uuid.New(), ID: uuid.Must(uuid.NewV7()), SentAt: time.Now().UTC().Truncate(time.Microsecond)}
	b.Seal()
	payload, err := b.Marshal()
	require.NoError(o.t, err)
	require.NoError(o.t, o.bus.DeadLetters().Bury(o.t.Context(), batch.Letter{
		CollectorID: b.CollectorID, BatchID: b.ID, Digest: b.Digest, Reason: "unresolved", Payload: payload,
	}))
	return b
}

func (o *shell) letters() uint64 {
	o.t.Helper()
	n, err := o.bus.DeadLetters().Count(o.t.Context())
	require.NoError(o.t, err)
	return n
}

func TestDeadLettersAreListedShownAndGivenUp(t *testing.T) {
	t.Parallel()
	o := newShell(t)
	b := o.bury()
	require.NoError(t, o.bus.DeadLetters().Bury(t.Context(), batch.Letter{Reason: "undecodable", Payload: []byte("x")}))
	var list struct {
		Letters []struct {
			ID      string    `json:"id"`
			BatchID uuid.UUID `json:"batch_id"`
		} `json:"letters"`
	}
	out := o.done(0, "deadletters", "list", "--output", "json", "--collector", b.CollectorID.String())
	require.NoError(t, json.Unmarshal([]byte(out), &list))
	require.Len(t, list.Letters, 1)
	require.Equal(t, b.ID, list.Letters[0].BatchID)
	id := list.Letters[0].ID
	require.Contains(t, o.done(0, "deadletters", "show", id), b.ID.String())
	dir := t.TempDir()
	o.done(0, "deadletters", "export", dir)
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, files, 4)

	o.done(1, "deadletters", "discard", "--reason", "test", "--yes")                                       // of which letters?
	o.done(1, "deadletters", "discard", "--reason", "test", "--yes", "--all", "--buried-as", "data_error") // all, or some?
	o.done(1, "deadletters", "discard", id, "--reason", "test")                                            // there is no terminal to ask at
	require.EqualValues(t, 2, o.letters())
	o.done(2, "deadletters", "discard", "--all", "--reason", "test", "--yes") // one has no key
	require.EqualValues(t, 1, o.letters())
	require.Contains(t, o.done(0, "batch", "show", b.CollectorID.String(), b.ID.String()), ": test, digest")
	o.done(0, "deadletters", "discard", "--all", "--reason", "test", "--undecodable", "--yes")
	require.Zero(t, o.letters())
	o.done(2, "batch", "show", uuid.NewString(), uuid.NewString()) // it is nowhere
}

func TestLettersThatStayAreTold(t *testing.T) {
	t.Parallel()
	o := newShell(t)
	o.bury()
	require.Contains(t, o.done(2, "deadletters", "retry", "--all", "--wait", "1ms"), "waiting") // no ingester is there
	require.EqualValues(t, 1, o.letters())
}

func TestACommandSaysInOneLineWhichNeighbourIsAway(t *testing.T) {
	t.Parallel()
	o := newShell(t)
	o.bury()
	o.db = "postgres://nobody@127.0.0.1:1/none"
	some := uuid.NewString()
	needDatabase := [][]string{
		{"deadletters", "retry", "--all"}, {"deadletters", "discard", "--all", "--reason", "test", "--yes"},
		{"batch", "show", some, some}, {"batch", "remove", some, some, "--yes"},
	}
	needStream := [][]string{{"deadletters", "list"}, {"deadletters", "show", "0123456789abcdef"}, {"deadletters", "export", t.TempDir()}}
	check := func(neighbour string, commands ...[]string) {
		for _, args := range commands {
			out, errs, status := o.run(args...)
			require.Equal(t, 1, status, args)
			require.Empty(t, out, args)
			require.Contains(t, errs, neighbour, args)
			require.Equal(t, 1, strings.Count(errs, "\n"), "%v: %s", args, errs)
		}
	}
	check("database", needDatabase...)
	require.EqualValues(t, 1, o.letters())
	o.nats.Stop()
	check("nats", append(needDatabase[:1:1], needStream...)...)
}
