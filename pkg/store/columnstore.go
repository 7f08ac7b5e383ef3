package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"pganalytics/pkg/catalogue"
)

// columnstoreMargin is how much longer than the replay window a chunk stays in
// rows. What comes later is taken as well, but a compressed chunk takes it
// beside itself and has to be compressed again.
const columnstoreMargin = 24 * time.Hour

// policy is what the database does about a family's old chunks.
type policy struct {
	enabled bool           // its table has the columnstore
	after   *time.Duration // chunks whose end is older are compressed; nil: none are
}

// The setting is in the job's configuration, under a name from when this was
// called compression.
const readPolicies = `
select h.hypertable_name::text, h.compression_enabled,
       (select extract(epoch from (j.config->>'compress_after')::interval)::bigint
        from timescaledb_information.jobs j
        where j.hypertable_schema = h.hypertable_schema and j.hypertable_name = h.hypertable_name and j.config ? 'compress_after'
        limit 1)
from timescaledb_information.hypertables h
where h.hypertable_schema = 'metrics' and current_setting('timescaledb.license', true) = 'timescale'`

// columnstore has chunks compressed once no replay is to be expected for them
// any more, where the database's edition can do it: the Apache edition cannot,
// and is asked for nothing else. It returns the families whose policy it set.
// The ledger is never compressed, for it is looked up by key in every load.
func (s *Store) columnstore(ctx context.Context, ses session) ([]string, error) {
	policies, err := currentPolicies(ctx, ses)
	if err != nil {
		return nil, ses.failed("read the columnstore's policies", err)
	}
	after := (s.cfg.ReplayWindow + columnstoreMargin).Truncate(time.Second) // as it is read back
	var set []string
	var errs []error
	for _, f := range s.catalogue.Families() {
		p, exists := policies[f.Name]
		if !exists || f.Dimension || p.enabled && p.after != nil && *p.after == after {
			continue
		}
		err := ses.briefly(ctx, func() error {
			_, err := ses.Exec(ctx, strings.Join(columnstoreStatements(f, p, after), ";\n"), pgx.QueryExecModeSimpleProtocol)
			return ses.failed("set the columnstore's policy", err)
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("family %s: %w", f.Name, err))
		} else {
			set = append(set, f.Name)
		}
		if ses.IsClosed() {
			break
		}
	}
	return set, errors.Join(errs...)
}

func currentPolicies(ctx context.Context, ses session) (map[string]policy, error) {
	rows, err := ses.Query(ctx, readPolicies)
	if err != nil {
		return nil, err
	}
	policies := map[string]policy{}
	var name string
	var enabled bool
	var seconds *int64
	_, err = pgx.ForEachRow(rows, []any{&name, &enabled, &seconds}, func() error {
		p := policy{enabled: enabled}
		if seconds != nil {
			after := time.Duration(*seconds) * time.Second
			p.after = &after
		}
		policies[name] = p
		return nil
	})
	return policies, err
}

// columnstoreStatements turn the columnstore on, unless an operator has in a
// way of their own, and make the policy anew: it cannot be changed. Rows of one
// server lie together, and in them those of one key, as they are asked for.
func columnstoreStatements(f *catalogue.Family, p policy, after time.Duration) []string {
	name := quote("metrics", f.Name)
	var statements []string
	if !p.enabled {
		var order []string
		for _, k := range slices.Concat(f.Key, []string{"time"}) {
			order = append(order, quote(k))
		}
		statements = append(statements, fmt.Sprintf(
			"alter table %s set (timescaledb.enable_columnstore = true, timescaledb.segmentby = 'server_id', timescaledb.orderby = %s)",
			name, literal(strings.Join(order, ", ")+" desc")))
	}
	if p.after != nil {
		statements = append(statements, fmt.Sprintf("call remove_columnstore_policy(%s, if_exists => true)", literal(name)))
	}
	return append(statements, fmt.Sprintf("call add_columnstore_policy(%s, after => %s, if_not_exists => true)", literal(name), interval(after)))
}
