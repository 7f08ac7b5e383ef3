package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"pganalytics/pkg/batch"
)

// probe is one row on its way.
type probe struct{ at, answered, seen time.Time }

// watch looks for probes in the table.
type watch struct {
	mu   sync.Mutex
	sent map[int32]*probe // not seen yet, or not answered yet
	done chan struct{}    // closed when all are sent
}

const probeServer = "probe"

// probe pushes one row with the key n.
func (s *system) probe(ctx context.Context, l *latencies, w *watch, one shape, n int32) error {
	p := &probe{at: time.Now().UTC().Truncate(time.Microsecond)}
	w.mu.Lock()
	w.sent[n] = p
	w.mu.Unlock()
	body, err := pushBody(nil, s.sender.ID, one, payload{server: probeServer, json: fmt.Appendf(nil, "[[%d,1.5]]", n)}, p.at)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := s.sender.Push(ctx, body, one.rows); err != nil {
		return err
	}
	answered := time.Now()
	l.add(&l.pushOne, answered.Sub(began))
	w.mu.Lock()
	p.answered = answered
	w.settle(l, n)
	w.mu.Unlock()
	return nil
}

// settle notes how long the row took if both ends are known. A row that was
// visible before its push was answered took no time.
func (w *watch) settle(l *latencies, n int32) {
	if p := w.sent[n]; !p.answered.IsZero() && !p.seen.IsZero() {
		l.add(&l.visible, max(0, p.seen.Sub(p.answered)))
		delete(w.sent, n)
	}
}

// lookEvery is how late a row may be seen; with the query's own time it is
// part of what is measured.
const lookEvery = 5 * time.Millisecond

// run looks until all probes were sent and seen.
func (w *watch) run(ctx context.Context, s *system, l *latencies) error {
	const query = "select series from metrics.bench_narrow where server_id = $1 and time >= $2"
	server := batch.ServerID(s.sender.ID, probeServer)
	for deadline := (time.Time{}); ; time.Sleep(lookEvery) {
		w.mu.Lock()
		oldest, left := time.Now(), len(w.sent)
		for _, p := range w.sent {
			if p.at.Before(oldest) {
				oldest = p.at
			}
		}
		w.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.done:
			if left == 0 {
				return nil
			}
			if deadline.IsZero() {
				deadline = time.Now().Add(time.Minute)
			} else if time.Now().After(deadline) {
				return fmt.Errorf("%d probes are not visible after a minute", left)
			}
		default:
		}
		if left == 0 {
			continue
		}
		rows, err := s.db.pool.Query(ctx, query, server, oldest)
		if err != nil {
			return err
		}
		keys, err := pgx.CollectRows(rows, pgx.RowTo[int32])
		if err != nil {
			return err
		}
		w.see(l, keys, time.Now())
	}
}

func (w *watch) see(l *latencies, keys []int32, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range keys {
		if p := w.sent[n]; p != nil && p.seen.IsZero() {
			p.seen = now
			w.settle(l, n)
		}
	}
}
