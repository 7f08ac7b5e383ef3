package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"pganalytics/pkg/bus/natsserver"
)

// rowDisk is what a row takes in table, index and log of the database, in
// bytes, rounded up.
const rowDisk = 300

// workbench has what all modes but line and fresh work with: a stream of its own,
// and backlogs on it.
type workbench struct {
	dir      string
	families string
	stream   *stream
	backlogs map[[2]int]*backlog // by rows and rows per batch
}

func newWorkbench() (b *workbench, err error) {
	b = &workbench{backlogs: map[[2]int]*backlog{}}
	defer func() {
		if err != nil {
			b, err = nil, errors.Join(err, b.stop())
		}
	}()
	if b.dir, err = os.MkdirTemp("", "pganalytics-bench-"); err != nil {
		return b, err
	}
	if b.families, err = writeFamilies(b.dir); err != nil {
		return b, err
	}
	b.stream, err = startStream(b.dir)
	return b, err
}

func (b *workbench) stop() error {
	for _, l := range b.backlogs {
		_ = l.bus.Close(context.Background()) // nothing is under way, and the server goes too
	}
	if b.stream != nil {
		b.stream.stop()
	}
	return os.RemoveAll(b.dir)
}

// prepare fills the scenario's stream unless an earlier one has. It refuses
// when the disk has no room for it and the rows.
func (b *workbench) prepare(ctx context.Context, sc scenario) error {
	key := [2]int{sc.rows, sc.batch}
	if b.backlogs[key] != nil {
		return nil
	}
	l, err := b.stream.newBacklog(ctx, fmt.Sprintf("b%d-%d", sc.batch, sc.rows), narrow.withRows(sc.batch), sc.rows/sc.batch)
	if err != nil {
		return err
	}
	b.backlogs[key] = l
	if err := natsserver.CheckDisk(b.dir, l.size+rowDisk*int64(sc.rows)); err != nil {
		return err
	}
	began := time.Now()
	if err := l.fill(ctx); err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	fmt.Fprintf(os.Stderr, "%d batches of %d rows on the stream in %.1f s\n", l.batches, sc.batch, time.Since(began).Seconds())
	return nil
}
