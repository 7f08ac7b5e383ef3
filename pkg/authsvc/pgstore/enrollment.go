package pgstore

import (
	"context"
	"net/netip"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pganalytics/pkg/authsvc"
)

const insertEnrollmentToken = `
insert into identity.enrollment_token
    (id, secret_hash, bound_name, is_list, bound_source, collector_id, created_by, created_at, expires_at)
values ($1, $2, nullif($3, ''), $4, $5, $6, $7, $8, $9)`

const insertEnrollmentNames = `
insert into identity.enrollment_name (token_id, name)
select $1, unnest($2::text[])`

// CreateEnrollmentToken stores the token. One that re-enrols is bound to the
// name of its collector.
func (s *Store) CreateEnrollmentToken(ctx context.Context, t authsvc.EnrollmentToken) error {
	return s.inTx(ctx, "store enrolment token", func(tx pgx.Tx) error {
		if t.CollectorID != uuid.Nil {
			k, err := lockCollector(ctx, tx, t.CollectorID)
			if err != nil {
				return err
			}
			if t.BoundName != "" && t.BoundName != k.name {
				return authsvc.ErrNoCollector
			}
			t.BoundName = k.name
		}
		return addEnrollmentToken(ctx, tx, t)
	})
}

func addEnrollmentToken(ctx context.Context, tx pgx.Tx, t authsvc.EnrollmentToken) error {
	var source *netip.Prefix
	if t.BoundSource.IsValid() {
		source = &t.BoundSource
	}
	isList := len(t.Names) > 0
	_, err := tx.Exec(ctx, insertEnrollmentToken, t.ID, t.Hash[:], t.BoundName, isList, source, nullable(t.CollectorID),
		t.CreatedBy, t.CreatedAt, t.ExpiresAt)
	if err != nil {
		return err
	}
	if isList {
		if _, err := tx.Exec(ctx, insertEnrollmentNames, t.ID, t.Names); err != nil {
			return err
		}
	}
	changes := map[string]any{"bound_name": t.BoundName, "expires_at": t.ExpiresAt}
	if isList {
		changes["names"] = t.Names
	}
	if source != nil {
		changes["bound_source"] = source
	}
	if t.CollectorID != uuid.Nil {
		changes["collector_id"] = t.CollectorID
	}
	return audit(ctx, tx, act{
		at: t.CreatedAt, actor: t.CreatedBy, action: "enrollment_token.create", result: "success",
		resourceType: "enrollment_token", resourceID: t.ID, source: t.CreatedFrom, changes: changes,
	})
}

// nullable is null for the nil UUID.
func nullable(id uuid.UUID) *uuid.UUID {
	if id == uuid.Nil {
		return nil
	}
	return &id
}

// Of a list the names say what is used; the token is when none is left.
const (
	enrollmentTokenColumns = `
select t.id, t.secret_hash, coalesce(t.bound_name, ''), t.bound_source, t.collector_id, t.created_by, t.created_at, t.expires_at,
    case when t.is_list then n.used_at else t.used_at end, t.revoked_at,
    coalesce(n.names, '{}'), coalesce(n.used, '{}'),
    exists (select from identity.certificate c
        where c.enrolled_by = w.id and c.first_used_at is null and c.revoked_at is null)`

	enrollmentTokenNames = `
left join lateral (
    select array_agg(name order by name) as names, array_agg(name order by name) filter (where used_at is not null) as used,
        case when bool_and(used_at is not null) then max(used_at) end as used_at
    from identity.enrollment_name where token_id = t.id
) n on t.is_list`

	// A row also for an id that is not there: it must take as long.
	oneEnrollmentToken = enrollmentTokenColumns + `
from (values ($1::text)) as w (id)
left join identity.enrollment_token t on t.id = w.id` + enrollmentTokenNames

	enrollmentTokens = enrollmentTokenColumns + `
from identity.enrollment_token t
cross join lateral (select t.id) as w` + enrollmentTokenNames
)

// EnrollmentToken returns the token, or the zero one, which fits no secret.
func (s *Store) EnrollmentToken(ctx context.Context, id string) (authsvc.EnrollmentToken, error) {
	rows, err := s.pool.Query(ctx, oneEnrollmentToken, id)
	if err != nil {
		return authsvc.EnrollmentToken{}, classify("read enrolment token", err)
	}
	t, err := pgx.CollectExactlyOneRow(rows, scanEnrollmentToken)
	t.ID = id
	return t, classify("read enrolment token", err)
}

// ListEnrollmentTokens returns one page, newest first.
func (s *Store) ListEnrollmentTokens(ctx context.Context, page authsvc.Page) ([]authsvc.EnrollmentToken, int, error) {
	var total int
	if err := s.pool.QueryRow(ctx, "select count(*) from identity.enrollment_token").Scan(&total); err != nil {
		return nil, 0, classify("count enrolment tokens", err)
	}
	rows, err := s.pool.Query(ctx, enrollmentTokens+" order by t.created_at desc, t.id limit $1 offset $2", page.Size, page.Offset())
	if err != nil {
		return nil, 0, classify("list enrolment tokens", err)
	}
	tokens, err := pgx.CollectRows(rows, scanEnrollmentToken)
	return tokens, total, classify("list enrolment tokens", err)
}

func scanEnrollmentToken(row pgx.CollectableRow) (authsvc.EnrollmentToken, error) {
	var (
		t                                 authsvc.EnrollmentToken
		id, createdBy                     *string
		hash                              []byte
		source                            *netip.Prefix
		collector                         *uuid.UUID
		created, expires, used, revokedAt *time.Time
	)
	err := row.Scan(&id, &hash, &t.BoundName, &source, &collector, &createdBy, &created, &expires,
		&used, &revokedAt, &t.Names, &t.UsedNames, &t.Unanswered)
	copy(t.Hash[:], hash)
	t.ID, t.CreatedBy, t.CreatedAt, t.ExpiresAt = value(id), value(createdBy), value(created), value(expires)
	t.BoundSource, t.CollectorID, t.UsedAt, t.RevokedAt = value(source), value(collector), value(used), value(revokedAt)
	return t, err
}

// value is what p points to, or the zero value.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

const revokeEnrollmentToken = `
update identity.enrollment_token
set revoked_at = coalesce(revoked_at, $2)
where id = $1`

// RevokeEnrollmentToken ends a token's use.
func (s *Store) RevokeEnrollmentToken(ctx context.Context, id string, by authsvc.Act) error {
	return s.inTx(ctx, "revoke enrolment token", func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, revokeEnrollmentToken, id, by.At)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return authsvc.ErrNoEnrollmentToken
		}
		return audit(ctx, tx, act{
			at: by.At, actor: by.Actor, action: "enrollment_token.revoke", result: "success",
			resourceType: "enrollment_token", resourceID: id, source: by.Source,
		})
	})
}
