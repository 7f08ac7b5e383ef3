package store

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"pganalytics/pkg/batch"
)

// In this order a collector's numbers come as it gave them, so that whoever
// gathers them holds one range and not many. For a window it is the order of
// the ledger's index; all of it is sorted on the server's disk.
const readNumbers = `
select batch_id, collector_id, sent_at, coalesce(epoch, $4), coalesce(sequence, 0),
       coalesce(previous_epoch, $4), coalesce(previous_sequence, 0), refused, discarded is not null
from ingest.batch
where sent_at between $1 and $2 and ($3::uuid[] is null or collector_id = any($3))
order by sent_at`

// Numbers calls f for the ledger's batches of these collectors, all if there
// are none, that were sent from one time to the other, both included and zero
// for unbounded. It tells their ids, collectors, sent_at and numbering, in the
// order of sent_at, and whether they were discarded; the batch is f's only until it returns. floor is the time
// before which the ledger had been pruned. It may take long; only ctx ends it.
// Errors are f's, or classified like those of Load.
func (s *Store) Numbers(ctx context.Context, from, to time.Time, collectors []uuid.UUID, f func(b *batch.Batch, discarded bool) error) (floor time.Time, err error) {
	err = s.session(ctx, func(ses session) error {
		if _, err := ses.Exec(ctx, "begin isolation level repeatable read read only; set local statement_timeout = 0"); err != nil {
			return ses.failed("begin", err)
		}
		if err := ses.QueryRow(ctx, "select sent_at from ingest.floor").Scan(&floor); err != nil {
			return ses.failed("read the floor", err)
		}
		rows, err := ses.Query(ctx, readNumbers, bound(from, beginOfTime), bound(to, endOfTime), pgUUIDs(collectors), uuid.Nil)
		if err != nil {
			return ses.failed("select", err)
		}
		if err := eachNumber(rows, f); err != nil {
			return ses.failed("select", err)
		}
		_, err = ses.Exec(ctx, "rollback")
		return ses.failed("end", err)
	})
	if err != nil {
		return floor, fmt.Errorf("read the numbers in the ledger: %w", err)
	}
	return floor.UTC(), nil
}

func eachNumber(rows pgx.Rows, f func(*batch.Batch, bool) error) error {
	var b batch.Batch
	var sequence, previous int64
	var refused []int64
	var discarded bool
	_, err := pgx.ForEachRow(rows, []any{&b.ID, &b.CollectorID, &b.SentAt, &b.Epoch, &sequence, &b.Previous.Epoch, &previous, &refused, &discarded}, func() error {
		b.SentAt = b.SentAt.UTC()
		b.Sequence, b.Previous.Sequence = natural(sequence), natural(previous)
		b.Refused = b.Refused[:0]
		for _, n := range refused {
			b.Refused = append(b.Refused, natural(n))
		}
		return f(&b, discarded)
	})
	return err
}

// natural reads what was written from an unsigned number.
func natural(n int64) uint64 { return uint64(max(0, n)) }

// Bounds of what is asked for without bounds: whatever is stored lies within.
var (
	beginOfTime = time.Date(-4000, 1, 1, 0, 0, 0, 0, time.UTC)
	endOfTime   = time.UnixMicro(math.MaxInt64 / 2).UTC().Truncate(time.Hour)
)

func bound(t, unbounded time.Time) time.Time {
	if t.IsZero() {
		return unbounded
	}
	return t
}

// pgUUIDs returns nil, which is NULL, for none.
func pgUUIDs(ids []uuid.UUID) []pgtype.UUID {
	var list []pgtype.UUID
	for _, id := range ids {
		list = append(list, pgUUID(id))
	}
	return list
}
