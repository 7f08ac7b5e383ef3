package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/fault"
)

const (
	// A statement that waits for an exclusive lock holds up every loader that
	// comes after it, so it waits this long only, and tries again.
	ddlLockTimeout = "1s"
	ddlTries       = 60
)

// EnsureSchema makes the tables and columns that the catalogue lists and the
// database lacks, and the rates of families with counters. It may run while batches are loaded and from any number of
// processes at once. When nothing is missing it costs one query. It removes
// nothing: what another catalogue has added stays. A table that contradicts
// the catalogue is an error that names family and column, all of them at once
// and before anything is changed.
func EnsureSchema(ctx context.Context, databaseURL string, cat *catalogue.Catalogue) (err error) {
	cfg, err := ddlSession(databaseURL)
	if err != nil {
		return fmt.Errorf("ensure the schema: %w", err)
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return fmt.Errorf("ensure the schema: %w", fault.Wrap(fault.Unavailable, err))
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }() // and so unlocks
	changes, err := missing(ctx, conn, cat)
	if err != nil || len(changes) == 0 {
		return err
	}
	if _, err := conn.Exec(ctx, "select pg_advisory_lock($1)", int64(schemaLock)); err != nil {
		return session{conn}.failed("ensure the schema: wait for others", err)
	}
	if changes, err = missing(ctx, conn, cat); err != nil { // others may have made it all meanwhile
		return err
	}
	for _, c := range changes {
		if err := c.apply(ctx, conn); err != nil {
			return session{conn}.failed("ensure the schema: "+c.family, err)
		}
	}
	return nil
}

// apply runs the change in one transaction, and again after a while when it
// had to wait for a lock.
func (c change) apply(ctx context.Context, conn *pgx.Conn) error {
	for try := 1; ; try++ {
		// One message of several statements is one transaction.
		_, err := conn.Exec(ctx, "set local lock_timeout = '"+ddlLockTimeout+"';\n"+c.sql, pgx.QueryExecModeSimpleProtocol)
		if err == nil {
			return nil
		}
		pgErr, reported := errors.AsType[*pgconn.PgError](err)
		if !reported || hint(pgErr) != fault.Contended || try == ddlTries {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(100+rand.IntN(400)) * time.Millisecond):
		}
	}
}

// relation is what the database has of a family: its table or its rates.
type relation struct {
	view    bool
	chunk   time.Duration     // 0: no hypertable
	columns map[string]string // name → type as format_type tells it
	order   []string          // of the columns
	comment string
}

func (r relation) dimension() bool { _, ok := r.columns["content_hash"]; return ok }

// missing compares database and catalogue. Tables come before rates, which
// are not needed to load.
func missing(ctx context.Context, conn *pgx.Conn, cat *catalogue.Catalogue) ([]change, error) {
	relations, err := readRelations(ctx, conn)
	if err != nil {
		return nil, session{conn}.failed("ensure the schema: read the tables", err)
	}
	var tables, views []change
	var faults []error
	for _, f := range cat.Families() {
		t, exists := relations[f.Name]
		if !exists {
			tables = append(tables, create(f))
		} else if err := contradictions(f, t); err != nil {
			faults = append(faults, err)
		} else if c, needed := extend(f, t); needed {
			tables = append(tables, c)
		}
		if f.Dimension || len(f.Counters()) == 0 {
			continue
		}
		view, exists := relations[f.Name+catalogue.RatesSuffix]
		if exists && !view.view {
			faults = append(faults, fmt.Errorf("family %[1]s: metrics.%[1]s%[2]s exists and is no view", f.Name, catalogue.RatesSuffix))
		} else if c, needed := rates(f, view, exists); needed {
			views = append(views, c)
		}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("ensure the schema: %w", err)
	}
	return append(tables, views...), nil
}

func readRelations(ctx context.Context, conn *pgx.Conn) (map[string]relation, error) {
	const query = `
select c.relname::text, c.relkind = 'v', coalesce(extract(epoch from d.time_interval), 0)::bigint,
       coalesce(obj_description(c.oid, 'pg_class'), ''), a.attname::text,
       case a.atttypid when 'timestamptz'::regtype then 'timestamptz' else format_type(a.atttypid, a.atttypmod) end
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
left join timescaledb_information.dimensions d
       on d.hypertable_schema = n.nspname and d.hypertable_name = c.relname and d.dimension_number = 1
where n.nspname = 'metrics' and c.relkind in ('r', 'v', 'm', 'p', 'f')
order by c.oid, a.attnum`
	rows, err := conn.Query(ctx, query)
	if err != nil {
		return nil, err
	}
	relations := map[string]relation{}
	var name, text, column, typ string
	var view bool
	var seconds int64
	_, err = pgx.ForEachRow(rows, []any{&name, &view, &seconds, &text, &column, &typ}, func() error {
		r, ok := relations[name]
		if !ok {
			r = relation{view: view, chunk: time.Duration(seconds) * time.Second, columns: map[string]string{}, comment: text}
		}
		r.columns[column] = typ
		r.order = append(r.order, column)
		relations[name] = r
		return nil
	})
	return relations, err
}

// contradictions are what no added column could mend.
func contradictions(f *catalogue.Family, t relation) error {
	if f.Dimension != t.dimension() || !f.Dimension && t.chunk == 0 {
		return fmt.Errorf("family %s: metrics.%s exists and is not a table of this kind; choose another name", f.Name, f.Name)
	}
	var errs []error
	for _, c := range f.Columns {
		has, exists := t.columns[c.Name]
		switch {
		case exists && has != c.Type.String():
			errs = append(errs, fmt.Errorf("family %s: column %s is %s in the database and %s in the catalogue; a type never changes, choose another name",
				f.Name, c.Name, has, c.Type))
		case !exists && f.Dimension && c.NotNull:
			errs = append(errs, fmt.Errorf("family %s: column %s cannot join the key of an existing dimension; choose another family name", f.Name, c.Name))
		}
	}
	return errors.Join(errs...)
}
