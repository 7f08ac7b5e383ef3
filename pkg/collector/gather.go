package collector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/collector/spool"
)

// Bounds of one batch, far below the gateway's. maxBatchBytes is of the body
// before it is compressed; only a single row beyond it makes a larger one.
const (
	maxBatchBytes    = 1 << 20
	maxBatchRows     = 5000
	maxBatchSections = 500
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
	sender  atomic.Pointer[sender] // exchanged when the configuration is read again
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
	g := &gatherer{spool: sp, log: log, metrics: m, zstd: z, wait: gatherTime}
	g.sender.Store(&s)
	return g, nil
}

// run works until in is closed. Once ctx has ended it no longer waits for a
// spool that takes nothing; what is lost thereby is counted and logged.
func (g *gatherer) run(ctx context.Context, in <-chan []batch.Section) {
	for {
		sections, open := <-in
		sections, open = g.more(ctx, in, slices.Clip(sections), open) // the room behind it is the reader's
		for _, part := range g.sender.Load().split(sections) {
			g.take(ctx, part)
		}
		if !open {
			return
		}
	}
}

// more adds what comes within the wait or until there is a batch full.
func (g *gatherer) more(ctx context.Context, in <-chan []batch.Section, sections []batch.Section, open bool) ([]batch.Section, bool) {
	timer := time.NewTimer(g.wait)
	defer timer.Stop()
	done, elapsed := ctx.Done(), timer.C
	for open && g.sender.Load().size(sections) < maxBatchBytes {
		var next []batch.Section
		select {
		case next, open = <-in:
			sections = append(sections, next...)
		case <-elapsed:
			return sections, open
		case <-done: // the readers are ending; what is still to come needs no waiting for
			return sections, open
		}
	}
	return sections, open
}

// take returns when the spool has the batch, or ctx has ended.
func (g *gatherer) take(ctx context.Context, sections []batch.Section) {
	for attempt := 0; ; attempt++ {
		_, err := g.spool.Append(func(stamp spool.Stamp) ([]byte, error) { return g.encode(stamp, sections) })
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
			g.metrics.lostRows.Add(float64(rows(sections)))
			g.log.Error("stopped before the spool took what was collected last", "rows", rows(sections), "err", err)
			return
		}
		timer.Stop()
	}
}

// encode makes the bytes that are sent, at every attempt the same ones.
func (g *gatherer) encode(stamp spool.Stamp, sections []batch.Section) ([]byte, error) {
	g.buf = g.sender.Load().push(stamp, sections).Append(g.buf[:0])
	body := g.zstd.EncodeAll(g.buf, nil)
	if cap(g.buf) > 2*maxBatchBytes {
		g.buf = nil // a single row; few are like it
	}
	return body, nil
}

func rows(sections []batch.Section) int {
	n := 0
	for i := range sections {
		n += sections[i].Rows
	}
	return n
}
