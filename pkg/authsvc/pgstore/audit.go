package pgstore

import (
	"context"
	"net/netip"
	"time"

	"github.com/jackc/pgx/v5"

	"pganalytics/pkg/authsvc"
)

const auditWhere = `
from identity.audit
where ($1 = '' or actor = $1) and ($2 = '' or action = $2) and ($3 = '' or resource_type = $3)
  and ($4 = '' or resource_id = $4) and ($5 = '' or result = $5)
  and ($6::timestamptz is null or at >= $6) and ($7::timestamptz is null or at < $7)`

// ListAudit returns one page, newest first.
func (s *Store) ListAudit(ctx context.Context, q authsvc.AuditQuery) ([]authsvc.AuditEntry, int, error) {
	args := []any{q.Actor, q.Action, q.ResourceType, q.ResourceID, q.Result, orNull(q.Since), orNull(q.Until)}
	var total int
	if err := s.pool.QueryRow(ctx, `select count(*)`+auditWhere, args...).Scan(&total); err != nil {
		return nil, 0, classify("count audit", err)
	}
	rows, err := s.pool.Query(ctx, `
select id, at, actor, action, resource_type, resource_id, result, source_ip, changes`+auditWhere+`
order by at desc, id desc
limit $8 offset $9`, append(args, q.Size, q.Offset())...)
	if err != nil {
		return nil, 0, classify("list audit", err)
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (authsvc.AuditEntry, error) {
		var e authsvc.AuditEntry
		var source *netip.Prefix // what pgx makes of inet
		err := row.Scan(&e.ID, &e.At, &e.Actor, &e.Action, &e.ResourceType, &e.ResourceID, &e.Result, &source, &e.Changes)
		e.Source = value(source).Addr()
		return e, err
	})
	return found, total, classify("list audit", err)
}

// Refused writes down what was refused, folded.
func (s *Store) Refused(ctx context.Context, refusals []authsvc.Refusal) error {
	return s.inTx(ctx, "audit refusals", func(tx pgx.Tx) error {
		for _, r := range refusals {
			err := audit(ctx, tx, act{
				at: r.Minute, actor: "anonymous", action: r.Action, result: "refused",
				resourceType: "account", resourceID: r.Account, source: r.Source,
				changes: map[string]any{"count": r.Count},
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func orNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
