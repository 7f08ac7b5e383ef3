package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
)

// Load stores the batches in one transaction and returns the outcome of each.
// After an error, none of them was stored by this call, or the outcome of its
// commit is not known; loading them again is right in either case, for the
// ledger knows. The error's fault.Class says how to go on, its SQLState why:
//
//   - Unavailable: the database is away, full or read-only.
//   - Contended: the load lost a race; load again at once.
//   - Behind: a family or column that the catalogue or the database lacks. What
//     the database lacked of the catalogue it has by now, if it could be made.
//   - Invalid: the rows of at least one batch can never be stored.
//   - Internal: anything else.
//
// When ctx ends, the load is rolled back, unless it was committing.
func (s *Store) Load(ctx context.Context, items []batch.Item) ([]batch.Outcome, error) {
	if len(items) == 0 {
		return nil, nil
	}
	start := time.Now()
	var outcomes []batch.Outcome
	err := s.session(ctx, func(ses session) (err error) {
		defer s.endBlockersOf(ctx, ses)()
		outcomes, err = s.transact(ctx, ses, items)
		return err
	})
	s.metrics.loaded(time.Since(start), items, outcomes, err)
	if fault.ClassOf(err) == fault.Behind && SQLState(err) != "" {
		// The tables were there at the start: the database was restored from
		// before they were made. Without them good batches would be given up.
		err = errors.Join(err, EnsureSchema(ctx, s.cfg.URL, s.catalogue))
	}
	if err != nil {
		return nil, fmt.Errorf("load %d batches: %w", len(items), err)
	}
	return outcomes, nil
}

// transact is the load. All loads take their locks in one order: ledger by
// key, tables by name, dimensions by name and key, servers by id. So two that
// meet wait for one another, but never in a circle.
func (s *Store) transact(ctx context.Context, ses session, items []batch.Item) ([]batch.Outcome, error) {
	outcomes, err := s.enter(ctx, ses, items)
	if err != nil {
		return nil, err
	}
	var fresh []batch.Item
	for i, o := range outcomes {
		if o == batch.Stored {
			fresh = append(fresh, items[i])
		}
	}
	copies, err := s.arrange(fresh)
	if err != nil {
		return nil, err
	}
	for _, c := range copies {
		if err := c.run(ctx, ses); err != nil {
			return nil, err
		}
	}
	var last pgx.Batch // the rest in one round trip
	for i, c := range copies {
		if c.family.Dimension && (i == 0 || copies[i-1].family != c.family) {
			last.Queue(s.dimensions[c.family.Name])
		}
	}
	if err := s.seeServers(&last, fresh); err != nil {
		return nil, err
	}
	slot := s.progress.take()
	err = s.commit(ctx, ses, &last, slot)
	s.progress.release(slot, err)
	return outcomes, err
}
