package main

import (
	"context"
	"fmt"
	"os"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// figures are what came of a drill, in batches but for rows.
type figures struct {
	batches, rows     int
	lost, duplicated  int
	replayed, skipped uint64
}

// found is what the tables hold of a batch.
type found struct {
	rows, ledger int
	sum          uint64
}

// check holds the journal against the tables and the ledger.
func (f *figures) check(journal []taken, tables map[uuid.UUID]found) {
	for _, t := range journal {
		f.batches++
		f.rows += t.Rows
		got := tables[t.Batch]
		delete(tables, t.Batch)
		switch {
		case got.rows > t.Rows || got.ledger > 1:
			f.duplicated++
		case got.rows < t.Rows || got.sum != t.Sum || got.ledger == 0:
			f.lost++
		default:
			continue
		}
		if f.lost+f.duplicated <= 10 {
			fmt.Fprintf(os.Stderr, "batch %s: %d of %d rows, %d times in the ledger\n", t.Batch, got.rows, t.Rows, got.ledger)
		}
	}
}

// tables reads every row.
func (c *cluster) tables(ctx context.Context) (map[uuid.UUID]found, error) {
	all := map[uuid.UUID]found{}
	err := c.with(ctx, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, "select batch, n, body from metrics.drill")
		if err != nil {
			return err
		}
		var id uuid.UUID
		var n int32
		var body string
		_, err = pgx.ForEachRow(rows, []any{&id, &n, &body}, func() error {
			f := all[id]
			f.rows++
			f.sum += sum(id, n, body)
			all[id] = f
			return nil
		})
		if err != nil {
			return err
		}
		if rows, err = conn.Query(ctx, "select batch_id from ingest.batch"); err != nil {
			return err
		}
		_, err = pgx.ForEachRow(rows, []any{&id}, func() error {
			f := all[id]
			f.ledger++
			all[id] = f
			return nil
		})
		return err
	})
	return all, err
}
