package pgstore

import (
	"context"
	"errors"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/identity"
)

const insertEnrollmentToken = `
insert into identity.enrollment_token (id, secret_hash, bound_name, created_by, created_at, expires_at)
values ($1, $2, nullif($3, ''), $4, $5, $6)`

// CreateEnrollmentToken stores the token.
func (s *Store) CreateEnrollmentToken(ctx context.Context, t authsvc.EnrollmentToken) error {
	return s.inTx(ctx, "store enrolment token", func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, insertEnrollmentToken, t.ID, t.Hash[:], t.BoundName, t.CreatedBy, t.CreatedAt, t.ExpiresAt); err != nil {
			return err
		}
		return audit(ctx, tx, act{
			at: t.CreatedAt, actor: t.CreatedBy, action: "enrollment_token.create", result: "success",
			resourceType: "enrollment_token", resourceID: t.ID,
			changes: map[string]any{"bound_name": t.BoundName, "expires_at": t.ExpiresAt},
		})
	})
}

const selectEnrollmentToken = `
select secret_hash, coalesce(bound_name, ''), created_by, created_at, expires_at, used_at is not null or revoked_at is not null
from identity.enrollment_token
where id = $1`

// EnrollmentToken returns the token, or the zero one, which fits no secret.
func (s *Store) EnrollmentToken(ctx context.Context, id string) (authsvc.EnrollmentToken, error) {
	t := authsvc.EnrollmentToken{ID: id}
	var hash []byte
	err := s.pool.QueryRow(ctx, selectEnrollmentToken, id).
		Scan(&hash, &t.BoundName, &t.CreatedBy, &t.CreatedAt, &t.ExpiresAt, &t.Spent)
	if errors.Is(err, pgx.ErrNoRows) {
		return authsvc.EnrollmentToken{ID: id, Spent: true}, nil
	}
	copy(t.Hash[:], hash)
	return t, classify("read enrolment token", err)
}

// The one statement that decides who gets the token. A second request waits for
// the row and then finds it used.
const consumeEnrollmentToken = `
update identity.enrollment_token
set used_at = $3, used_by = $4
where id = $1 and secret_hash = $2
  and used_at is null and revoked_at is null and expires_at > $3
  and (bound_name is null or bound_name = $5)`

const insertCollector = `
insert into identity.collector (id, name, hostname, address, version, status, generation, created_at, updated_at)
values ($1, $2, $3, $4, $5, 'registered', 1, $6, $6)
returning updated_at`

// Register enrols a collector: token, collector, certificate and audit, all or
// nothing.
func (s *Store) Register(ctx context.Context, r authsvc.Registration) (identity.Collector, error) {
	c := identity.Collector{
		ID: r.CollectorID, Status: identity.Registered, Generation: 1,
		Thumbprint: r.Certificate.Thumbprint, Hostname: r.Hostname,
	}
	err := s.inTx(ctx, "store enrolment", func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, consumeEnrollmentToken, r.TokenID, r.TokenHash[:], r.At, r.CollectorID, r.Name)
		if err != nil {
			return err
		}
		if tag.RowsAffected() != 1 {
			return authsvc.ErrEnrollmentRefused
		}
		err = tx.QueryRow(ctx, insertCollector, r.CollectorID, r.Name, r.Hostname, r.Address, r.Version, r.At).Scan(&c.ChangedAt)
		if violates(err, "collector_name_key") {
			return authsvc.ErrNameTaken
		}
		if err != nil {
			return err
		}
		if err := addCertificate(ctx, tx, r.CollectorID, certificate{Certificate: r.Certificate, generation: 1}); err != nil {
			return err
		}
		return audit(ctx, tx, act{
			at: r.At, actor: "enrollment_token:" + r.TokenID, action: "collector.register", result: "success",
			resourceType: "collector", resourceID: r.CollectorID.String(), source: r.Source,
			changes: map[string]any{"name": r.Name, "hostname": r.Hostname, "thumbprint": r.Certificate.Thumbprint},
		})
	})
	return c, err
}

type certificate struct {
	authsvc.Certificate
	generation  int
	predecessor int // 0: none
	isOverlap   bool
}

const insertCertificate = `
insert into identity.certificate
    (thumbprint, collector_id, generation, predecessor, is_overlap, serial, key_hash, der, not_before, not_after)
values ($1, $2, $3, nullif($4, 0), $5, $6, $7, $8, $9, $10)`

func addCertificate(ctx context.Context, tx pgx.Tx, collector uuid.UUID, c certificate) error {
	_, err := tx.Exec(ctx, insertCertificate, c.Thumbprint, collector, c.generation, c.predecessor, c.isOverlap,
		c.Serial, c.KeyHash[:], c.DER, c.NotBefore, c.NotAfter)
	return err
}
