package collector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"

	"pganalytics/pkg/collector/pgread"
	"pganalytics/pkg/collector/spool"
)

// Bounds of one batch, far below the gateway's: 1 MiB of JSON is at most
// 6 MiB as tuples, of the 8 MiB that a message may have.
const (
	maxBatchBytes = 1 << 20
	maxBatchRows  = 5000
	maxBatchItems = 500
)

// gatherTime is how long what was read waits for more to share its batch.
const gatherTime = time.Second

// retryFull is how often a full spool is tried even without a signal: dead
// letters may have been removed, or the disk may have room again.
const retryFull = 5 * time.Second

// gatherer makes batches of what the servers' readers hand over and puts them
// into the spool. While the spool takes nothing, neither does the gatherer,
// and so the readers stop.
type gatherer struct {
	sender  sender
	spool   *spool.Spool
	log     *slog.Logger
	metrics *metrics
	zstd    *zstd.Encoder
	wait    time.Duration // gatherTime
	buf     []byte
}

func newGatherer(s sender, sp *spool.Spool, log *slog.Logger, m *metrics) (*gatherer, error) {
	z, err := zstd.NewWriter(nil,
		zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true),
		zstd.WithWindowSize(maxBatchBytes)) // a receiver must hold a window
	if err != nil {
		return nil, fmt.Errorf("make compressor: %w", err)
	}
	return &gatherer{sender: s, spool: sp, log: log, metrics: m, zstd: z, wait: gatherTime}, nil
}

// run works until in is closed. Once ctx has ended it no longer waits for a
// spool that takes nothing; what is lost thereby is counted and logged.
func (g *gatherer) run(ctx context.Context, in <-chan []pgread.Item) {
	for {
		items, open := <-in
		items, open = g.more(ctx, in, slices.Clip(items), open) // the room behind it is the reader's
		for _, part := range split(items) {
			g.take(ctx, part)
		}
		if !open {
			return
		}
	}
}

// more adds what comes within the wait or until there is a batch full.
func (g *gatherer) more(ctx context.Context, in <-chan []pgread.Item, items []pgread.Item, open bool) ([]pgread.Item, bool) {
	timer := time.NewTimer(g.wait)
	defer timer.Stop()
	done, elapsed := ctx.Done(), timer.C
	for open && size(items) < maxBatchBytes {
		var next []pgread.Item
		select {
		case next, open = <-in:
			items = append(items, next...)
		case <-elapsed:
			return items, open
		case <-done: // the readers are ending; what is still to come needs no waiting for
			return items, open
		}
	}
	return items, open
}

// take returns when the spool has the batch, or ctx has ended.
func (g *gatherer) take(ctx context.Context, items []pgread.Item) {
	for attempt := 0; ; attempt++ {
		_, err := g.spool.Append(func(stamp spool.Stamp) ([]byte, error) { return g.encode(stamp, items) })
		if err == nil {
			if attempt > 0 {
				g.log.Info("the spool takes batches again; collecting goes on")
			}
			g.metrics.paused.Set(0)
			g.metrics.batches.Inc()
			return
		}
		if attempt == 0 {
			g.log.Error("the spool takes no batch; collecting stops until it does", "full", errors.Is(err, spool.ErrFull), "err", err)
		}
		g.metrics.paused.Set(1)
		timer := time.NewTimer(retryFull)
		select {
		case <-g.spool.Room():
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			g.metrics.lostRows.Add(float64(rows(items)))
			g.log.Error("stopped before the spool took what was collected last", "rows", rows(items), "err", err)
			return
		}
		timer.Stop()
	}
}

// encode makes the bytes that are sent, at every attempt the same ones.
func (g *gatherer) encode(stamp spool.Stamp, items []pgread.Item) ([]byte, error) {
	sec, nsec := stamp.BatchID.Time().UnixTime()
	var err error
	if g.buf, err = g.sender.appendBody(g.buf[:0], stamp, time.Unix(sec, nsec), items); err != nil {
		return nil, err
	}
	return g.zstd.EncodeAll(g.buf, nil), nil
}

// split divides items into batches within the bounds, in order. A single row
// beyond them makes a batch of its own.
func split(items []pgread.Item) [][]pgread.Item {
	var batches [][]pgread.Item
	var batch []pgread.Item
	bytes, count := 0, 0
	flush := func() {
		if len(batch) > 0 {
			batches = append(batches, batch)
		}
		batch, bytes, count = nil, 0, 0
	}
	for _, it := range items {
		for len(it.Rows) > 0 {
			if len(batch) == maxBatchItems || count == maxBatchRows || bytes >= maxBatchBytes {
				flush()
			}
			n, b := 0, head(&it)
			for n < len(it.Rows) && count+n < maxBatchRows {
				if bytes+b+len(it.Rows[n]) > maxBatchBytes && (n > 0 || len(batch) > 0) {
					break
				}
				b += len(it.Rows[n]) + 1
				n++
			}
			if n == 0 {
				flush()
				continue
			}
			part := it
			part.Rows, it.Rows = it.Rows[:n], it.Rows[n:]
			batch, bytes, count = append(batch, part), bytes+b, count+n
		}
	}
	flush()
	return batches
}

// head returns about how many bytes an item takes beside its rows.
func head(it *pgread.Item) int {
	n := 128 + len(it.Family) + len(it.Server)
	for _, c := range it.Columns {
		n += len(c) + 3
	}
	return n
}

func size(items []pgread.Item) int {
	n := 0
	for i := range items {
		n += head(&items[i])
		for _, row := range items[i].Rows {
			n += len(row) + 1
		}
	}
	return n
}

func rows(items []pgread.Item) int {
	n := 0
	for i := range items {
		n += len(items[i].Rows)
	}
	return n
}
