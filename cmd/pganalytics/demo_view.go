package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/bus"
	"pganalytics/pkg/collector/spool"
	"pganalytics/pkg/store"
)

// demoReport is the demo's last line. Lost and duplicates are 0, or the demo
// has failed.
type demoReport struct {
	BatchesAccepted int   `json:"batches_accepted"` // by the collector's own fsynced record of 202 answers
	BatchesStored   int   `json:"batches_stored"`   // by the ledger
	RowsStored      int64 `json:"rows_stored"`      // counted in the hypertables
	Families        int   `json:"families"`         // hypertables that have rows
	DeadLetters     int   `json:"dead_letters"`
	Lost            int64 `json:"lost"`       // accepted batches found nowhere, and rows of the ledger that no table has
	Duplicates      int64 `json:"duplicates"` // rows in tables beyond those of the ledger
}

// demoWatch looks at the running system from outside: at the collector's
// journal, the ledger, the tables and the dead letters.
type demoWatch struct {
	store    *store.Store
	bus      *bus.Bus
	spoolDir string
	out      io.Writer
	terminal bool
	shown    bool
}

// look is what one look finds.
type look struct {
	demoReport
	rowsAccepted int // by the same record, rows of dimensions included
	newest       time.Time
	backlog      uint64 // batches on the stream that are not acknowledged
}

func (w *demoWatch) look(ctx context.Context) (look, error) {
	accepted, err := spool.ReadAccepted(w.spoolDir)
	if err != nil {
		return look{}, err
	}
	status, err := w.bus.Status(ctx)
	if err != nil {
		return look{}, err
	}
	summary, err := w.store.Summary(ctx)
	if err != nil {
		return look{}, err
	}
	l := look{newest: summary.Newest, backlog: backlog(status)}
	l.BatchesStored = int(summary.Batches)
	l.DeadLetters = int(status.DeadLetters)
	for _, f := range summary.Families {
		if f.Dimension {
			continue // stored once by content, not once a row
		}
		l.RowsStored += f.Rows
		l.Duplicates += max(0, f.Rows-f.LedgerRows)
		l.Lost += max(0, f.LedgerRows-f.Rows)
		if f.Rows > 0 {
			l.Families++
		}
	}
	l.BatchesAccepted = len(batchIDs(accepted))
	for _, a := range accepted {
		l.rowsAccepted += a.Rows
	}
	return l, nil
}

func batchIDs(accepted []spool.Acceptance) map[uuid.UUID]bool {
	ids := make(map[uuid.UUID]bool, len(accepted))
	for _, a := range accepted {
		ids[a.BatchID] = true
	}
	return ids
}

// show prints one look: as a block in place on a terminal, as a line elsewhere.
func (w *demoWatch) show(l look) {
	age := "-"
	if !l.newest.IsZero() {
		age = time.Since(l.newest).Round(100 * time.Millisecond).String()
	}
	if !w.terminal {
		fmt.Fprintf(w.out, "accepted %d batches, %d rows · stored %d batches, %d rows, %d families · newest row %s old · backlog %d · dead letters %d\n",
			l.BatchesAccepted, l.rowsAccepted, l.BatchesStored, l.RowsStored, l.Families, age, l.backlog, l.DeadLetters)
		return
	}
	const block = "accepted      %d batches, %d rows\nstored        %d batches, %d rows, %d families\n" +
		"newest row    %s old\nbacklog       %d batches\ndead letters  %d\n"
	if w.shown {
		fmt.Fprintf(w.out, "\x1b[%dA\x1b[J", strings.Count(block, "\n")) // up, and clear to the end
	}
	w.shown = true
	fmt.Fprintf(w.out, block, l.BatchesAccepted, l.rowsAccepted, l.BatchesStored, l.RowsStored, l.Families, age, l.backlog, l.DeadLetters)
}

// drained waits until everything that was accepted is stored or a dead letter.
func (w *demoWatch) drained(ctx context.Context, collector uuid.UUID) (demoReport, error) {
	for {
		r, err := w.reconcile(ctx, collector)
		if err != nil {
			return r, err
		}
		if r.Lost == 0 {
			return r, nil
		}
		select {
		case <-ctx.Done():
			return r, nil // what is missing now is lost
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// reconcile compares, batch by batch, what the collector was told with what
// the ledger and the dead letters hold.
func (w *demoWatch) reconcile(ctx context.Context, collector uuid.UUID) (demoReport, error) {
	accepted, err := spool.ReadAccepted(w.spoolDir)
	if err != nil {
		return demoReport{}, err
	}
	// Before the look, whose figures then have every batch that is found here.
	stored, err := w.store.StoredBatches(ctx, collector)
	if err != nil {
		return demoReport{}, err
	}
	l, err := w.look(ctx)
	if err != nil {
		return demoReport{}, err
	}
	letters, err := w.bus.DeadLetters().List(ctx, l.DeadLetters+1)
	if err != nil {
		return demoReport{}, err
	}
	dead := map[uuid.UUID]bool{}
	for _, letter := range letters {
		dead[letter.BatchID] = true
	}
	for id := range batchIDs(accepted) {
		if _, ok := stored[id]; !ok && !dead[id] {
			l.Lost++
		}
	}
	return l.demoReport, nil
}

func (r demoReport) print(out io.Writer) error { return json.NewEncoder(out).Encode(r) }

// err says what is wrong with the result, if anything is.
func (r demoReport) err() error {
	if r.Lost != 0 || r.Duplicates != 0 {
		return fmt.Errorf("%d lost and %d duplicates: please report this", r.Lost, r.Duplicates)
	}
	return nil
}
