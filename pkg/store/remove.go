package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/fault"
)

// errOnlyLooked ends a transaction that only looked.
var errOnlyLooked = errors.New("only looked")

// Holdings counts what the tables have of a batch's rows, which must be
// expanded. Errors are classified like those of Load.
func (s *Store) Holdings(ctx context.Context, b *batch.Batch) ([]batch.Holding, error) {
	var h []batch.Holding
	err := s.operate(ctx, snapshot, func(ses session) (err error) {
		if h, err = s.match(ctx, ses, b, countEqual); err != nil {
			return err
		}
		return errOnlyLooked // the staged rows go
	})
	if !errors.Is(err, errOnlyLooked) {
		return nil, fmt.Errorf("count the rows of batch %s: %w", b.ID, err)
	}
	return h, nil
}

// snapshot lets all statements see the same: what others commit meanwhile is
// neither counted nor deleted.
const snapshot = "begin isolation level repeatable read"

// Remove deletes a batch's rows and its row of the ledger, so that it counts as
// never loaded; with a reason it stays in the ledger as discarded. b must be the
// very batch that was stored, expanded. witness is called in the same
// transaction. Rows of dimensions stay: they may be other batches' too. When it
// cannot be told which rows are the batch's alone, nothing is changed and the
// error is fault.Conflict; fault.NotFound when the batch is not stored. Other
// errors are classified like those of Load.
func (s *Store) Remove(ctx context.Context, b *batch.Batch, discard string, witness Witness) ([]batch.Holding, error) {
	var h []batch.Holding
	err := s.operate(ctx, snapshot, func(ses session) error {
		discarded, err := lockEntry(ctx, ses, b)
		if err != nil {
			return err
		}
		if !discarded {
			if err := s.aloneIn(ctx, ses, b); err != nil {
				return err
			}
			if h, err = s.match(ctx, ses, b, deleteEqual); err != nil {
				return err
			}
			if err := exact(h); err != nil {
				return err
			}
		}
		if err := leaveLedger(ctx, ses, b, discard); err != nil {
			return err
		}
		return ses.failed("write down who did it", witness(ctx, ses.Conn))
	})
	if err != nil {
		return nil, fmt.Errorf("remove batch %s: %w", b.ID, err)
	}
	return h, nil
}

// exact errs unless every row of the batch was found once.
func exact(h []batch.Holding) error {
	for _, f := range h {
		if !f.Dimension && f.Found != f.Rows {
			return conflict("the table of %s has %d rows that equal one of the batch's %d: it cannot be told which are the batch's own", f.Family, f.Found, f.Rows)
		}
	}
	return nil
}

func conflict(format string, args ...any) error {
	return fault.New(fault.Conflict, fault.Conflict.String(), fmt.Sprintf(format, args...))
}

// lockEntry finds the batch's row of the ledger and holds it till the end.
func lockEntry(ctx context.Context, ses session, b *batch.Batch) (discarded bool, err error) {
	var sum []byte
	err = ses.QueryRow(ctx, `select digest, discarded is not null from ingest.batch
where sent_at = $1 and collector_id = $2 and batch_id = $3 for update`, keyOf(b).time(), b.CollectorID, b.ID).Scan(&sum, &discarded)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return false, fault.New(fault.NotFound, "not_found", "the ledger does not have the batch")
	case err != nil:
		return false, ses.failed("read the ledger", err)
	case digest(sum) != b.Digest:
		return false, conflict("what is stored under this id is another batch")
	}
	return discarded, nil
}

// leaveLedger takes the batch out of the ledger, or leaves it as discarded.
func leaveLedger(ctx context.Context, ses session, b *batch.Batch, discard string) error {
	sql := "delete from ingest.batch"
	args := []any{keyOf(b).time(), b.CollectorID, b.ID}
	if discard != "" {
		sql = "update ingest.batch set discarded = $4, row_count = 0, sections = '[]'"
		args = append(args, discard)
	}
	_, err := ses.Exec(ctx, sql+" where sent_at = $1 and collector_id = $2 and batch_id = $3", args...)
	return ses.failed("change the ledger", err)
}

// What is done with the rows of a table that equal a staged one.
const (
	countEqual  = "select from %s t where %s"
	deleteEqual = "delete from %s t where %s"
)

// match stages the batch's rows beside each table and runs the statement on
// the rows there that equal one of them. A column that the batch does not have
// is null in its rows.
func (s *Store) match(ctx context.Context, ses session, b *batch.Batch, statement string) ([]batch.Holding, error) {
	copies, err := s.arrange(append([]batch.Item(nil), batch.Item{Batch: b}))
	if err != nil {
		return nil, err
	}
	var h []batch.Holding // copies of one family follow each other
	for i, c := range copies {
		if n := len(h); n == 0 || h[n-1].Family != c.family.Name {
			h = append(h, batch.Holding{Family: c.family.Name, Dimension: c.family.Dimension})
		}
		f := &h[len(h)-1]
		f.Rows += int64(c.rows)
		if c.family.Dimension {
			continue
		}
		n, err := c.match(ctx, ses, fmt.Sprintf("batch_%d", i), statement)
		if err != nil {
			return nil, err
		}
		f.Found += n
	}
	return h, nil
}

func (c *copying) match(ctx context.Context, ses session, stage, statement string) (int64, error) {
	table, staged := quote("metrics", c.family.Name), quote("pg_temp", stage)
	if _, err := ses.Exec(ctx, "create temporary table "+quote(stage)+" on commit drop as table "+table+" with no data"); err != nil {
		return 0, ses.failed("stage "+c.family.Name, err)
	}
	if err := c.into(ctx, ses, staged); err != nil {
		return 0, err
	}
	if _, err := ses.Exec(ctx, "create index on "+staged+" (time, server_id); analyze "+staged); err != nil {
		return 0, ses.failed("stage "+c.family.Name, err)
	}
	equal, err := equality(ctx, ses, table)
	if err != nil {
		return 0, err
	}
	servers, from, to := c.bounds()
	// The bounds say nothing that the equality does not say, but leave out all
	// other chunks before they are looked into.
	where := fmt.Sprintf("t.time between $1 and $2 and t.server_id = any($3) and exists (select from %s r where %s)", staged, equal)
	tag, err := ses.Exec(ctx, fmt.Sprintf(statement, table, where), from, to, servers)
	if err != nil {
		return 0, ses.failed("find rows in "+c.family.Name, err)
	}
	return tag.RowsAffected(), nil
}

// equality returns the condition that t and r are the same row in all columns
// that the table has, as the database knows them: there may be more than in
// this catalogue.
func equality(ctx context.Context, ses session, table string) (string, error) {
	rows, err := ses.Query(ctx, `select attname::text from pg_attribute where attrelid = $1::text::regclass and attnum > 0 and not attisdropped order by attnum`, table)
	if err != nil {
		return "", ses.failed("read the columns", err)
	}
	columns, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return "", ses.failed("read the columns", err)
	}
	conditions := []string{"t.time = r.time", "t.server_id = r.server_id"}
	for _, c := range columns {
		if c != "time" && c != "server_id" {
			conditions = append(conditions, fmt.Sprintf("t.%[1]s is not distinct from r.%[1]s", quote(c)))
		}
	}
	return strings.Join(conditions, " and "), nil
}

// bounds returns the servers and the times of the rows.
func (c *copying) bounds() (servers []uuid.UUID, from, to time.Time) {
	for i, s := range c.sections {
		if !slices.Contains(servers, s.ServerID) {
			servers = append(servers, s.ServerID)
		}
		if i == 0 || s.MinTime.Before(from) {
			from = s.MinTime
		}
		if i == 0 || s.MaxTime.After(to) {
			to = s.MaxTime
		}
	}
	return servers, from, to
}

// aloneIn errs unless the rows that equal the batch's are its own if they are
// as many. They may be another batch's only where its sections overlap with
// ours, and only if some of ours are missing meanwhile: so where there are such
// sections the table must have as many rows as the ledger says.
func (s *Store) aloneIn(ctx context.Context, ses session, b *batch.Batch) error {
	for i := range b.Sections {
		section := &b.Sections[i]
		family, known := s.catalogue.Family(section.Family)
		if !known || family.Dimension || section.Rows == 0 {
			continue
		}
		if err := alone(ctx, ses, b, section, family); err != nil {
			return err
		}
	}
	return nil
}

// claims sums the sections of one server's rows that overlap with a time range,
// of as many batches as there are. Rows are not older than 30 days against
// their batch, and at most minutes younger.
const claims = `
select count(distinct (b.sent_at, b.batch_id)), coalesce(sum(x.rows), 0)::bigint, min(x.min_time), max(x.max_time)
from ingest.batch b, jsonb_to_recordset(b.sections) as x(family text, server_id uuid, min_time timestamptz, max_time timestamptz, rows bigint)
where b.collector_id = $1 and b.sent_at >= $4::timestamptz - interval '1 day'
  and x.family = $2 and x.server_id = $3 and x.rows > 0 and x.min_time <= $5 and x.max_time >= $4`

func alone(ctx context.Context, ses session, b *batch.Batch, section *batch.Section, family *catalogue.Family) error {
	from, to := section.MinTime, section.MaxTime
	for {
		var batches, claimed, has int64
		var first, last *time.Time
		err := ses.QueryRow(ctx, claims, b.CollectorID, section.Family, section.ServerID, from, to).Scan(&batches, &claimed, &first, &last)
		if err != nil {
			return ses.failed("look for overlapping batches", err)
		}
		if batches <= 1 {
			return nil
		}
		if first.Before(from) || last.After(to) { // what overlaps with those counts too
			from, to = earlier(*first, from), later(*last, to)
			continue
		}
		err = ses.QueryRow(ctx, "select count(*) from "+quote("metrics", family.Name)+" where server_id = $1 and time between $2 and $3",
			section.ServerID, from, to).Scan(&has)
		if err != nil {
			return ses.failed("count "+family.Name, err)
		}
		if has != claimed {
			return conflict("other batches have rows of %s at the same times, and the table has %d rows where the ledger says %d: it cannot be told which are this batch's",
				family.Name, has, claimed)
		}
		return nil
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
