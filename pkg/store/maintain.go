package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/fault"
)

const (
	// oldestAccepted is how old a batch may be when it is accepted.
	oldestAccepted = 30 * 24 * time.Hour

	// ledgerMargin is kept beyond what can still arrive.
	ledgerMargin = 7 * 24 * time.Hour

	// maxSkew is how far the clocks of this host and the database may differ:
	// what a wrong clock calls old is not dropped.
	maxSkew = 10 * time.Minute

	// Whoever waits for an exclusive lock holds up all loads behind it.
	maintainLockTimeout = "2s"
)

// Maintenance tells what one round did.
type Maintenance struct {
	Skipped       bool             // another process was at it
	Chunks        map[string]int   // dropped, by family; only those above 0
	DimensionRows map[string]int64 // deleted, by family; only those above 0
	LedgerChunks  int              // dropped
	Columnstore   []string         // families whose old chunks will be compressed from now on, or at another age
}

// Maintain drops what has outlived its retention: chunks of the catalogue's
// own tables, dimension rows that nobody reported for that long, and the
// ledger's old end. Where the database's edition can, it has older chunks
// compressed, once the replay window is past them. One of many processes does it, the others skip the round.
//
// No batch that the stream still holds may have a sent_at before streamOldest;
// the ledger is kept from there on whatever its age. Give the present for an
// empty stream and zero when it is not known: then the ledger is left alone.
//
// A family that cannot be done now does not stop the others; the error joins
// all. Nothing is dropped while the clocks of the database and of this host
// differ by more than 10 min.
func (s *Store) Maintain(ctx context.Context, streamOldest time.Time) (Maintenance, error) {
	m := Maintenance{Chunks: map[string]int{}, DimensionRows: map[string]int64{}}
	err := s.session(ctx, func(ses session) error {
		ran, err := ses.alone(ctx, maintainLock, func() error { return s.maintain(ctx, ses, streamOldest, &m) })
		m.Skipped = err == nil && !ran
		return err
	})
	s.metrics.maintained(m, err)
	if err != nil {
		return m, fmt.Errorf("maintain the tables: %w", err)
	}
	return m, nil
}

func (s *Store) maintain(ctx context.Context, ses session, streamOldest time.Time, m *Maintenance) error {
	now, err := agreedTime(ctx, ses)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range s.catalogue.Families() {
		if err := expire(ctx, ses, f, now, m); err != nil {
			errs = append(errs, fmt.Errorf("family %s: %w", f.Name, err))
		}
		if ses.IsClosed() {
			return errors.Join(errs...)
		}
	}
	if m.Columnstore, err = s.columnstore(ctx, ses); err != nil {
		errs = append(errs, fmt.Errorf("columnstore: %w", err))
	}
	if ses.IsClosed() {
		return errors.Join(errs...)
	}
	oldest := now.Add(-oldestAccepted - s.cfg.ReplayWindow - ledgerMargin)
	if streamOldest.Before(oldest) { // as zero is, too
		oldest = streamOldest
	}
	if _, err := ses.Exec(ctx, pruneProgress); err != nil {
		errs = append(errs, fmt.Errorf("progress: %w", ses.failed("prune", err)))
	}
	if m.LedgerChunks, err = pruneLedger(ctx, ses, oldest); err != nil {
		errs = append(errs, fmt.Errorf("ledger: %w", err))
	}
	return errors.Join(errs...)
}

// agreedTime returns the database's clock, if this host's agrees with it.
func agreedTime(ctx context.Context, ses session) (time.Time, error) {
	before := time.Now()
	var now time.Time
	if err := ses.QueryRow(ctx, "select clock_timestamp()").Scan(&now); err != nil {
		return now, ses.failed("read the database's clock", err)
	}
	if skew := now.Sub(before); skew < -maxSkew || skew > maxSkew+time.Since(before) {
		return now, fault.Wrap(fault.Internal, fmt.Errorf("the database's clock is off by %v from this host's: nothing is dropped until they agree", skew))
	}
	return now.UTC(), nil
}

// expire drops what a family's retention no longer covers.
func expire(ctx context.Context, ses session, f *catalogue.Family, now time.Time, m *Maintenance) error {
	if f.Retention <= 0 {
		return nil
	}
	oldest := now.Add(-f.Retention)
	return ses.briefly(ctx, func() error {
		if f.Dimension {
			tag, err := ses.Exec(ctx, "delete from "+quote("metrics", f.Name)+" where last_seen < $1", oldest)
			if err == nil && tag.RowsAffected() > 0 {
				m.DimensionRows[f.Name] = tag.RowsAffected()
			}
			return ses.failed("delete unseen rows", err)
		}
		chunks, err := dropChunks(ctx, ses, quote("metrics", f.Name), oldest)
		if err == nil && chunks > 0 {
			m.Chunks[f.Name] = chunks
		}
		return err
	})
}

// pruneLedger drops the ledger's chunks before oldest and moves the floor to
// their end in the same transaction. No load is under way meanwhile: each has
// read the floor, and so holds its table, from its first statement to its end.
func pruneLedger(ctx context.Context, ses session, oldest time.Time) (int, error) {
	var end *time.Time
	err := ses.QueryRow(ctx, `
select max(range_end) from timescaledb_information.chunks
where hypertable_schema = 'ingest' and hypertable_name = 'batch' and range_end <= $1`, oldest).Scan(&end)
	if err != nil || end == nil {
		return 0, ses.failed("look for old chunks", err)
	}
	chunks := 0
	err = ses.briefly(ctx, func() error {
		if _, err := ses.Exec(ctx, "lock table ingest.floor in access exclusive mode"); err != nil {
			return ses.failed("lock the floor", err)
		}
		if _, err := ses.Exec(ctx, "update ingest.floor set sent_at = greatest(sent_at, $1)", *end); err != nil {
			return ses.failed("move the floor", err)
		}
		var err error
		chunks, err = dropChunks(ctx, ses, "ingest.batch", *end)
		return err
	})
	if err != nil {
		return 0, err
	}
	return chunks, nil
}

// dropChunks drops the chunks of one table that hold nothing from oldest on.
func dropChunks(ctx context.Context, ses session, table string, oldest time.Time) (int, error) {
	var n int
	err := ses.QueryRow(ctx, "select count(*) from drop_chunks($1::text::regclass, older_than => $2::timestamptz)", table, oldest).Scan(&n)
	return n, ses.failed("drop chunks", err)
}

// briefly runs f in a transaction that waits for locks only briefly.
func (ses session) briefly(ctx context.Context, f func() error) error {
	if _, err := ses.Exec(ctx, "begin; set local lock_timeout = '"+maintainLockTimeout+"'"); err != nil {
		return ses.failed("begin", err)
	}
	if err := f(); err != nil {
		if !ses.IsClosed() {
			_, rollbackErr := ses.Exec(ctx, "rollback")
			err = errors.Join(err, ses.failed("rollback", rollbackErr))
		}
		return err
	}
	return ses.commit(ctx)
}
