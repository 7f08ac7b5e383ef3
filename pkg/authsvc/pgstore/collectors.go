package pgstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/identity"
)

// Of what authsvc does not write it reads two columns: when a batch of the
// collector was last stored, by the database's clock, and whether there ever
// was one. Collectors whose every batch was empty have no server; they count as
// never stored once they fall silent.
const collectorStates = `
with recent as (
    select collector_id, max(stored_at) as at
    from ingest.batch
    where stored_at > now() - $1::interval
    group by collector_id
), ever as (
    select collector_id, least(max(last_seen), now()) as at -- by the sender's clock
    from metrics.server
    group by collector_id
), state as (
    select k.id, k.name, k.hostname, k.address, k.version,
        case when k.status in ('disabled', 'locked') then k.status
             when recent.at is not null then 'active'
             when ever.at is not null then 'offline'
             else 'registered' end as status,
        greatest(recent.at, ever.at, k.last_seen) as last_seen,
        k.generation, c.thumbprint, c.not_after,
        greatest(own.version, case when coalesce(own.document, '') = '' then fleet.version end, 0) as config_version,
        k.created_at, k.updated_at
    from identity.collector k
    join identity.certificate c on c.collector_id = k.id and c.generation = k.generation
    left join recent on recent.collector_id = k.id
    left join ever on ever.collector_id = k.id
    left join lateral (
        select version, document from identity.collector_config v where v.collector_id = k.id order by version desc limit 1
    ) own on true
    left join (
        select max(version) as version from identity.collector_config where collector_id is null
    ) fleet on true
    where k.deleted_at is null and ($2::uuid is null or k.id = $2) and ($3 = '' or k.name = $3)
)`

const countCollectors = collectorStates + `
select count(*) from state where $4 = '' or status = $4`

const listCollectors = collectorStates + `
select * from state where $4 = '' or status = $4
order by name
limit $5 offset $6`

const tallyCollectors = collectorStates + `
select status, count(*), count(*) filter (where not_after < now() + $4::interval) from state group by status`

// Tally is how many collectors there are, by their status.
type Tally struct {
	ByStatus map[identity.Status]int
	Expiring int // of those that are active or offline, whose certificate ends soon
}

// TallyCollectors counts collectors: active ones had a batch stored within
// activeWithin, and expiring ones have a certificate that ends within
// endsWithin.
func (s *Store) TallyCollectors(ctx context.Context, activeWithin, endsWithin time.Duration) (Tally, error) {
	rows, err := s.pool.Query(ctx, tallyCollectors, activeWithin, nullable(uuid.Nil), "", endsWithin)
	if err != nil {
		return Tally{}, classify("tally collectors", err)
	}
	t := Tally{ByStatus: map[identity.Status]int{}}
	var name string
	var all, expiring int
	_, err = pgx.ForEachRow(rows, []any{&name, &all, &expiring}, func() error {
		status, err := identity.ParseStatus(name)
		if err != nil {
			return err
		}
		t.ByStatus[status] = all
		if status == identity.Active || status == identity.Offline {
			t.Expiring += expiring
		}
		return nil
	})
	return t, classify("tally collectors", err)
}

// ListCollectors returns one page, by name.
func (s *Store) ListCollectors(ctx context.Context, q authsvc.CollectorQuery) ([]authsvc.Collector, int, error) {
	status := ""
	if q.Status != 0 {
		status = q.Status.String()
	}
	args := []any{q.ActiveWithin, nullable(q.ID), q.Name, status}
	var total int
	if err := s.pool.QueryRow(ctx, countCollectors, args...).Scan(&total); err != nil {
		return nil, 0, classify("count collectors", err)
	}
	rows, err := s.pool.Query(ctx, listCollectors, append(args, q.Size, q.Offset())...)
	if err != nil {
		return nil, 0, classify("list collectors", err)
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (authsvc.Collector, error) {
		var (
			c        authsvc.Collector
			status   string
			lastSeen *time.Time
		)
		err := row.Scan(&c.ID, &c.Name, &c.Hostname, &c.Address, &c.Version, &status, &lastSeen,
			&c.Generation, &c.Thumbprint, &c.CertificateExpiresAt, &c.ConfigVersion, &c.CreatedAt, &c.UpdatedAt)
		if err != nil {
			return c, err
		}
		c.LastSeen = value(lastSeen)
		c.Status, err = identity.ParseStatus(status)
		return c, err
	})
	return found, total, classify("list collectors", err)
}

// locked is a collector whose row is locked until the transaction ends.
type locked struct {
	identity.Collector // without Thumbprint
	name               string
}

// The row lock lets one change of a collector after the other decide.
const lockCollectorRow = `
select name, status, generation, hostname, updated_at
from identity.collector
where id = $1 and deleted_at is null
for update`

// lockCollector errs with ErrNoCollector.
func lockCollector(ctx context.Context, tx pgx.Tx, id uuid.UUID) (locked, error) {
	k := locked{Collector: identity.Collector{ID: id}}
	var status string
	err := tx.QueryRow(ctx, lockCollectorRow, id).Scan(&k.name, &status, &k.Generation, &k.Hostname, &k.ChangedAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return k, authsvc.ErrNoCollector
	}
	if err != nil {
		return k, fmt.Errorf("lock collector: %w", err)
	}
	k.Status, err = identity.ParseStatus(status)
	return k, err
}

// usable errs for a collector that is not let in.
func usable(status identity.Status) error {
	switch status {
	case identity.Locked:
		return authsvc.ErrCollectorLocked
	case identity.Disabled:
		return authsvc.ErrCollectorDisabled
	}
	return nil
}

// updated_at rises even if this clock is behind the one that set it before:
// verifiers take the record with the later time.
const setStatus = `
update identity.collector k
set status = $2, deleted_at = $3, updated_at = greatest($4, updated_at + interval '1 microsecond')
from identity.certificate c
where k.id = $1 and c.collector_id = k.id and c.generation = k.generation
returning k.updated_at, c.thumbprint`

const revokeTokensOf = `
update identity.enrollment_token
set revoked_at = $2
where collector_id = $1 and used_at is null and revoked_at is null`

// ChangeCollector does what authsvc.Operation describes.
func (s *Store) ChangeCollector(ctx context.Context, c authsvc.Change) (authsvc.Changed, error) {
	var done authsvc.Changed
	err := s.inTx(ctx, "change collector", func(tx pgx.Tx) error {
		k, err := lockCollector(ctx, tx, c.CollectorID)
		if err != nil {
			return err
		}
		former := k.Status
		if k.Status, err = after(c.Operation, former); err != nil {
			return err
		}
		if c.Operation == authsvc.Unlock || c.Operation == authsvc.Delete {
			if done.Revocations, err = revokeCertificates(ctx, tx, k.ID, c.By.At); err != nil {
				return err
			}
			// What was made to enrol it again before must not outlive this.
			if _, err := tx.Exec(ctx, revokeTokensOf, k.ID, c.By.At); err != nil {
				return fmt.Errorf("revoke its enrolment tokens: %w", err)
			}
		}
		var deletedAt *time.Time
		if c.Operation == authsvc.Delete {
			deletedAt = &c.By.At
		}
		if err := tx.QueryRow(ctx, setStatus, k.ID, k.Status.String(), deletedAt, c.By.At).Scan(&k.ChangedAt, &k.Thumbprint); err != nil {
			return fmt.Errorf("set status: %w", err)
		}
		if c.Token != nil {
			token := *c.Token
			token.BoundName = k.name
			if err := addEnrollmentToken(ctx, tx, token); err != nil {
				return err
			}
		}
		done.Record, done.Name = k.Collector, k.name
		return audit(ctx, tx, act{
			at: c.By.At, actor: c.By.Actor, action: "collector." + c.Operation.String(), result: "success",
			resourceType: "collector", resourceID: k.ID.String(), source: c.By.Source,
			changes: map[string]any{"name": k.name, "from": former, "to": k.Status, "certificates_revoked": len(done.Revocations)},
		})
	})
	return done, err
}

// after returns the status that an operation leads to.
func after(o authsvc.Operation, s identity.Status) (identity.Status, error) {
	switch {
	case o == authsvc.Delete:
		return identity.Disabled, nil
	case o == authsvc.Unlock && s == identity.Locked:
		return identity.Registered, nil
	case o == authsvc.Unlock || s == identity.Locked:
		return s, authsvc.ErrStatusConflict
	case o == authsvc.Disable:
		return identity.Disabled, nil
	default:
		return identity.Registered, nil
	}
}

const revokeAll = `
update identity.certificate
set revoked_at = $2
where collector_id = $1 and revoked_at is null
returning thumbprint, collector_id, not_after, revoked_at`

func revokeCertificates(ctx context.Context, tx pgx.Tx, id uuid.UUID, at time.Time) ([]identity.Revocation, error) {
	rows, err := tx.Query(ctx, revokeAll, id, at)
	if err != nil {
		return nil, fmt.Errorf("revoke certificates: %w", err)
	}
	revocations, err := pgx.CollectRows(rows, pgx.RowToStructByPos[identity.Revocation])
	if err != nil {
		return nil, fmt.Errorf("revoke certificates: %w", err)
	}
	return revocations, nil
}
