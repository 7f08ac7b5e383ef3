package service

import (
	"context"
	"log/slog"
	"time"

	"pganalytics/pkg/bus"
	"pganalytics/pkg/store"
)

// keeper looks after the tables, round by round.
type keeper struct {
	store *store.Store
	bus   *bus.Bus
	every time.Duration
	log   *slog.Logger
}

func (k *keeper) run(ctx context.Context) error {
	tick := time.NewTicker(k.every)
	defer tick.Stop()
	for {
		if err := k.round(ctx); err != nil && ctx.Err() == nil {
			k.log.Warn("maintenance", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (k *keeper) round(ctx context.Context) error {
	done, err := k.store.Maintain(ctx, k.streamOldest(ctx))
	if err == nil && (len(done.Chunks) > 0 || done.LedgerChunks > 0 || len(done.DimensionRows) > 0) {
		k.log.Info("dropped what outlived its retention", "chunks", done.Chunks,
			"ledger_chunks", done.LedgerChunks, "dimension_rows", done.DimensionRows)
	}
	if len(done.Columnstore) > 0 {
		k.log.Info("old chunks will be compressed", "families", done.Columnstore)
	}
	return err
}

// oldestAccepted is how old a batch may be when the gateway accepts it.
const oldestAccepted = 30 * 24 * time.Hour

// streamOldest returns a time before which no batch on the stream was sent:
// the arrival of the first one less what it could be old by then. Zero when
// the stream does not answer; the ledger is then left alone.
func (k *keeper) streamOldest(ctx context.Context) time.Time {
	status, err := k.bus.Status(ctx)
	switch {
	case err != nil:
		k.log.Warn("maintenance leaves the ledger alone", "err", err)
		return time.Time{}
	case status.Messages == 0:
		return time.Now()
	default:
		return status.FirstTime.Add(-oldestAccepted)
	}
}
