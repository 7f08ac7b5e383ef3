package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"pganalytics/loadtest/internal/fleet"
	"pganalytics/loadtest/internal/program"
	"pganalytics/pkg/bus"
	"pganalytics/pkg/replay"
	"pganalytics/pkg/service"
)

// drill is the system, its database and its collectors.
type drill struct {
	o          options
	dir        string
	begun      time.Time
	cluster    *cluster
	serve      *program.Process
	bus        *bus.Bus
	collectors *collectors
}

// carryOut goes through the drill and returns its figures.
func carryOut(ctx context.Context, o options) (f figures, err error) {
	d := &drill{o: o, begun: time.Now()}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.setUp(ctx); err != nil {
		return f, err
	}
	lost, cancel := context.WithCancel(ctx) // so that collectors end with an error of the drill
	defer cancel()
	if err := d.enrol(lost); err != nil {
		return f, err
	}
	if err := d.lose(ctx); err != nil {
		return f, err
	}
	if f.replayed, f.skipped, err = d.recover(ctx); err != nil {
		return f, err
	}
	if err := d.flow(ctx); err != nil {
		return f, err
	}
	if err := d.collectors.end(); err != nil {
		return f, err
	}
	if err := d.settle(ctx); err != nil {
		return f, err
	}
	d.say("check every row")
	journal, err := d.collectors.journal.read()
	if err != nil {
		return f, err
	}
	tables, err := d.cluster.tables(ctx)
	if err != nil {
		return f, err
	}
	f.check(journal, tables)
	if len(tables) > 0 && f.lost+f.duplicated == 0 {
		return f, fmt.Errorf("%d batches are stored that nobody was told are taken", len(tables))
	}
	return f, nil
}

func (d *drill) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%5.1f s  %s\n", time.Since(d.begun).Seconds(), fmt.Sprintf(format, args...))
}

// setUp starts the database and the services.
func (d *drill) setUp(ctx context.Context) (err error) {
	d.say("start")
	if d.dir, err = os.MkdirTemp("", "pganalytics-drill-"); err != nil {
		return err
	}
	if d.cluster, err = startCluster(d.o.script); err != nil {
		return err
	}
	families := filepath.Join(d.dir, "families")
	if err := errors.Join(os.Mkdir(families, 0o700), os.WriteFile(filepath.Join(families, "drill.yaml"), []byte(family), 0o600)); err != nil {
		return err
	}
	rewind := "0s"
	if d.o.auto {
		rewind = "1h"
	}
	d.serve, err = program.Start(d.dir, "serve", d.cluster.url, "pganalytics", "serve", "--data-dir", d.data(), "--catalogue-dir", families,
		"--users-listen", "127.0.0.1:0", "--collectors-listen", "127.0.0.1:0",
		"--nats-batches-max-bytes", fmt.Sprint(d.o.maxBytes), "--nats-dead-letters-max-bytes", fmt.Sprint(16<<20),
		"--replay-window", d.o.window.String(), "--trim-interval", "1s", "--auto-rewind", rewind)
	if err != nil {
		return err
	}
	endpoints, err := d.serve.Ready(ctx)
	if err != nil {
		return err
	}
	// Where commands look for it, as it would lie by default.
	text, err := json.Marshal(endpoints)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(d.data(), "endpoints.json"), text, 0o600); err != nil {
		return err
	}
	d.collectors = &collectors{o: d.o, journal: &journal{}, quit: make(chan struct{})}
	if d.collectors.journal.file, err = os.Create(filepath.Join(d.dir, "journal")); err != nil {
		return err
	}
	d.bus, err = d.installation().Bus(ctx, os.Stderr)
	return err
}

func (d *drill) data() string { return filepath.Join(d.dir, "data") }

func (d *drill) installation() *service.Installation {
	return &service.Installation{DataDir: d.data(), Timeout: time.Minute}
}

// enrol has the collectors push.
func (d *drill) enrol(ctx context.Context) error {
	endpoints, err := d.installation().Endpoints()
	if err != nil {
		return err
	}
	senders, err := fleet.Fleet{
		Dir: d.dir, PKI: filepath.Join(d.data(), "pki"), Connections: 1,
		Users: endpoints.Users, Tokens: endpoints.Collectors, Pushes: endpoints.Collectors,
	}.Enrol(ctx, d.cluster.url, d.o.collectors)
	if err != nil {
		return err
	}
	d.say("%d collectors push", len(senders))
	d.collectors.begin(ctx, senders)
	return nil
}

// lose takes a backup and destroys the database some time later. It returns
// when the outage has lasted.
func (d *drill) lose(ctx context.Context) error {
	if err := d.flow(ctx); err != nil {
		return err
	}
	d.say("back up")
	backup := time.Now()
	if err := d.cluster.takeBackup(); err != nil {
		return err
	}
	if err := d.flow(ctx); err != nil {
		return err
	}
	stored, err := d.cluster.stored(ctx)
	if err != nil {
		return err
	}
	if time.Since(backup) > d.o.window {
		return fmt.Errorf("%v from the backup on, so the replay window is over and nothing is proved: give a longer -window", time.Since(backup))
	}
	if err := d.cluster.destroy(); err != nil {
		return err
	}
	d.say("the database is gone, with %d batches", stored)
	d.collectors.pause.Store(0)
	full, end := d.collectors.full.Load(), time.Now().Add(d.o.window)
	err = d.await(ctx, "the stream is full", func() bool { return d.collectors.full.Load() > full && time.Now().After(end) })
	d.collectors.pause.Store(int64(d.o.pause))
	return err
}

// recover restores the backup and replays what it lacks.
func (d *drill) recover(ctx context.Context) (replayed, skipped uint64, err error) {
	status, err := d.bus.Status(ctx)
	if err != nil {
		return 0, 0, err
	}
	d.say("restore; %d batches wait on the stream, %d times it refused one", status.LastSequence-status.AckFloor, d.collectors.full.Load())
	holding := d.bus.Holds()
	tampering, stop := context.WithCancel(ctx)
	defer stop()
	var gone sync.WaitGroup
	if d.o.sabotage == sabotageHold {
		gone.Go(func() { letGo(tampering, holding) })
	}
	if err := d.restore(ctx); err != nil {
		return 0, 0, err
	}
	stored, err := d.cluster.stored(ctx)
	if err != nil {
		return 0, 0, err
	}
	d.say("restored, with %d batches", stored)
	if d.o.sabotage == sabotageHold || d.o.sabotage == sabotageRewind {
		// Nothing keeps what the database lacks.
		err = d.await(ctx, "the stream is trimmed", func() bool {
			s, err := d.bus.Status(ctx)
			return err == nil && s.FirstSequence > status.AckFloor
		})
	} else {
		err = d.await(ctx, "the ingester notices", func() bool {
			holds, err := holding.List(ctx)
			return err == nil && (len(holds) > 0 || d.o.auto)
		})
	}
	stop()
	gone.Wait()
	switch {
	case err != nil:
		return 0, 0, err
	case d.o.auto:
		return d.replayed(ctx)
	case d.o.sabotage != "":
		return d.replay(ctx, "--from-seq", "1", "--allow-partial") // all that is left to do
	}
	return d.replay(ctx)
}

// replay is what an operator does.
func (d *drill) replay(ctx context.Context, flags ...string) (replayed, skipped uint64, err error) {
	d.say("pganalytics replay")
	self, err := os.Executable()
	if err != nil {
		return 0, 0, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(filepath.Dir(self), "pganalytics"), append([]string{"replay", "--data-dir", d.data(),
		"--catalogue-dir", filepath.Join(d.dir, "families"), "--yes", "--output", "json"}, flags...)...)
	cmd.Env = append(os.Environ(), "PGANALYTICS_DATABASE_URL="+d.cluster.url)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return 0, 0, fmt.Errorf("pganalytics replay: %w\n%s", err, out.Bytes())
	}
	var res replay.Result
	if err := json.Unmarshal(out.Bytes(), &res); err != nil {
		return 0, 0, err
	}
	d.say("replayed; sequences %d to %d", res.First, res.Last)
	return res.Done.Stored.Batches, res.Done.Skipped, nil
}

// replayed waits until the ingester has replayed, which is when its hold ends.
func (d *drill) replayed(ctx context.Context) (replayed, skipped uint64, err error) {
	before := time.Now()
	err = d.await(ctx, "the ingester has replayed", func() bool {
		n, err := d.serve.Metric(ctx, "pganalytics_ingester_replayed_batches_total")
		holds, listErr := d.bus.Holds().List(ctx)
		replayed = uint64(n)
		return err == nil && listErr == nil && n > 0 && len(holds) == 0
	})
	d.say("replayed in %v", time.Since(before).Round(time.Millisecond))
	return replayed, 0, err
}

// flow waits until more batches are stored.
func (d *drill) flow(ctx context.Context) error {
	before, err := d.cluster.stored(ctx)
	if err != nil {
		return err
	}
	return d.await(ctx, "batches are stored", func() bool {
		n, err := d.cluster.stored(ctx)
		return err == nil && n >= before+d.o.batches
	})
}

// settle waits until nothing is on its way any more.
func (d *drill) settle(ctx context.Context) error {
	return d.await(ctx, "all is acknowledged", func() bool {
		s, err := d.bus.Status(ctx)
		return err == nil && s.AckFloor == s.LastSequence
	})
}

// patience bounds one step.
const patience = 3 * time.Minute

func (d *drill) await(ctx context.Context, what string, done func() bool) error {
	for deadline := time.Now().Add(patience); !done(); time.Sleep(100 * time.Millisecond) {
		if ctx.Err() != nil {
			return fmt.Errorf("until %s: %w", what, context.Cause(ctx))
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waited in vain until %s\n%s", what, d.serve.Tail())
		}
	}
	return nil
}

func (d *drill) close() error {
	var errs []error
	if d.bus != nil {
		errs = append(errs, d.bus.Close(context.Background()))
	}
	if d.serve != nil {
		errs = append(errs, program.Stop(d.serve))
	}
	if d.cluster != nil {
		errs = append(errs, d.cluster.end())
	}
	if d.collectors != nil && d.collectors.journal.file != nil {
		errs = append(errs, d.collectors.journal.file.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}
