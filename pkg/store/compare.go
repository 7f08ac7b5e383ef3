package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"pganalytics/pkg/catalogue"
)

// Compared tells how the table of one family was compared with the ledger.
type Compared struct {
	Name       string
	LeftOut    string    // why it was not, else empty
	From       time.Time // of the first hour compared; zero: all were
	Ranges     int64     // of a server and an hour, or a few of them
	LedgerRows int64     // in those ranges
	TableRows  int64
}

// Mismatch is rows of one family from one server in one hour, or in several if
// sections have rows of more than one, that are not those of the ledger.
type Mismatch struct {
	Family      string
	ServerID    uuid.UUID
	Server      string    // its name; empty when it is not known
	CollectorID uuid.UUID // zero when it is not known
	From, To    time.Time // whole hours, To not included
	LedgerRows  int64
	TableRows   int64
}

const (
	// What the ledger says was stored, of every family in one go through it,
	// for its sections are costly to open. A section counts for the hours of
	// its first and its last row.
	makeClaimed = `
create temporary table claimed (family text, server_id uuid, begins timestamptz, ends timestamptz, rows bigint) on commit drop`

	fillClaimed = `
insert into pg_temp.claimed
select s.family, s.server_id, date_trunc('hour', s.min_time), date_trunc('hour', s.max_time), sum(s.rows)::bigint
from ingest.batch b
cross join jsonb_to_recordset(b.sections) as s(family text, server_id uuid, min_time timestamptz, max_time timestamptz, rows bigint)
where b.sent_at >= $1 and ($4::uuid[] is null or b.collector_id = any($4)) and s.max_time >= $2 and s.min_time < $3
group by 1, 2, 3, 4`

	// Both sides in the order of servers and hours, to be added up on the way.
	compareFamily = `
select c.server_id, coalesce(v.name, ''), coalesce(v.collector_id, '00000000-0000-0000-0000-000000000000'), c.begins, c.ends, c.claimed, c.counted
from (select server_id, begins, ends, rows as claimed, 0 as counted from pg_temp.claimed where family = $1 and ends >= $2
      union all
      select server_id, date_trunc('hour', time), date_trunc('hour', time), 0, count(*)
      from %s
      where time >= $2 and time < $3
        and ($4::uuid[] is null or server_id in (select server_id from metrics.server where collector_id = any($4)))
      group by 1, 2) c
left join metrics.server v using (server_id)
order by c.server_id, c.begins`
)

const (
	// rowsAhead is how far a row may lie after the sent_at of its batch, and
	// more: the gateways take 10 minutes unless they are told otherwise.
	rowsAhead = time.Hour

	// dropAhead is kept from the end of a family's retention: chunks are dropped
	// meanwhile.
	dropAhead = time.Hour
)

// Compare counts the rows of all families by server and hour and holds them
// against the ledger, both as of one moment. It calls mismatch, in the order of
// families, servers and hours, for those that differ. Of the rows it takes the
// whole hours within from and to, zero for unbounded, and those of the servers
// of these collectors, of all if there are none.
//
// Dimensions are left out, for their rows are stored once whatever was sent;
// and so are hours that retention or the pruning of the ledger may have
// touched. It may take long; only ctx ends it. Errors are mismatch's, or
// classified like those of Load.
func (s *Store) Compare(ctx context.Context, from, to time.Time, collectors []uuid.UUID, mismatch func(Mismatch) error) (families []Compared, err error) {
	err = s.session(ctx, func(ses session) error {
		// Ledger and rows are committed together, so one snapshot has both or
		// neither. It is not read-only because of the temporary table.
		if _, err := ses.Exec(ctx, "begin isolation level repeatable read; set local statement_timeout = 0"); err != nil {
			return ses.failed("begin", err)
		}
		c := comparison{ses: ses, from: bound(from, beginOfTime), to: bound(to, endOfTime).Truncate(time.Hour), collectors: pgUUIDs(collectors), mismatch: mismatch}
		if families, err = c.run(ctx, s.catalogue); err != nil {
			return err
		}
		_, err := ses.Exec(ctx, "rollback")
		return ses.failed("end", err)
	})
	if err != nil {
		return nil, fmt.Errorf("compare tables and ledger: %w", err)
	}
	return families, nil
}

type comparison struct {
	ses        session
	from, to   time.Time
	collectors []pgtype.UUID
	mismatch   func(Mismatch) error
}

func (c *comparison) run(ctx context.Context, cat *catalogue.Catalogue) ([]Compared, error) {
	var now, floor time.Time
	if err := c.ses.QueryRow(ctx, "select now(), sent_at from ingest.floor").Scan(&now, &floor); err != nil {
		return nil, c.ses.failed("read the floor", err)
	}
	if known := floor.Add(rowsAhead); floor.After(time.Unix(0, 0)) && known.After(c.from) {
		c.from = known
	}
	if _, err := c.ses.Exec(ctx, makeClaimed); err != nil {
		return nil, c.ses.failed("make a temporary table", err)
	}
	if _, err := c.ses.Exec(ctx, fillClaimed, c.from.Add(-rowsAhead), c.from, c.to, c.collectors); err != nil {
		return nil, c.ses.failed("read the ledger", err)
	}
	families, err := c.unknown(ctx, cat)
	if err != nil {
		return nil, err
	}
	for _, f := range cat.Families() {
		if f.Dimension {
			families = append(families, Compared{Name: f.Name, LeftOut: "dimension: each content is stored once"})
			continue
		}
		compared, err := c.family(ctx, f, wholeHour(later(c.from, now.Add(dropAhead-f.Retention))))
		if err != nil {
			return nil, fmt.Errorf("family %s: %w", f.Name, err)
		}
		families = append(families, compared)
	}
	return families, nil
}

// unknown returns the families that the ledger has and the catalogue has not.
func (c *comparison) unknown(ctx context.Context, cat *catalogue.Catalogue) ([]Compared, error) {
	var families []Compared
	rows, err := c.ses.Query(ctx, "select distinct family from pg_temp.claimed order by family")
	if err != nil {
		return nil, c.ses.failed("list the ledger's families", err)
	}
	var name string
	_, err = pgx.ForEachRow(rows, []any{&name}, func() error {
		if _, known := cat.Family(name); !known {
			families = append(families, Compared{Name: name, LeftOut: "not in the catalogue of this command"})
		}
		return nil
	})
	return families, c.ses.failed("list the ledger's families", err)
}

// family compares one table from an hour on.
func (c *comparison) family(ctx context.Context, f *catalogue.Family, from time.Time) (Compared, error) {
	sum := sums{Compared: Compared{Name: f.Name}, from: from, to: c.to, mismatch: c.mismatch}
	if from.After(beginOfTime) {
		sum.From = from
	}
	rows, err := c.ses.Query(ctx, fmt.Sprintf(compareFamily, quote("metrics", f.Name)), f.Name, from, c.to, c.collectors)
	if err != nil {
		return sum.Compared, c.ses.failed("count", err)
	}
	next := Mismatch{Family: f.Name}
	_, err = pgx.ForEachRow(rows, []any{&next.ServerID, &next.Server, &next.CollectorID, &next.From, &next.To, &next.LedgerRows, &next.TableRows}, func() error {
		return sum.add(next)
	})
	if err == nil {
		err = sum.close()
	}
	return sum.Compared, c.ses.failed("count", err)
}

// sums adds up what comes in the order of servers and hours. Hours that a
// section spans make one range, so that a batch around the full hour looks
// right; a range that reaches beyond what is compared is not judged.
type sums struct {
	Compared
	from, to time.Time
	mismatch func(Mismatch) error
	open     *Mismatch // To is the beginning of its last hour
}

func (s *sums) add(next Mismatch) error {
	if s.open != nil && s.open.ServerID == next.ServerID && !next.From.After(s.open.To) {
		s.open.To = later(s.open.To, next.To)
		s.open.LedgerRows += next.LedgerRows
		s.open.TableRows += next.TableRows
		return nil
	}
	if err := s.close(); err != nil {
		return err
	}
	s.open = &next
	return nil
}

func (s *sums) close() error {
	r := s.open
	s.open = nil
	if r == nil || r.From.Before(s.from) || !r.To.Before(s.to) {
		return nil
	}
	s.Ranges++
	s.LedgerRows += r.LedgerRows
	s.TableRows += r.TableRows
	if r.LedgerRows == r.TableRows {
		return nil
	}
	r.From, r.To = r.From.UTC(), r.To.UTC().Add(time.Hour)
	return s.mismatch(*r)
}

// wholeHour returns the first full hour not before t.
func wholeHour(t time.Time) time.Time {
	t = t.UTC()
	if hour := t.Truncate(time.Hour); !hour.Equal(t) {
		return hour.Add(time.Hour)
	}
	return t
}
