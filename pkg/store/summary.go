package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Summary tells what the database holds, as of one moment.
type Summary struct {
	Batches    int64           // in the ledger
	LedgerRows int64           // that those batches brought, of all families
	Families   []FamilySummary // of the catalogue, sorted by name
	Newest     time.Time       // time of the newest row of all; zero when there is none
}

// FamilySummary tells what the database holds of one family.
type FamilySummary struct {
	Name       string
	Dimension  bool
	Rows       int64     // in its table
	LedgerRows int64     // by the ledger's sections; of a time series the same as Rows until its retention drops some
	Newest     time.Time // time of its newest row, for dimensions by last_seen; zero when there is none
}

// Summary counts every row and reads every section of the ledger. It may take
// long; only ctx ends it. A family without a table is an error.
func (s *Store) Summary(ctx context.Context) (Summary, error) {
	var sum Summary
	err := s.session(ctx, func(ses session) error {
		if _, err := ses.Exec(ctx, "begin isolation level repeatable read read only; set local statement_timeout = 0"); err != nil {
			return ses.failed("begin", err)
		}
		if err := s.summarize(ctx, ses, &sum); err != nil {
			return ses.failed("count", err)
		}
		_, err := ses.Exec(ctx, "rollback")
		return ses.failed("end", err)
	})
	if err != nil {
		return Summary{}, fmt.Errorf("summarize the store: %w", err)
	}
	return sum, nil
}

func (s *Store) summarize(ctx context.Context, ses session, sum *Summary) error {
	err := ses.QueryRow(ctx, "select count(*), coalesce(sum(row_count), 0)::bigint from ingest.batch").Scan(&sum.Batches, &sum.LedgerRows)
	if err != nil {
		return err
	}
	claimed, err := claimedRows(ctx, ses)
	if err != nil {
		return err
	}
	for _, f := range s.catalogue.Families() {
		column := "time"
		if f.Dimension {
			column = "last_seen"
		}
		fs := FamilySummary{Name: f.Name, Dimension: f.Dimension, LedgerRows: claimed[f.Name]}
		var newest *time.Time
		err := ses.QueryRow(ctx, "select count(*), max("+column+") from "+quote("metrics", f.Name)).Scan(&fs.Rows, &newest)
		if err != nil {
			return fmt.Errorf("family %s: %w", f.Name, err)
		}
		if newest != nil {
			fs.Newest = newest.UTC()
		}
		if fs.Newest.After(sum.Newest) {
			sum.Newest = fs.Newest
		}
		sum.Families = append(sum.Families, fs)
	}
	return nil
}

// claimedRows sums the rows of the ledger's sections by family.
func claimedRows(ctx context.Context, ses session) (map[string]int64, error) {
	rows, err := ses.Query(ctx, `
select s.family, sum(s.rows)::bigint
from ingest.batch b, jsonb_to_recordset(b.sections) as s(family text, rows bigint)
group by s.family`)
	if err != nil {
		return nil, err
	}
	claimed := map[string]int64{}
	var family string
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&family, &n}, func() error {
		claimed[family] = n
		return nil
	})
	return claimed, err
}

// StoredBatch is what the ledger holds of one batch.
type StoredBatch struct {
	SentAt   time.Time
	Epoch    uuid.UUID // zero when the sender does not number
	Sequence uint64
	Rows     int64
	Digest   [32]byte
}

// StoredBatches returns the ledger's batches of one collector by their ids.
func (s *Store) StoredBatches(ctx context.Context, collector uuid.UUID) (map[uuid.UUID]StoredBatch, error) {
	const query = `
select batch_id, sent_at, coalesce(epoch, '00000000-0000-0000-0000-000000000000'), coalesce(sequence, 0), row_count, digest
from ingest.batch where collector_id = $1`
	stored := map[uuid.UUID]StoredBatch{}
	err := s.session(ctx, func(ses session) error {
		rows, err := ses.Query(ctx, query, collector)
		if err != nil {
			return ses.failed("read the ledger", err)
		}
		var id uuid.UUID
		var b StoredBatch
		var sum []byte
		_, err = pgx.ForEachRow(rows, []any{&id, &b.SentAt, &b.Epoch, &b.Sequence, &b.Rows, &sum}, func() error {
			b.SentAt, b.Digest = b.SentAt.UTC(), digest(sum)
			stored[id] = b
			return nil
		})
		return ses.failed("read the ledger", err)
	})
	if err != nil {
		return nil, fmt.Errorf("list the batches of collector %s: %w", collector, err)
	}
	return stored, nil
}
