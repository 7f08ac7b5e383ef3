package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/term"

	"pganalytics/pkg/collector"
	"pganalytics/pkg/service"
)

type demoCmd struct {
	Seconds  int                   `env:"DEMO_SECONDS" help:"End by itself after so many seconds, with one line of JSON on standard output. Defaults to running until Ctrl-C."`
	Database service.DatabaseFlags `embed:"" prefix:"database-"`
}

// demo is a running demonstration: `serve` and a collector as processes of
// their own, on a database of their own.
type demo struct {
	con       console
	dir       string // deleted at the end
	db        demoDatabase
	install   service.Installation
	endpoints service.Endpoints
	serve     *child
	collector *child
}

// How long a step of the demo may take on a slow machine.
const (
	demoStart = 2 * time.Minute
	demoDrain = 30 * time.Second
)

// Run shows the system at work and ends with an error unless everything that
// was accepted is stored once.
func (c *demoCmd) Run(con console) (err error) {
	url, err := c.Database.URL()
	if err != nil {
		return fmt.Errorf("%w; make demo starts a private one", err)
	}
	d := &demo{con: con}
	// What is to be cleaned up is so also after Ctrl-C.
	after := context.WithoutCancel(con.ctx)
	if d.dir, err = os.MkdirTemp("", "pganalytics-demo-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(d.dir)) }()
	if d.db, err = createDemoDatabase(con.ctx, url, d.dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.db.drop(after)) }()
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := d.start(); err != nil {
		return err
	}
	return d.watch(c.Seconds)
}

// start brings up `serve`, enrols a collector as an operator would, and runs
// it.
func (d *demo) start() error {
	ctx, cancel := context.WithTimeout(d.con.ctx, demoStart)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	data := filepath.Join(d.dir, "serve")
	d.install = service.Installation{DataDir: data, Timeout: demoStart}
	d.install.Database = service.DatabaseFlags{URLFile: d.db.urlFile, MaxConns: 4}
	d.con.say("starting serve: gateway, ingester, authsvc and the stream in one process")
	d.serve, err = startChild(d.dir, self, "serve", "--data-dir", data, "--database-url-file", d.db.urlFile,
		"--users-listen", "127.0.0.1:0", "--collectors-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0",
		"--nats-batches-max-bytes", "1073741824", "--nats-dead-letters-max-bytes", "134217728")
	if err != nil {
		return err
	}
	if d.endpoints, err = d.ready(ctx); err != nil {
		return err
	}
	return d.enrol(ctx, self)
}

// ready waits until serve has written its addresses, which it does last.
func (d *demo) ready(ctx context.Context) (service.Endpoints, error) {
	for {
		if e, err := d.install.Endpoints(); err == nil {
			return e, nil
		}
		select {
		case <-ctx.Done():
			return service.Endpoints{}, fmt.Errorf("serve is not ready: %w\n%s", ctx.Err(), d.serve.tail())
		case <-d.serve.done:
			return service.Endpoints{}, fmt.Errorf("serve ended: %w\n%s", d.serve.err, d.serve.tail())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// enrol runs the same three commands that README shows.
func (d *demo) enrol(ctx context.Context, self string) error {
	token := filepath.Join(d.dir, "token")
	made, err := output(ctx, self, "collectors", "enroll-token", "--data-dir", d.install.DataDir,
		"--database-url-file", d.db.urlFile, "--name", "demo", "--token-file", token, "--output", "json")
	if err != nil {
		return err
	}
	answer, err := parseEnrollToken(made)
	if err != nil {
		return err
	}
	program, state := filepath.Join(filepath.Dir(self), "collector"), d.stateDir()
	d.con.say("enrolling a collector: its own key, a certificate for it, mTLS from then on")
	if _, err := output(ctx, program, "enroll", "--url", answer.URL, "--ca-fingerprint", answer.CAFingerprint,
		"--token-file", token, "--name", "demo", "--state-dir", state); err != nil {
		return err
	}
	config := filepath.Join(d.dir, "collector.yaml")
	if err := os.WriteFile(config, []byte(collectorConfig(d.db.urlFile)), 0o600); err != nil {
		return err
	}
	d.collector, err = startChild(d.dir, program, "run", "--state-dir", state, "--config", config, "--admin-listen", "127.0.0.1:0")
	return err
}

func (d *demo) stateDir() string { return filepath.Join(d.dir, "collector") }

// collectorConfig samples often, for a demo is short.
func collectorConfig(conninfoFile string) string {
	return fmt.Sprintf(`servers:
  - name: demo
    conninfo_file: %s
families:
  pg_instance: {interval: 2s}
  pg_stat_database: {interval: 2s}
  pg_stat_activity_summary: {interval: 2s}
  pg_stat_statements: {interval: 5s}
  pg_stat_statements_text: {interval: 5s}
  pg_stat_user_tables: {interval: 5s}
  pg_stat_bgwriter: {interval: 5s}
  pg_stat_checkpointer: {interval: 5s}
  pg_stat_wal: {interval: 2s}
  pg_locks: {interval: 2s}
  pg_settings: {interval: 60s}
`, conninfoFile)
}

// watch shows the system once a second until the time is over, Ctrl-C, or a
// process fails; then it drains and reports.
func (d *demo) watch(seconds int) error {
	w, closeWatch, err := d.watcher()
	if err != nil {
		return err
	}
	defer closeWatch()
	ctx, cancel := d.con.ctx, context.CancelFunc(func() {})
	if seconds > 0 {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
	}
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return workload(ctx, d.db.url) })
	g.Go(func() error { return d.serve.watch(ctx) })
	g.Go(func() error { return d.collector.watch(ctx) })
	g.Go(func() error { return d.show(ctx, w, seconds > 0) })
	if err := g.Wait(); err != nil {
		return err
	}
	return d.finish(w)
}

func (d *demo) watcher() (*demoWatch, func(), error) {
	ctx := context.WithoutCancel(d.con.ctx)
	b, err := d.install.Bus(ctx, d.con.stderr)
	if err != nil {
		return nil, nil, err
	}
	st, err := d.install.Store(ctx, d.con.stderr)
	if err != nil {
		return nil, nil, errors.Join(err, b.Close(ctx))
	}
	w := &demoWatch{
		store: st, bus: b, spoolDir: collector.SpoolDir(d.stateDir()),
		out: d.con.stderr, terminal: term.IsTerminal(int(os.Stderr.Fd())),
	}
	return w, func() { st.Close(); _ = b.Close(ctx) }, nil
}

func (d *demo) show(ctx context.Context, w *demoWatch, ends bool) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	hinted := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		l, err := w.look(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		w.show(l)
		if !hinted && l.Families >= 8 {
			hinted, w.shown = true, false
			if err := d.hint(ctx, ends); err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
}

// finish stops the collector, waits until the rest is stored, and reports.
func (d *demo) finish(w *demoWatch) error {
	d.con.say("draining: the collector sends what is in its spool, the ingester stores what is on the stream")
	if err := d.collector.stop(); err != nil {
		return fmt.Errorf("stop the collector: %w\n%s", err, d.collector.tail())
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.con.ctx), demoDrain)
	defer cancel()
	id, err := collectorID(d.stateDir())
	if err != nil {
		return err
	}
	report, err := w.drained(ctx, id)
	if err != nil {
		return err
	}
	if err := d.serve.stop(); err != nil {
		return fmt.Errorf("stop serve: %w\n%s", err, d.serve.tail())
	}
	return errors.Join(report.print(d.con.stdout), report.err())
}

// stop ends what still runs after a failure.
func (d *demo) stop() error {
	var errs []error
	for _, c := range []*child{d.collector, d.serve} {
		if c != nil {
			errs = append(errs, c.stop())
		}
	}
	return errors.Join(errs...)
}

func (con console) say(text string) { fmt.Fprintln(con.stderr, text) }

// output runs a command to its end and returns what it printed; its standard
// error is part of the error.
func output(ctx context.Context, program string, args ...string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, program, args...).Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil, fmt.Errorf("%s %s: %w\n%s", filepath.Base(program), args[0], err, exit.Stderr)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", filepath.Base(program), args[0], err)
	}
	return out, nil
}
