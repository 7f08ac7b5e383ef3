package pgstore

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/identity"
)

// The statements that decide who gets the token, or one name of its list. A
// second request waits for the row and then finds it used.
const (
	tokenFits = `
t.id = $1 and t.secret_hash = $2 and t.revoked_at is null and t.expires_at > $3
  and (t.bound_source is null or $6::inet <<= t.bound_source)
  and t.collector_id is not distinct from $7`

	consumeEnrollmentToken = `
update identity.enrollment_token t
set used_at = $3, used_by = $4
where not t.is_list and t.used_at is null and (t.bound_name is null or t.bound_name = $5) and ` + tokenFits

	consumeEnrollmentName = `
update identity.enrollment_name n
set used_at = $3, used_by = $4
from identity.enrollment_token t
where n.token_id = t.id and t.is_list and n.name = $5 and n.used_at is null and ` + tokenFits
)

const insertCollector = `
insert into identity.collector (id, name, hostname, address, version, status, generation, created_at, updated_at)
values ($1, $2, $3, $4, $5, 'registered', 1, $6, $6)
returning updated_at`

// Register does what authsvc.Registration describes: token, collector,
// certificate and audit, all or nothing.
func (s *Store) Register(ctx context.Context, r authsvc.Registration) (authsvc.Registered, error) {
	done := authsvc.Registered{
		Record: identity.Collector{
			ID: r.CollectorID, Status: identity.Registered, Generation: 1,
			Thumbprint: r.Certificate.Thumbprint, Hostname: r.Hostname,
		},
		DER: r.Certificate.DER,
	}
	err := s.inTx(ctx, "store enrolment", func(tx pgx.Tx) error {
		if err := consume(ctx, tx, r); err != nil {
			return err
		}
		action := "collector.register"
		var err error
		if r.Again {
			action = "collector.reenroll"
			err = reenroll(ctx, tx, r, &done)
		} else {
			err = tx.QueryRow(ctx, insertCollector, r.CollectorID, r.Name, r.Hostname, r.Address, r.Version, r.At).Scan(&done.Record.ChangedAt)
		}
		if violates(err, "collector_name_key") {
			return authsvc.ErrNameTaken
		}
		if err != nil {
			return err
		}
		err = addCertificate(ctx, tx, r.CollectorID, certificate{
			Certificate: r.Certificate, generation: done.Record.Generation, enrolledBy: r.TokenID,
		})
		if err != nil {
			return err
		}
		return audit(ctx, tx, act{
			at: r.At, actor: "enrollment_token:" + r.TokenID, action: action, result: "success",
			resourceType: "collector", resourceID: r.CollectorID.String(), source: r.Source,
			changes: map[string]any{
				"name": r.Name, "hostname": r.Hostname, "thumbprint": r.Certificate.Thumbprint, "generation": done.Record.Generation,
			},
		})
	})
	return done, err
}

func consume(ctx context.Context, tx pgx.Tx, r authsvc.Registration) error {
	var source *netip.Addr
	if r.Source.IsValid() {
		source = &r.Source
	}
	again := nullable(r.CollectorID)
	if !r.Again {
		again = nil
	}
	for _, sql := range []string{consumeEnrollmentToken, consumeEnrollmentName} {
		tag, err := tx.Exec(ctx, sql, r.TokenID, r.TokenHash[:], r.At, r.CollectorID, r.Name, source, again)
		if err != nil {
			return fmt.Errorf("consume enrolment token: %w", err)
		}
		if tag.RowsAffected() == 1 {
			return nil
		}
	}
	return authsvc.ErrEnrollmentRefused
}

const updateEnrolled = `
update identity.collector
set hostname = $2, address = $3, version = $4, generation = generation + 1,
    updated_at = greatest($5, updated_at + interval '1 microsecond')
where id = $1
returning generation, updated_at`

// reenroll gives a collector that is there the next generation, and revokes
// whatever it had before: somebody else may have it.
func reenroll(ctx context.Context, tx pgx.Tx, r authsvc.Registration, done *authsvc.Registered) error {
	k, err := lockCollector(ctx, tx, r.CollectorID)
	if errors.Is(err, authsvc.ErrNoCollector) {
		return authsvc.ErrEnrollmentRefused // deleted since the token was made
	}
	if err != nil {
		return err
	}
	if err := usable(k.Status); err != nil {
		return err
	}
	if done.Revocations, err = revokeCertificates(ctx, tx, r.CollectorID, r.At); err != nil {
		return err
	}
	done.Record.Status = k.Status
	return tx.QueryRow(ctx, updateEnrolled, r.CollectorID, r.Hostname, r.Address, r.Version, r.At).
		Scan(&done.Record.Generation, &done.Record.ChangedAt)
}

const selectRepeated = `
select k.id, k.generation, c.thumbprint, k.hostname, k.updated_at, c.der
from identity.certificate c
join identity.collector k on k.id = c.collector_id and k.generation = c.generation
join identity.enrollment_token t on t.id = c.enrolled_by
where t.id = $1 and t.secret_hash = $2 and t.revoked_at is null and t.expires_at > $3
  and k.name = $4 and k.status not in ('disabled', 'locked')
  and c.key_hash = $5 and c.first_used_at is null and c.revoked_at is null`

// RepeatedRegistration returns what an enrolment with the same token, name and
// key stored before. Nothing changes, so nothing is audited.
func (s *Store) RepeatedRegistration(ctx context.Context, r authsvc.Registration) (authsvc.Registered, error) {
	done := authsvc.Registered{Record: identity.Collector{Status: identity.Registered}}
	k := &done.Record
	err := s.pool.QueryRow(ctx, selectRepeated, r.TokenID, r.TokenHash[:], r.At, r.Name, r.Certificate.KeyHash[:]).
		Scan(&k.ID, &k.Generation, &k.Thumbprint, &k.Hostname, &k.ChangedAt, &done.DER)
	if errors.Is(err, pgx.ErrNoRows) {
		return done, authsvc.ErrEnrollmentRefused
	}
	return done, classify("read earlier enrolment", err)
}

type certificate struct {
	authsvc.Certificate
	generation  int
	predecessor int // 0: none
	isOverlap   bool
	enrolledBy  string // enrolment token; empty: a renewal
}

const insertCertificate = `
insert into identity.certificate
    (thumbprint, collector_id, generation, predecessor, is_overlap, serial, key_hash, der, not_before, not_after, enrolled_by)
values ($1, $2, $3, nullif($4, 0), $5, $6, $7, $8, $9, $10, nullif($11, ''))`

func addCertificate(ctx context.Context, tx pgx.Tx, collector uuid.UUID, c certificate) error {
	_, err := tx.Exec(ctx, insertCertificate, c.Thumbprint, collector, c.generation, c.predecessor, c.isOverlap,
		c.Serial, c.KeyHash[:], c.DER, c.NotBefore, c.NotAfter, c.enrolledBy)
	if err != nil {
		return fmt.Errorf("store certificate: %w", err)
	}
	return nil
}
