package pgstore

import (
	"context"

	"github.com/jackc/pgx/v5"

	"pganalytics/pkg/authsvc"
)

// Witness returns what writes an act down in the transaction that conn is in,
// of whoever does it. The id is the database's, and changes are JSON.
func Witness(e authsvc.AuditEntry) func(ctx context.Context, conn *pgx.Conn) error {
	return func(ctx context.Context, conn *pgx.Conn) error {
		return audit(ctx, conn, actOf(e))
	}
}

// Record writes down an act that is done elsewhere, in a transaction of its
// own.
func (s *Store) Record(ctx context.Context, e authsvc.AuditEntry) error {
	return s.inTx(ctx, "audit "+e.Action, func(tx pgx.Tx) error { return audit(ctx, tx, actOf(e)) })
}

func actOf(e authsvc.AuditEntry) act {
	return act{
		at: e.At, actor: e.Actor, action: e.Action, result: e.Result,
		resourceType: e.ResourceType, resourceID: e.ResourceID, source: e.Source, changes: e.Changes,
	}
}
