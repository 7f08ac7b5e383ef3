package authsvc

import (
	"context"
	"net/netip"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/identity"
)

// Act says who does something, when and from where: for the audit.
type Act struct {
	Actor  string // "user:<id>", "collector:<uuid>", "cli:<operating system user>"
	At     time.Time
	Source netip.Addr // zero: none, as on the command line
}

// Page asks for a part of a list.
type Page struct {
	Number int // from 1
	Size   int // entries
}

// Offset returns how many entries come before the page.
func (p Page) Offset() int { return (p.Number - 1) * p.Size }

// Collector is what operators are told of a collector. It says nothing of
// deleted ones.
type Collector struct {
	ID       uuid.UUID
	Name     string
	Hostname string
	Address  string
	Version  string
	// Status is what the store says of locked and disabled ones. Of the others
	// it is what the ledger of batches says: registered until a batch is
	// stored, active while batches are, offline when none has been for
	// ActiveWithin.
	Status               identity.Status
	LastSeen             time.Time // zero: never
	Generation           int
	Thumbprint           string
	CertificateExpiresAt time.Time
	ConfigVersion        int64
	CreatedAt, UpdatedAt time.Time
}

// CollectorQuery asks for collectors. Zero members do not narrow it.
type CollectorQuery struct {
	Page
	ID     uuid.UUID
	Name   string
	Status identity.Status
	// ActiveWithin is how long ago the last batch of an active collector may
	// have been stored, by the database's clock.
	ActiveWithin time.Duration
}

// Operation is what an operator may do to a collector.
type Operation uint8

// The operations, on the states of a collector. What they do not change they
// leave alone, but they always count as a change: verifiers are told again.
//
//	            usable      disabled    locked
//	Disable     disabled    disabled    conflict
//	Enable      usable      usable      conflict
//	Unlock      conflict    conflict    usable, once it is enrolled again
//	Delete      gone        gone        gone
//
// A locked collector is refused everywhere; to disable it as well would let
// Enable end what Unlock alone may end. Unlock and Delete revoke all of the
// collector's certificates.
const (
	Disable Operation = iota + 1
	Enable
	Unlock
	Delete
)

// String returns the operation as it stands in the audit.
func (o Operation) String() string {
	return [...]string{"none", "disable", "enable", "unlock", "delete"}[o]
}

// Change is an operation on one collector.
type Change struct {
	CollectorID uuid.UUID
	Operation   Operation
	By          Act
	// Token is stored with an Unlock: what the collector is enrolled again
	// with. Its BoundName is set by the store.
	Token *EnrollmentToken
}

// Changed is what verifiers must learn of a change.
type Changed struct {
	Record      identity.Collector
	Name        string
	Revocations []identity.Revocation
}

// offlineAfter is how many intervals a collector may be silent.
const offlineAfter = 3

// collectors returns one page and how many there are in all.
func (s *Service) collectors(ctx context.Context, q CollectorQuery) ([]Collector, int, error) {
	q.ActiveWithin = offlineAfter * s.cfg.CollectorInterval
	return s.Collectors.ListCollectors(ctx, q)
}

// collector errs with ErrNoCollector.
func (s *Service) collector(ctx context.Context, id uuid.UUID) (Collector, error) {
	found, _, err := s.collectors(ctx, CollectorQuery{ID: id, Page: Page{Number: 1, Size: 1}})
	if err == nil && len(found) == 0 {
		err = ErrNoCollector
	}
	if err != nil {
		return Collector{}, err
	}
	return found[0], nil
}

// change does it and tells verifiers.
func (s *Service) change(ctx context.Context, c Change) (Changed, error) {
	done, err := s.Collectors.ChangeCollector(ctx, c)
	if err != nil {
		return done, err
	}
	s.publish(context.WithoutCancel(ctx), done.Record, done.Revocations...)
	s.Log.Info("collector changed", "operation", c.Operation.String(), "collector_id", c.CollectorID,
		"name", done.Name, "actor", c.By.Actor, "revoked", len(done.Revocations))
	return done, nil
}

// unlock lets a locked collector enrol again, with the token it returns, and
// with nothing that it had before.
func (s *Service) unlock(ctx context.Context, id uuid.UUID, ttl time.Duration, by Act) (Enrollment, Changed, error) {
	made, stored, err := newEnrollmentToken(EnrollmentRequest{CollectorID: id, TTL: ttl, Actor: by.Actor, Now: by.At})
	if err != nil {
		return Enrollment{}, Changed{}, err
	}
	done, err := s.change(ctx, Change{CollectorID: id, Operation: Unlock, By: by, Token: &stored})
	return made, done, err
}
