package authsvc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/identity"
)

const (
	publishTimeout = 2 * time.Second // an enrolment waits for it, and is done without it as well
	flushEvery     = time.Second     // how long another authsvc may not know that a certificate is in use
	reconcileEvery = 30 * time.Second
	pruneEvery     = time.Hour
	roundTimeout   = time.Minute
	stopTimeout    = 5 * time.Second
)

// publish tells verifiers of a committed change, revocations first. If it
// can't, Run will: the change is in the database, and the bucket is compared
// with it.
func (s *Service) publish(ctx context.Context, c identity.Collector, revocations ...identity.Revocation) {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	var err error
	for _, r := range revocations {
		if err = s.put(ctx, r.Record); err != nil {
			break
		}
	}
	if err == nil {
		err = s.revise(ctx, c)
	}
	if err != nil {
		s.Log.Warn("collector not published yet", "collector_id", c.ID, "err", err)
		s.unpublished.Store(true)
		s.wakeUp()
	}
}

func (s *Service) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// superseder is a record that replaces an older one and no newer one.
type superseder interface {
	Record() (string, []byte, error)
	Supersedes(value []byte) bool
}

// revise never replaces a newer record: two changes that are published at once,
// perhaps by two processes, may arrive in either order.
func (s *Service) revise(ctx context.Context, r superseder) error {
	key, value, err := r.Record()
	if err != nil {
		return err
	}
	err = s.Directory.Revise(ctx, key, func(old []byte) []byte {
		if old != nil && !r.Supersedes(old) {
			return nil
		}
		return value
	})
	if err != nil {
		s.metrics.publishFailures.Inc()
		return fmt.Errorf("publish %s: %w", key, err)
	}
	return nil
}

func (s *Service) put(ctx context.Context, record func() (string, []byte, error)) error {
	key, value, err := record()
	if err != nil {
		return err
	}
	if err := s.Directory.Put(ctx, key, value); err != nil {
		s.metrics.publishFailures.Inc()
		return fmt.Errorf("publish %s: %w", key, err)
	}
	return nil
}

// Run keeps the bucket in step with the database, and the database informed of
// certificates in use, until ctx ends. Neighbours that are away are asked again
// with growing patience.
func (s *Service) Run(ctx context.Context) error {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	var reconcile, flush, flushTokens, refusals, prune retry
	for {
		if s.unpublished.Load() || s.revokedKeysChanged() || s.Snapshot.Incomplete() {
			reconcile = retry{}
		}
		s.followKey(ctx)
		if reconcile.due() {
			s.attempt(ctx, "reconcile", &reconcile, reconcileEvery, s.Reconcile)
		}
		if flush.due() {
			s.attempt(ctx, "mark_used", &flush, 0, s.flushUsed)
		}
		if flushTokens.due() {
			s.attempt(ctx, "mark_api_tokens", &flushTokens, 0, s.flushUsedTokens)
		}
		if refusals.due() {
			s.attempt(ctx, "audit_refusals", &refusals, 0, func(ctx context.Context) error { return s.flushRefusals(ctx, s.cfg.Now()) })
		}
		if prune.due() {
			s.attempt(ctx, "prune_sessions", &prune, pruneEvery, func(ctx context.Context) error {
				return s.Users.PruneSessions(ctx, s.cfg.Now().Add(-identity.SessionEndLife))
			})
		}
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
			defer cancel()
			if err := errors.Join(s.flushUsed(last), s.flushUsedTokens(last)); err != nil {
				s.Log.Warn("certificates or tokens in use not noted; they will be when next seen", "err", err)
			}
			if err := s.flushRefusals(last, s.cfg.Now().Add(time.Minute)); err != nil {
				s.Log.Warn("refusals are missing in the audit", "err", err)
			}
			return nil
		case <-tick.C:
		case <-s.wake:
			reconcile = retry{}
		}
	}
}

// retry is when something is tried again: at once, or after a pause that
// doubles from a second up to reconcileEvery.
type retry struct {
	next  time.Time
	pause time.Duration
}

func (r *retry) due() bool { return !time.Now().Before(r.next) }

func (s *Service) attempt(ctx context.Context, work string, r *retry, rest time.Duration, do func(context.Context) error) {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	err := do(ctx)
	switch {
	case err == nil:
		*r = retry{next: time.Now().Add(rest)}
	case ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled):
		// stopping
	case errors.Is(err, errNotRead):
		*r = retry{next: time.Now().Add(flushEvery)} // it is being read
	default:
		r.pause = min(max(2*r.pause, time.Second), reconcileEvery)
		r.next = time.Now().Add(r.pause)
		s.Log.Warn("work beside the requests failed", "work", work, "retry_in", r.pause, "err", err)
	}
}

var errNotRead = fault.New(fault.Unavailable, "identity_not_ready", "The identity bucket has not been read yet.")

// Reconcile publishes what the bucket lacks. It removes nothing, and it
// replaces a collector's record only by a newer one, so that a database from an
// older backup takes no refusal back. Revocations go first; Meta goes last and
// says how much there must be.
func (s *Service) Reconcile(ctx context.Context) error {
	have, ok := s.Snapshot.Observed()
	if !ok {
		return errNotRead
	}
	waiting := s.unpublished.Swap(false) // before the database is read: what fails later says so again
	err := s.reconcile(ctx, have)
	if err != nil && waiting {
		s.unpublished.Store(true)
	}
	return err
}

func (s *Service) reconcile(ctx context.Context, have identity.Observed) error {
	// Keys first and without the database: tokens must go on without it.
	if err := s.putKeys(ctx, have); err != nil {
		return err
	}
	// What a bucket that was made anew forgot, and the database, if it is from
	// an older backup, does not know either.
	if err := s.putRevocations(ctx, have.Lost.Revoked, have.Revoked); err != nil {
		return err
	}
	if err := s.putCollectors(ctx, have.Lost.Collectors, have.Collectors); err != nil {
		return err
	}
	collectors, revocations, err := s.Collectors.Directory(ctx, s.cfg.Now().Add(-identity.RenewalGrace))
	if err != nil {
		return err
	}
	if err := s.putRevocations(ctx, revocations, have.Revoked); err != nil {
		return err
	}
	if err := s.putCollectors(ctx, collectors, have.Collectors); err != nil {
		return err
	}
	if err := s.reconcilePeople(ctx, have); err != nil {
		return err
	}
	return s.putMeta(ctx, have)
}

func (s *Service) putRevocations(ctx context.Context, revocations []identity.Revocation, have map[string]identity.Revocation) error {
	for _, r := range revocations {
		if _, ok := have[r.Thumbprint]; ok {
			continue
		}
		if err := s.put(ctx, r.Record); err != nil {
			return err
		}
		have[r.Thumbprint] = r
	}
	return nil
}

func (s *Service) putCollectors(ctx context.Context, collectors []identity.Collector, have map[uuid.UUID]identity.Collector) error {
	for _, c := range collectors {
		if old, ok := have[c.ID]; ok && !c.ChangedAt.After(old.ChangedAt) {
			continue
		}
		if err := s.revise(ctx, c); err != nil {
			return err
		}
		have[c.ID] = c
	}
	return nil
}

// putMeta writes Meta if the counts have changed or the bucket is not the one
// that verifiers serve.
func (s *Service) putMeta(ctx context.Context, have identity.Observed) error {
	meta := identity.Meta{
		Generation: have.Meta.Generation,
		Collectors: len(have.Collectors), Revoked: len(have.Revoked), Keys: len(have.Keys),
		Users: len(have.People.Users), APITokens: len(have.People.APITokens),
	}
	if meta == have.Meta && meta.Generation >= have.Served {
		return nil
	}
	meta.Generation = max(s.cfg.Now().UnixMicro(), have.Meta.Generation+1, have.Served+1)
	if err := s.put(ctx, meta.Record); err != nil {
		return err
	}
	s.Log.Info("identity bucket brought up to date", "generation", meta.Generation,
		"collectors", meta.Collectors, "revoked", meta.Revoked, "keys", meta.Keys)
	return nil
}
