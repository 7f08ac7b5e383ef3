package pgstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/identity"
)

const selectGeneration = `
select generation
from identity.certificate
where thumbprint = $1 and collector_id = $2 and revoked_at is null`

const selectNewest = `
select thumbprint, coalesce(predecessor, 0), is_overlap, key_hash, der, first_used_at is not null
from identity.certificate
where collector_id = $1 and generation = $2`

// newest is a collector's newest certificate.
type newest struct {
	thumbprint  string
	predecessor int
	isOverlap   bool
	keyHash     []byte
	der         []byte
	used        bool
}

// Renew does what authsvc.Renewal describes.
func (s *Store) Renew(ctx context.Context, r authsvc.Renewal) (authsvc.Renewed, error) {
	var out authsvc.Renewed
	err := s.inTx(ctx, "store renewal", func(tx pgx.Tx) error {
		k, err := lockCollector(ctx, tx, r.CollectorID)
		if errors.Is(err, authsvc.ErrNoCollector) {
			return authsvc.ErrCertificateUnknown
		}
		if err == nil {
			err = usable(k.Status)
		}
		if err != nil {
			return err
		}
		c := k.Collector
		var presented int
		err = tx.QueryRow(ctx, selectGeneration, r.Presented.Thumbprint, r.CollectorID).Scan(&presented)
		if errors.Is(err, pgx.ErrNoRows) {
			// A database from an older backup: no sign of a copied key.
			presented, err = adopt(ctx, tx, r, &c)
		}
		if err != nil {
			return fmt.Errorf("read presented certificate: %w", err)
		}
		var last newest
		err = tx.QueryRow(ctx, selectNewest, r.CollectorID, c.Generation).
			Scan(&last.thumbprint, &last.predecessor, &last.isOverlap, &last.keyHash, &last.der, &last.used)
		if err != nil {
			return fmt.Errorf("read newest certificate: %w", err)
		}
		c.Thumbprint = last.thumbprint
		unreceived := last.predecessor == presented && !last.used
		switch {
		case presented == c.Generation:
			out, err = succeed(ctx, tx, r, c, presented, false)
		case unreceived && bytes.Equal(last.keyHash, r.Certificate.KeyHash[:]):
			out = authsvc.Renewed{Collector: c, DER: last.der, Repeated: true}
		case unreceived && !last.isOverlap:
			out, err = succeed(ctx, tx, r, c, presented, true)
		default:
			out, err = lockOut(ctx, tx, r, c, presented)
		}
		return err
	})
	return out, err
}

const adoptGeneration = `
update identity.collector
set generation = $2
where id = $1 and not exists (select from identity.certificate where thumbprint = $3)`

// adopt takes over the presented certificate as the collector's newest, if
// verifiers know it as that and of a later generation than the database does.
// It errs with ErrCertificateUnknown.
func adopt(ctx context.Context, tx pgx.Tx, r authsvc.Renewal, c *identity.Collector) (int, error) {
	if r.Known.Thumbprint != r.Presented.Thumbprint || r.Known.Generation <= c.Generation {
		return 0, authsvc.ErrCertificateUnknown
	}
	// A revoked one is there, and stays what it is.
	tag, err := tx.Exec(ctx, adoptGeneration, r.CollectorID, r.Known.Generation, r.Presented.Thumbprint)
	if err != nil {
		return 0, err
	}
	if tag.RowsAffected() == 0 {
		return 0, authsvc.ErrCertificateUnknown
	}
	c.Generation = r.Known.Generation
	if err := addCertificate(ctx, tx, r.CollectorID, certificate{Certificate: r.Presented, generation: c.Generation}); err != nil {
		return 0, err
	}
	return c.Generation, audit(ctx, tx, act{
		at: r.At, actor: "collector:" + r.CollectorID.String(), action: "certificate.adopt", result: "success",
		resourceType: "collector", resourceID: r.CollectorID.String(), source: r.Source,
		changes: map[string]any{"generation": c.Generation, "thumbprint": r.Presented.Thumbprint},
	})
}

const setGeneration = `
update identity.collector
set generation = $2, updated_at = greatest($3, updated_at + interval '1 microsecond')
where id = $1
returning updated_at`

// Whoever renews with a certificate uses it.
const markPresented = `
update identity.certificate
set first_used_at = coalesce(first_used_at, $2)
where thumbprint = $1`

// succeed stores the next generation.
func succeed(ctx context.Context, tx pgx.Tx, r authsvc.Renewal, c identity.Collector, presented int, overlap bool) (authsvc.Renewed, error) {
	c.Generation++
	c.Thumbprint = r.Certificate.Thumbprint
	var none authsvc.Renewed
	err := addCertificate(ctx, tx, r.CollectorID, certificate{
		Certificate: r.Certificate, generation: c.Generation, predecessor: presented, isOverlap: overlap,
	})
	if err != nil {
		return none, fmt.Errorf("store certificate: %w", err)
	}
	if _, err := tx.Exec(ctx, markPresented, r.Presented.Thumbprint, r.At); err != nil {
		return none, fmt.Errorf("mark presented certificate: %w", err)
	}
	if err := tx.QueryRow(ctx, setGeneration, r.CollectorID, c.Generation, r.At).Scan(&c.ChangedAt); err != nil {
		return none, fmt.Errorf("store generation: %w", err)
	}
	err = audit(ctx, tx, act{
		at: r.At, actor: "collector:" + r.CollectorID.String(), action: "certificate.renew", result: "success",
		resourceType: "collector", resourceID: r.CollectorID.String(), source: r.Source,
		changes: map[string]any{
			"generation": c.Generation, "presented_generation": presented, "overlap": overlap, "thumbprint": c.Thumbprint,
		},
	})
	return authsvc.Renewed{Collector: c, DER: r.Certificate.DER}, err
}

const lockStatus = `
update identity.collector
set status = 'locked', updated_at = greatest($2, updated_at + interval '1 microsecond')
where id = $1
returning updated_at`

// lockOut locks the collector.
func lockOut(ctx context.Context, tx pgx.Tx, r authsvc.Renewal, c identity.Collector, presented int) (authsvc.Renewed, error) {
	c.Status = identity.Locked
	if err := tx.QueryRow(ctx, lockStatus, r.CollectorID, r.At).Scan(&c.ChangedAt); err != nil {
		return authsvc.Renewed{}, fmt.Errorf("lock out collector: %w", err)
	}
	err := audit(ctx, tx, act{
		at: r.At, actor: "collector:" + r.CollectorID.String(), action: "collector.lock", result: "success",
		resourceType: "collector", resourceID: r.CollectorID.String(), source: r.Source,
		changes: map[string]any{"presented_generation": presented, "newest_generation": c.Generation, "presented": r.Presented.Thumbprint},
	})
	return authsvc.Renewed{Collector: c}, err
}
