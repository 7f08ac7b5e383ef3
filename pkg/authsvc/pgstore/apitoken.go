package pgstore

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/identity"
)

const apiTokenColumns = `
id, name, secret_hash, scopes, created_by, created_at, expires_at, revoked_at, last_used_at`

func scanAPIToken(row pgx.CollectableRow) (authsvc.APIToken, error) {
	var (
		t             authsvc.APIToken
		revoked, used *time.Time
		scopes        []string
	)
	err := row.Scan(&t.ID, &t.Name, &t.Hash, &scopes, &t.CreatedBy, &t.CreatedAt, &t.ExpiresAt, &revoked, &used)
	t.Scopes, t.RevokedAt, t.LastUsedAt = scopes, value(revoked), value(used)
	return t, err
}

const insertAPIToken = `
insert into identity.api_token (id, name, secret_hash, scopes, created_by, created_at, expires_at)
values ($1, $2, $3, $4, $5, $6, $7)`

// A push scope names a collector that is there.
const collectorThere = `
select exists (select from identity.collector where id = $1 and deleted_at is null)`

// CreateAPIToken stores the token.
func (s *Store) CreateAPIToken(ctx context.Context, t authsvc.APIToken, by authsvc.Act) error {
	return s.inTx(ctx, "store API token", func(tx pgx.Tx) error {
		if t.Scopes.CanPush() {
			var there bool
			if err := tx.QueryRow(ctx, collectorThere, t.Scopes.Push()).Scan(&there); err != nil {
				return err
			}
			if !there {
				return authsvc.ErrNoCollector
			}
		}
		_, err := tx.Exec(ctx, insertAPIToken, t.ID, t.Name, t.Hash, []string(t.Scopes), t.CreatedBy, t.CreatedAt, t.ExpiresAt)
		if err != nil {
			return err
		}
		return auditAPIToken(ctx, tx, "api_token.create", t.ID, by,
			map[string]any{"name": t.Name, "scopes": t.Scopes, "expires_at": t.ExpiresAt})
	})
}

func auditAPIToken(ctx context.Context, tx pgx.Tx, action, id string, by authsvc.Act, changes map[string]any) error {
	return audit(ctx, tx, act{
		at: by.At, actor: by.Actor, action: action, result: "success",
		resourceType: "api_token", resourceID: id, source: by.Source, changes: changes,
	})
}

// ListAPITokens returns one page, newest first.
func (s *Store) ListAPITokens(ctx context.Context, page authsvc.Page) ([]authsvc.APIToken, int, error) {
	var total int
	if err := s.pool.QueryRow(ctx, `select count(*) from identity.api_token`).Scan(&total); err != nil {
		return nil, 0, classify("count API tokens", err)
	}
	rows, err := s.pool.Query(ctx, `select`+apiTokenColumns+`
from identity.api_token
order by created_at desc, id
limit $1 offset $2`, page.Size, page.Offset())
	if err != nil {
		return nil, 0, classify("list API tokens", err)
	}
	found, err := pgx.CollectRows(rows, scanAPIToken)
	return found, total, classify("list API tokens", err)
}

const revokeAPIToken = `
update identity.api_token
set revoked_at = coalesce(revoked_at, $2)
where id = $1
returning` + apiTokenColumns

// RevokeAPIToken ends a token's use.
func (s *Store) RevokeAPIToken(ctx context.Context, id string, by authsvc.Act) (authsvc.APIToken, error) {
	var t authsvc.APIToken
	err := s.inTx(ctx, "revoke API token", func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, revokeAPIToken, id, by.At)
		if err != nil {
			return err
		}
		found, err := pgx.CollectRows(rows, scanAPIToken)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return authsvc.ErrNoAPIToken
		}
		t = found[0]
		return auditAPIToken(ctx, tx, "api_token.revoke", id, by, map[string]any{"name": t.Name})
	})
	return t, err
}

const markAPITokens = `
update identity.api_token t
set last_used_at = seen.at
from unnest($1::text[], $2::timestamptz[]) as seen (id, at)
where t.id = seen.id and (t.last_used_at is null or t.last_used_at < seen.at)`

// MarkAPITokens notes when tokens were last used. It is not audited.
func (s *Store) MarkAPITokens(ctx context.Context, lastUse map[string]time.Time) error {
	ids, times := make([]string, 0, len(lastUse)), make([]time.Time, 0, len(lastUse))
	for id, at := range lastUse {
		ids, times = append(ids, id), append(times, at)
	}
	_, err := s.pool.Exec(ctx, markAPITokens, ids, times)
	return classify("mark API tokens used", err)
}

const selectKnownTokens = `
select id, secret_hash, scopes, expires_at, revoked_at is not null
from identity.api_token`

func (s *Store) knownTokens(ctx context.Context) ([]identity.APIToken, error) {
	rows, err := s.pool.Query(ctx, selectKnownTokens)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (identity.APIToken, error) {
		var t identity.APIToken
		var scopes []string
		err := row.Scan(&t.ID, &t.Hash, &scopes, &t.ExpiresAt, &t.Revoked)
		t.Scopes = scopes
		return t, err
	})
}
