// Package e2e runs the real programs as processes of their own, on a real
// TimescaleDB, and breaks them.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/collector"
	"pganalytics/pkg/collector/spool"
	"pganalytics/pkg/collector/uplink"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/internal/testlog"
	"pganalytics/pkg/internal/testnats"
	"pganalytics/pkg/internal/testnet"
	"pganalytics/pkg/internal/testprograms"
	"pganalytics/pkg/service"
)

// programs is where TestMain builds them.
var programs string

func TestMain(m *testing.M) {
	if testnats.Member() {
		return
	}
	os.Exit(testprograms.Run(m, &programs))
}

// system is a `serve` and a collector that watches serve's own database. Each
// can be killed and started again.
type system struct {
	t         *testing.T
	dir       string
	db        string
	flags     []string // more flags of serve
	serve     *process
	collector *process
	endpoints service.Endpoints

	users, collectors string // addresses of the listeners, kept over restarts
}

type process struct {
	cmd *exec.Cmd
	log *testlog.Buffer
}

// start makes a system whose parts do not run yet, but for the database.
func newSystem(t *testing.T, databaseURL string, flags ...string) *system {
	t.Helper()
	if databaseURL == "" {
		databaseURL = testdb.Empty(t)
	}
	s := &system{t: t, dir: t.TempDir(), db: databaseURL, flags: flags}
	t.Cleanup(func() {
		for _, p := range []*process{s.collector, s.serve} {
			if p != nil {
				_ = p.cmd.Process.Kill()
				_ = p.cmd.Wait()
			}
		}
		if t.Failed() {
			for _, p := range []*process{s.serve, s.collector} {
				if p != nil {
					t.Logf("%s:\n%s", p.cmd.Args[0], p.log.Tail(60))
				}
			}
		}
	})
	return s
}

func (s *system) data() string  { return filepath.Join(s.dir, "data") }
func (s *system) state() string { return filepath.Join(s.dir, "state") }

func (s *system) run(program string, args ...string) *process {
	s.t.Helper()
	p := &process{cmd: exec.Command(filepath.Join(programs, program), args...), log: &testlog.Buffer{}}
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.Env = append(os.Environ(), "PGANALYTICS_DATABASE_URL="+s.db, "WATCHED="+s.db)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(s.t, p.cmd.Start())
	return p
}

// startServe starts serve, on the same ports after the first time, and waits
// until it is ready.
func (s *system) startServe() {
	s.t.Helper()
	if s.users == "" {
		s.users, s.collectors = testnet.FreeAddress(s.t), testnet.FreeAddress(s.t)
	}
	install := service.Installation{DataDir: s.data()}
	_ = os.Remove(filepath.Join(s.data(), "endpoints.json"))
	s.serve = s.run("pganalytics", append([]string{"serve", "--data-dir", s.data(), "--hosts", "127.0.0.1",
		"--users-listen", s.users, "--collectors-listen", s.collectors, "--admin-listen", "127.0.0.1:0",
		"--nats-batches-max-bytes", "134217728", "--nats-dead-letters-max-bytes", "33554432",
		"--nats-ack-wait", "2s", "--extend-every", "500ms", "--fetch-wait", "50ms"}, s.flags...)...)
	s.eventually("serve is ready", func() bool {
		var err error
		s.endpoints, err = install.Endpoints()
		return err == nil
	})
}

// enrol enrols a collector with the operators' commands.
func (s *system) enrol(name, state string) {
	s.t.Helper()
	token := filepath.Join(s.dir, "token-"+name)
	var answer struct {
		URL           string `json:"url"`
		CAFingerprint string `json:"ca_fingerprint"`
	}
	out := s.command("pganalytics", "collectors", "enroll-token", "--data-dir", s.data(), "--name", name, "--token-file", token, "--output", "json")
	require.NoError(s.t, json.Unmarshal(out, &answer))
	s.command("collector", "enroll", "--url", answer.URL, "--ca-fingerprint", answer.CAFingerprint,
		"--token-file", token, "--name", name, "--state-dir", state)
}

// command runs a program to its end and returns what it printed.
func (s *system) command(program string, args ...string) []byte {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(programs, program), args...)
	cmd.Env = append(os.Environ(), "PGANALYTICS_DATABASE_URL="+s.db)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(s.t, err, "%s %v: %s", program, args, &stderr)
	return out
}

// startCollector starts the collector with short intervals.
func (s *system) startCollector() {
	s.t.Helper()
	config := filepath.Join(s.dir, "collector.yaml")
	require.NoError(s.t, os.WriteFile(config, []byte(`servers:
  - name: watched
    conninfo_env: WATCHED
families:
  pg_stat_database: {interval: 1s}
  pg_stat_activity_summary: {interval: 1s}
  pg_stat_wal: {interval: 1s}
  pg_locks: {interval: 1s}
`), 0o600))
	s.collector = s.run("collector", "run", "--state-dir", s.state(), "--config", config, "--admin-listen", "127.0.0.1:0")
}

func (p *process) kill(t *testing.T) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Kill())
	_ = p.cmd.Wait()
}

// stop asks the process to end and checks that it did so in good order.
func (p *process) stop(t *testing.T) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, p.cmd.Wait(), p.log.Tail(20))
}

func (s *system) eventually(what string, ok func() bool) {
	s.t.Helper()
	require.Eventually(s.t, ok, time.Minute, 50*time.Millisecond, what)
}

func (s *system) number(query string, args ...any) int {
	s.t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, s.db)
	require.NoError(s.t, err)
	defer func() { _ = conn.Close(ctx) }()
	var n int
	require.NoError(s.t, conn.QueryRow(ctx, query, args...).Scan(&n))
	return n
}

// accepted returns the batches that the collector was answered 202 for.
func (s *system) accepted() map[uuid.UUID]spool.Acceptance {
	s.t.Helper()
	list, err := spool.ReadAccepted(collector.SpoolDir(s.state()))
	require.NoError(s.t, err)
	byID := map[uuid.UUID]spool.Acceptance{}
	for _, a := range list {
		byID[a.BatchID] = a
	}
	return byID
}

// everythingStoredOnce waits until the ledger holds every accepted batch, then
// compares tables and ledger row by row count, and looks for gaps in the
// collector's numbers.
func (s *system) everythingStoredOnce() {
	s.t.Helper()
	id, err := uplink.LoadIdentity(s.state())
	require.NoError(s.t, err)
	accepted := s.accepted()
	require.NotEmpty(s.t, accepted)
	ids := make([]uuid.UUID, 0, len(accepted))
	for batch := range accepted {
		ids = append(ids, batch)
	}
	s.eventually("the ledger holds every accepted batch", func() bool {
		return s.number("select count(*) from ingest.batch where collector_id = $1 and batch_id = any($2)", id.CollectorID, ids) == len(ids)
	})
	for _, family := range []string{"pg_instance", "pg_stat_database", "pg_stat_activity_summary", "pg_stat_wal", "pg_locks"} {
		claimed := s.number(`select coalesce(sum((x->>'rows')::bigint), 0) from ingest.batch, jsonb_array_elements(sections) x where x->>'family' = $1`, family)
		require.Equal(s.t, claimed, s.number("select count(*) from metrics."+family), family)
		require.Positive(s.t, claimed, family)
	}
	require.Zero(s.t, s.number(`select count(*) from (
select sequence - lag(sequence) over (partition by epoch order by sequence) as step from ingest.batch) x where step <> 1`),
		"a number of the collector is missing")
	require.Contains(s.t, string(s.command("pganalytics", "stream", "status", "--data-dir", s.data(), "--output", "json")), `"dead_letters":0`)
}
