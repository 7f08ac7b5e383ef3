package pgstore

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"pganalytics/pkg/identity"
)

const markUsed = `
with seen as (select * from unnest($1::text[], $2::timestamptz[]) as seen (thumbprint, at)),
marked as (
    update identity.certificate c
    set first_used_at = least(c.first_used_at, seen.at)
    from seen
    where c.thumbprint = seen.thumbprint and c.first_used_at is distinct from least(c.first_used_at, seen.at)
)
update identity.collector k
set last_seen = latest.at
from (
    select c.collector_id, max(seen.at) as at
    from seen join identity.certificate c using (thumbprint)
    group by c.collector_id
) latest
where k.id = latest.collector_id and (k.last_seen is null or k.last_seen < latest.at)`

// MarkUsed notes when certificates were last seen in use. It locks no collector
// for longer than its statement and is not audited.
func (s *Store) MarkUsed(ctx context.Context, lastUse map[string]time.Time) error {
	thumbprints, times := make([]string, 0, len(lastUse)), make([]time.Time, 0, len(lastUse))
	for thumbprint, at := range lastUse {
		thumbprints, times = append(thumbprints, thumbprint), append(times, at)
	}
	_, err := s.pool.Exec(ctx, markUsed, thumbprints, times)
	return classify("mark certificates used", err)
}

const selectCollectors = `
select k.id, k.status, k.generation, c.thumbprint, k.hostname, k.updated_at
from identity.collector k
join identity.certificate c on c.collector_id = k.id and c.generation = k.generation`

const selectRevocations = `
select thumbprint, collector_id, not_after, revoked_at
from identity.certificate
where revoked_at is not null and not_after > $1`

// Directory returns all that verifiers must know.
func (s *Store) Directory(ctx context.Context, endAfter time.Time) ([]identity.Collector, []identity.Revocation, error) {
	rows, err := s.pool.Query(ctx, selectRevocations, endAfter)
	if err != nil {
		return nil, nil, classify("read revocations", err)
	}
	revocations, err := pgx.CollectRows(rows, pgx.RowToStructByPos[identity.Revocation])
	if err != nil {
		return nil, nil, classify("read revocations", err)
	}
	if rows, err = s.pool.Query(ctx, selectCollectors); err != nil {
		return nil, nil, classify("read collectors", err)
	}
	collectors, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (identity.Collector, error) {
		var c identity.Collector
		var status string
		if err := row.Scan(&c.ID, &status, &c.Generation, &c.Thumbprint, &c.Hostname, &c.ChangedAt); err != nil {
			return c, err
		}
		c.Status, err = identity.ParseStatus(status)
		return c, err
	})
	return collectors, revocations, classify("read collectors", err)
}
