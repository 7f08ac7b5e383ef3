package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
)

// Witness writes into a transaction of this store, such as an entry of the
// audit beside what it tells of.
type Witness func(ctx context.Context, conn *pgx.Conn) error

const readRows = `
select collector_id, batch_id, sent_at, stored_at, stream_seq, stream_incarnation, digest, row_count, coalesce(discarded, '')
from ingest.batch where collector_id = $1 and batch_id = $2 order by sent_at`

// LedgerRows returns what the ledger has under a batch's id; that is one row
// unless a sender used the id with several times. It reads an index of the
// whole ledger.
func (s *Store) LedgerRows(ctx context.Context, collector, id uuid.UUID) ([]batch.LedgerRow, error) {
	var found []batch.LedgerRow
	err := s.session(ctx, func(ses session) error {
		rows, err := ses.Query(ctx, readRows, collector, id)
		if err != nil {
			return ses.failed("read the ledger", err)
		}
		found, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (e batch.LedgerRow, err error) {
			var sum []byte
			err = row.Scan(&e.CollectorID, &e.BatchID, &e.SentAt, &e.StoredAt, &e.Sequence, &e.Incarnation, &sum, &e.Rows, &e.Discarded)
			if err == nil {
				e.SentAt, e.StoredAt, e.Digest = e.SentAt.UTC(), e.StoredAt.UTC(), digest(sum)
			}
			return e, err
		})
		return ses.failed("read the ledger", err)
	})
	if err != nil {
		return nil, fmt.Errorf("look up batch %s: %w", id, err)
	}
	return found, nil
}

// enterDiscarded is enterLedger for one batch of which nothing is stored.
const enterDiscarded = `
insert into ingest.batch (sent_at, collector_id, batch_id, epoch, sequence, previous_epoch, previous_sequence, refused,
                          stream_seq, stream_incarnation, digest, row_count, sections, discarded)
select $1, $2, $3, $4, $5, $6, $7, $8::text::bigint[], $9, $10, $11, 0, '[]', $12
where $1 >= (select f.sent_at from ingest.floor f)
on conflict do nothing`

// Discard enters a batch in the ledger as given up, with the reason, so that it
// counts as stored from then on and is not loaded, whoever delivers it. witness
// is called in the same transaction. The outcome is Stored when it was entered;
// AlreadyStored when the ledger has it, stored or given up; Differs or BelowFloor
// when it cannot be entered, though it cannot be loaded either. Errors are
// classified like those of Load.
func (s *Store) Discard(ctx context.Context, it batch.Item, reason string, witness Witness) (batch.Outcome, error) {
	var r ledgerRows
	if err := r.add(&it); err != nil {
		return 0, fmt.Errorf("discard batch %s: %w", it.ID, err)
	}
	var outcome batch.Outcome
	err := s.operate(ctx, "begin", func(ses session) error {
		if _, err := ses.Exec(ctx, lockFloor); err != nil {
			return ses.failed("lock the floor", err)
		}
		tag, err := ses.Exec(ctx, enterDiscarded, r.sentAt[0], it.CollectorID, it.ID, r.epochs[0], r.sequences[0],
			r.previousEpochs[0], r.previousNumbers[0], r.refused[0], r.streamSeqs[0], r.incarnations[0], r.digests[0], reason)
		if err != nil {
			return ses.failed("enter the ledger", err)
		}
		outcome = batch.Stored
		if tag.RowsAffected() == 0 {
			if outcome, err = whyNot(ctx, ses, it.Batch); err != nil {
				return err
			}
		}
		return ses.failed("write down who did it", witness(ctx, ses.Conn))
	})
	if err != nil {
		return 0, fmt.Errorf("discard batch %s: %w", it.ID, err)
	}
	return outcome, nil
}

// whyNot tells why a batch could not be entered.
func whyNot(ctx context.Context, ses session, b *batch.Batch) (batch.Outcome, error) {
	known := map[key]digest{}
	floor, err := lookUp(ctx, ses, []key{keyOf(b)}, known)
	if err != nil {
		return 0, err
	}
	if outcome := standing(keyOf(b), b.Digest, known, floor); outcome != 0 {
		return outcome, nil
	}
	return 0, fault.Wrap(fault.Contended, errors.New("its ledger row was there and is gone"))
}

// operate runs f in one transaction of a person's, which takes as long as it
// takes.
func (s *Store) operate(ctx context.Context, begin string, f func(session) error) error {
	return s.session(ctx, func(ses session) error {
		if _, err := ses.Exec(ctx, begin+"; set local statement_timeout = 0"); err != nil {
			return ses.failed("begin", err)
		}
		if err := f(ses); err != nil {
			return err // and the session rolls back
		}
		return ses.commit(ctx)
	})
}
