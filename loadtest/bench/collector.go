package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"pganalytics/loadtest/internal/program"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/collector"
	"pganalytics/pkg/service"
)

// What the collector is measured with.
const (
	watchedServers  = 10  // entries of its configuration, each with a database of its own
	watchedTables   = 200 // of a database
	watchedQueries  = 200 // statements of a database that pg_stat_statements knows
	collectorWarmUp = 40 * time.Second
	collectorTime   = 2 * time.Minute
	collectorMiB    = 40 // at most
	collectorRole   = "pganalytics_bench_collector"
)

// benchCollector runs a collector with ten servers in the standard preset and
// measures what it holds, and what its sessions cost on the server. All ten
// are databases of one server, so what is read of a server as a whole is read
// ten times from it.
func benchCollector(ctx context.Context, o options) (err error) {
	b := &collectorBench{}
	defer func() { err = errors.Join(err, b.stop()) }()
	if err := b.prepare(ctx); err != nil {
		return err
	}
	if err := b.start(ctx); err != nil {
		return err
	}
	if err := pause(ctx, time.Duration(float64(collectorWarmUp)*o.scale)); err != nil {
		return err
	}
	length := time.Duration(float64(collectorTime) * o.scale)
	before, err := b.read(ctx)
	if err != nil {
		return err
	}
	backends, err := b.follow(ctx, length)
	if err != nil {
		return err
	}
	after, err := b.read(ctx)
	if err != nil {
		return err
	}
	minutes, pid := length.Minutes(), b.collector.Process.Pid
	resident, err := memory(pid, residentNow)
	peak, peakErr := memory(pid, residentPeak)
	if err = errors.Join(err, peakErr); err != nil {
		return err
	}
	fmt.Printf("\n%d servers, %d tables and %d statements each, standard preset, %v\n", watchedServers, watchedTables, watchedQueries, length)
	fmt.Printf("  collector: %d MiB resident, %d MiB at most; %.0f ms of CPU a minute\n",
		resident>>20, peak>>20, (after.own-before.own).Seconds()*1000/minutes)
	each := func(v float64) float64 { return v / minutes / watchedServers }
	fmt.Printf("  a server, per minute: %.1f queries, %.0f ms of CPU of its sessions, %.0f ms of execution; %.0f blocks found in shared buffers, %.1f read\n",
		each(after.calls-before.calls), each(backends.Seconds()*1000), each(after.millis-before.millis), each(after.hit-before.hit), each(after.read-before.read))
	var g gates
	g.check(peak <= collectorMiB<<20, "collector of %d MiB, above %d", peak>>20, collectorMiB)
	return g.verdict(o)
}

type collectorBench struct {
	dir              string
	store            *database
	databases        []string
	serve, collector *exec.Cmd
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// prepare makes the role and the databases.
func (b *collectorBench) prepare(ctx context.Context) (err error) {
	if b.dir, err = os.MkdirTemp("", "pganalytics-bench-"); err != nil {
		return err
	}
	if b.store, err = newDatabase(ctx); err != nil {
		return err
	}
	if _, err := b.store.pool.Exec(ctx, "create extension if not exists pg_stat_statements"); err != nil {
		return err
	}
	cat, err := catalogue.Default()
	if err != nil {
		return err
	}
	setup, err := collector.SetupSQL(cat, collectorRole)
	if err != nil {
		return err
	}
	setup = strings.Replace(setup, `\set ON_ERROR_STOP on`, "", 1)
	for i := range watchedServers {
		name := fmt.Sprintf("%s_%d", b.store.name, i)
		if err := b.store.exec(ctx, "create database "+name); err != nil {
			return err
		}
		b.databases = append(b.databases, name)
		var work strings.Builder
		work.WriteString("set pg_stat_statements.track = none;") // it has room for 5,000
		for t := range watchedTables {
			fmt.Fprintf(&work, "create table t%d (id integer primary key, v text); insert into t%d select g, g::text from generate_series(1, 100) g;", t, t)
		}
		work.WriteString("set pg_stat_statements.track = top;")
		for q := range watchedQueries {
			fmt.Fprintf(&work, "select count(*) as c%d from t%d where id > %d;", q, q%watchedTables, q)
		}
		if err := b.inDatabase(ctx, name, setup+work.String()); err != nil {
			return err
		}
	}
	return b.store.exec(ctx, "alter role "+collectorRole+" password 'bench' connection limit -1")
}

// inDatabase runs statements, one after the other as psql does.
func (b *collectorBench) inDatabase(ctx context.Context, name, script string) error {
	cfg, err := pgx.ParseConfig(b.store.server)
	if err != nil {
		return err
	}
	cfg.Database = name
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.PgConn().Exec(ctx, script).ReadAll()
	return err
}

// start starts serve and a collector that pushes to it.
func (b *collectorBench) start(ctx context.Context) error {
	data, state, token := filepath.Join(b.dir, "data"), filepath.Join(b.dir, "state"), filepath.Join(b.dir, "token")
	var err error
	if b.serve, err = b.program("pganalytics", "serve", "--data-dir", data, "--hosts", "127.0.0.1",
		"--users-listen", "127.0.0.1:0", "--collectors-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--log-level", "warn"); err != nil {
		return err
	}
	install := service.Installation{DataDir: data}
	for deadline := time.Now().Add(time.Minute); ; {
		if _, err = install.Endpoints(); err == nil {
			break
		}
		if time.Now().After(deadline) {
			return err
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	out, err := b.command(ctx, "pganalytics", "collectors", "enroll-token", "--data-dir", data, "--name", "bench", "--token-file", token, "--output", "json").Output()
	if err != nil {
		return fmt.Errorf("make a token: %w", err)
	}
	var answer struct {
		URL           string `json:"url"`
		CAFingerprint string `json:"ca_fingerprint"`
	}
	if err := json.Unmarshal(out, &answer); err != nil {
		return err
	}
	if err := b.command(ctx, "collector", "enroll", "--url", answer.URL, "--ca-fingerprint", answer.CAFingerprint,
		"--token-file", token, "--name", "bench", "--state-dir", state).Run(); err != nil {
		return fmt.Errorf("enrol: %w", err)
	}
	config := filepath.Join(b.dir, "collector.yaml")
	if err := os.WriteFile(config, []byte(b.config()), 0o600); err != nil {
		return err
	}
	admin, err := program.FreeAddress()
	if err != nil {
		return err
	}
	b.collector, err = b.program("collector", "run", "--config", config, "--state-dir", state, "--admin-listen", admin, "--log-level", "warn")
	return err
}

func (b *collectorBench) config() string {
	c := b.store.pool.Config().ConnConfig
	var text strings.Builder
	text.WriteString("servers:\n")
	for i, name := range b.databases {
		fmt.Fprintf(&text, "  - {name: s%d, conninfo_env: BENCH_%d, databases: {include: [%s]}}\n", i, i, name)
		_ = os.Setenv(fmt.Sprintf("BENCH_%d", i), fmt.Sprintf("host='%s' port=%d user=%s password=bench dbname=%s sslmode=disable", c.Host, c.Port, collectorRole, name))
	}
	return text.String()
}

func (b *collectorBench) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	self, _ := os.Executable() // the programs lie beside it; without it they are not found
	cmd := exec.CommandContext(ctx, filepath.Join(filepath.Dir(self), name), args...)
	cmd.Env = append(os.Environ(), "PGANALYTICS_DATABASE_URL="+b.store.url())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	return cmd
}

func (b *collectorBench) program(name string, args ...string) (*exec.Cmd, error) {
	cmd := b.command(context.Background(), name, args...)
	cmd.Stderr = os.Stderr
	return cmd, cmd.Start()
}

// cost is what was used so far.
type cost struct {
	own                      time.Duration // CPU of the collector
	calls, millis, hit, read float64       // of its statements on the server
}

func (b *collectorBench) read(ctx context.Context) (c cost, err error) {
	if c.own, err = cpuTime(b.collector.Process.Pid); err != nil {
		return c, err
	}
	err = b.store.pool.QueryRow(ctx, `
		select coalesce(sum(calls), 0), coalesce(sum(total_exec_time), 0), coalesce(sum(shared_blks_hit), 0), coalesce(sum(shared_blks_read), 0)
		  from pg_stat_statements s join pg_roles r on r.oid = s.userid where r.rolname = $1`, collectorRole).Scan(&c.calls, &c.millis, &c.hit, &c.read)
	return c, err
}

// follow adds up the CPU time of the collector's sessions on the server. Those
// that come and go are seen as they were at most a twentieth of a second before
// their end.
func (b *collectorBench) follow(ctx context.Context, length time.Duration) (sum time.Duration, err error) {
	first, last := map[int]time.Duration{}, map[int]time.Duration{}
	begun := false
	for end := time.Now().Add(length); time.Now().Before(end); begun = true {
		rows, err := b.store.pool.Query(ctx, "select pid from pg_stat_get_activity(null) join pg_roles r on r.oid = usesysid where r.rolname = $1", collectorRole)
		if err != nil {
			return 0, err
		}
		pids, err := pgx.CollectRows(rows, pgx.RowTo[int])
		if err != nil {
			return 0, err
		}
		for _, pid := range pids {
			used, err := cpuTime(pid)
			if err != nil {
				continue // it has ended meanwhile
			}
			if _, known := last[pid]; !known && !begun {
				first[pid] = used
			}
			last[pid] = used
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return 0, err
		}
	}
	for pid, used := range last {
		sum += used - first[pid]
	}
	return sum, nil
}

func (b *collectorBench) stop() (err error) {
	for _, cmd := range []*exec.Cmd{b.collector, b.serve} {
		if cmd != nil && cmd.Process != nil {
			err = errors.Join(err, cmd.Process.Signal(syscall.SIGTERM), cmd.Wait())
		}
	}
	if b.store == nil {
		return errors.Join(err, os.RemoveAll(b.dir))
	}
	ctx := context.Background()
	for _, name := range b.databases {
		err = errors.Join(err, b.store.exec(ctx, "drop database "+name+" with (force)"))
	}
	err = errors.Join(err, b.store.exec(ctx, "drop role if exists "+collectorRole))
	return errors.Join(err, b.store.drop(), os.RemoveAll(b.dir))
}
