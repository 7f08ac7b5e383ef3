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
	"time"

	"pganalytics/pkg/replay"
)

// benchReplay stores a backlog as live batches, by pganalytics replay into an
// empty database, and by that once more into the same one, where all is stored
// already.
func benchReplay(ctx context.Context, o options) (err error) {
	b, err := newWorkbench()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stop()) }()
	// So many that the start of a process, a tenth of a second, hardly counts.
	sc := scenario{"1000 rows a batch", 4_000_000, 1000, 2, 1}
	sc.rows = max(sc.batch, int(float64(sc.rows)*o.scale))
	if err := b.prepare(ctx, sc); err != nil {
		return err
	}
	var live, stores, speed, whole, skip []float64
	for range o.runs {
		d, err := b.drainNew(ctx, sc)
		if err != nil {
			return err
		}
		stored, skipped, err := b.replays(ctx, sc)
		if err != nil {
			return err
		}
		rate := float64(sc.rows) / stored.storing
		live, stores, speed = append(live, d.rate()), append(stores, rate), append(speed, rate/d.rate())
		whole = append(whole, float64(sc.rows)/stored.whole/d.rate())
		skip = append(skip, skipped.whole/stored.whole)
	}
	fmt.Printf("\n%s, %d rows, medians of %d\n", sc.name, sc.rows, o.runs)
	fmt.Printf("  live     %s rows/s\n", spread("%.0f", live))
	fmt.Printf("  replay   %s rows/s, %s of live; %s with start and plan\n", spread("%.0f", stores), spread("%.2f", speed), spread("%.2f", whole))
	fmt.Printf("  skipping %s of the time of storing, the whole command\n", spread("%.3f", skip))
	g := gates{}
	g.check(median(speed) >= 1, "a replay has %.2f of the speed of live batches", median(speed))
	g.check(median(skip) <= skipGate, "skipping takes %.3f of storing, above %.2f", median(skip), skipGate)
	return g.verdict(o)
}

// replayTime is what a replay took, in seconds.
type replayTime struct{ whole, storing float64 }

// replays runs the command twice on a database of its own.
func (b *workbench) replays(ctx context.Context, sc scenario) (stored, skipped replayTime, err error) {
	db, err := newDatabase(ctx)
	if err != nil {
		return stored, skipped, err
	}
	defer func() { err = errors.Join(err, db.drop()) }()
	l := b.backlogs[[2]int{sc.rows, sc.batch}]
	all, none := uint64(sc.rows/sc.batch), uint64(0)
	if stored, err = b.replay(ctx, l, db, all); err != nil {
		return stored, skipped, err
	}
	if skipped, err = b.replay(ctx, l, db, none); err != nil {
		return stored, skipped, err
	}
	return stored, skipped, db.checkCount(ctx, l.shape.family, l.rows())
}

// replay runs the command, which must store so many batches.
func (b *workbench) replay(ctx context.Context, l *backlog, db *database, want uint64) (t replayTime, err error) {
	self, err := os.Executable()
	if err != nil {
		return t, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(filepath.Dir(self), "pganalytics"), append([]string{
		"replay", "--from-seq", "1", "--yes", "--output", "json", "--catalogue-dir", b.families,
	}, l.flags()...)...)
	cmd.Env = append(os.Environ(), "PGANALYTICS_DATABASE_URL="+db.url())
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	begin := time.Now()
	if err := cmd.Run(); err != nil {
		return t, fmt.Errorf("pganalytics replay: %w\n%s", err, log.Bytes())
	}
	t.whole = time.Since(begin).Seconds()
	var res replay.Result
	if err := json.Unmarshal(out.Bytes(), &res); err != nil {
		return t, err
	}
	if res.Done.Stored.Batches != want {
		return t, fmt.Errorf("%d batches were replayed, not %d", res.Done.Stored.Batches, want)
	}
	t.storing = res.Seconds
	return t, nil
}
