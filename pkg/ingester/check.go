package ingester

import (
	"context"
	"fmt"

	"pganalytics/pkg/batch"
)

// checkBack is how many acknowledged messages the check at the start looks up.
// A database that went back lacks the newest ones; a few more than one, because
// some may lie in the dead letters.
const checkBack = 20

// Check compares the ledger with the newest acknowledged batches, before
// anything is loaded: this process has no memory yet of what the database held.
// Which messages are acknowledged nobody tells, only how many are not: so many
// may be missing, and no more. If some are, each may be one that waits or one
// that was lost, and all are stored here and now.
func (r *Recovery) Check(ctx context.Context) error {
	missing, unacked, err := r.newest(ctx)
	if err == nil && len(missing) > unacked {
		missing, err = r.notBuried(ctx, missing)
	}
	switch {
	case err != nil:
	case len(missing) > unacked:
		err = r.holdFrom(ctx, missing[0].Position)
	case len(missing) > 0:
		err = r.storeNewest(ctx)
	}
	if err != nil {
		return fmt.Errorf("check for a rewound database: %w", err)
	}
	return nil
}

// newest returns those of the newest messages that the ledger lacks, in the
// stream's order, and how many of all may be unacknowledged.
func (r *Recovery) newest(ctx context.Context) (missing []batch.Item, unacked int, err error) {
	reader, unacked, err := r.history.Newest(ctx, checkBack)
	if err != nil {
		return nil, 0, err
	}
	err = r.eachMissing(ctx, reader, func(some []batch.Delivery, items []batch.Item) {
		for i := range some {
			b := items[i].Batch // without its rows, for there may be many
			missing = append(missing, batch.Item{
				Batch:    &batch.Batch{CollectorID: b.CollectorID, ID: b.ID, Digest: b.Digest},
				Position: items[i].Position,
			})
		}
	})
	return missing, unacked, err
}

// storeNewest stores those of the newest messages that the ledger lacks.
func (r *Recovery) storeNewest(ctx context.Context) error {
	reader, _, err := r.history.Newest(ctx, checkBack)
	if err != nil {
		return err
	}
	return r.eachMissing(ctx, reader, func(some []batch.Delivery, _ []batch.Item) { r.in.replay(ctx, some) })
}

// eachMissing calls f with the messages that the ledger lacks.
func (r *Recovery) eachMissing(ctx context.Context, reader Reader, f func([]batch.Delivery, []batch.Item)) error {
	for {
		fetched, err := reader.Next(ctx, r.in.cfg.FetchMessages, r.in.cfg.FetchBytes)
		if err != nil || len(fetched) == 0 {
			return err
		}
		var items []batch.Item
		var known []batch.Delivery
		for _, d := range fetched {
			if b, err := batch.Unmarshal(d.Payload); err == nil { // else it is a dead letter, or waits
				items = append(items, batch.Item{Batch: b, Position: d.Position})
				known = append(known, d)
			}
		}
		lacks, err := r.ledger.Missing(ctx, items)
		if err != nil {
			return err
		}
		for at, i := range lacks { // rising, so nothing is overwritten too early
			items[at], known[at] = items[i], known[i]
		}
		f(known[:len(lacks)], items[:len(lacks)])
	}
}

// notBuried returns the items that do not lie in the dead letters. One without
// a batch cannot be looked for.
func (r *Recovery) notBuried(ctx context.Context, items []batch.Item) (rest []batch.Item, err error) {
	for _, it := range items {
		buried := false
		if it.Batch != nil {
			if buried, err = r.letters.Buried(ctx, it.Batch); err != nil {
				return nil, err
			}
		}
		if !buried {
			rest = append(rest, it)
		}
	}
	return rest, nil
}

// holdFrom holds all that the database does not vouch for, the lost message and
// what follows at least.
func (r *Recovery) holdFrom(ctx context.Context, lost batch.Position) error {
	floor, known, err := r.ledger.AckFloor(ctx, lost.Incarnation)
	if err != nil {
		return err
	}
	from := uint64(0)
	if known {
		from = min(floor+1, lost.Sequence)
	}
	return r.Rewound(ctx, lost.Incarnation, from)
}
