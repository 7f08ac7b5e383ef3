package authsvc

import (
	"context"
	"fmt"

	"pganalytics/pkg/identity"
)

// publishPeople tells verifiers of a committed change: what refuses somebody
// first. If it can't, Run will; see publish.
func (s *Service) publishPeople(ctx context.Context, p identity.People) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), publishTimeout)
	defer cancel()
	if err := s.putPeople(ctx, p, identity.NewPeople()); err != nil {
		s.Log.Warn("users or tokens not published yet", "err", err)
		s.unpublished.Store(true)
		s.wakeUp()
	}
}

// publishUser tells verifiers of a user who was changed.
func (s *Service) publishUser(ctx context.Context, u ChangedUser) {
	p := identity.NewPeople()
	p.Users[u.ID] = u.Known()
	for _, e := range u.Ended {
		p.Sessions[e.ID] = e
	}
	s.publishPeople(ctx, p)
}

// putPeople puts those that have lacks or has older ones of, and notes them
// there.
func (s *Service) putPeople(ctx context.Context, p, have identity.People) error {
	for id, u := range p.Users {
		if old, ok := have.Users[id]; ok && !u.ChangedAt.After(old.ChangedAt) {
			continue
		}
		if err := s.revise(ctx, u); err != nil {
			return err
		}
		have.Users[id] = u
	}
	for id, t := range p.APITokens {
		if old, ok := have.APITokens[id]; ok && (!t.Revoked || old.Revoked) {
			continue
		}
		if err := s.revise(ctx, t); err != nil {
			return err
		}
		have.APITokens[id] = t
	}
	for id, e := range p.Sessions {
		if _, ok := have.Sessions[id]; ok {
			continue
		}
		if err := s.put(ctx, e.Record); err != nil {
			return err
		}
		have.Sessions[id] = e
	}
	return nil
}

// reconcilePeople publishes what the bucket lacks of users, sessions and API
// tokens, and removes the ends of sessions that no token can belong to any
// more; nothing else is ever removed. See reconcile.
func (s *Service) reconcilePeople(ctx context.Context, have identity.Observed) error {
	if err := s.putPeople(ctx, have.Lost.People, have.People); err != nil {
		return err
	}
	horizon := s.cfg.Now().Add(-identity.SessionEndLife)
	people, err := s.Users.People(ctx, horizon)
	if err != nil {
		return err
	}
	if err := s.putPeople(ctx, people, have.People); err != nil {
		return err
	}
	for _, e := range have.People.Sessions {
		if e.EndedAt.IsZero() || !e.EndedAt.Before(horizon) {
			continue // one without a time was spoilt, and still ends its session
		}
		if err := s.Directory.Delete(ctx, e.Key()); err != nil {
			return fmt.Errorf("remove %s: %w", e.Key(), err)
		}
	}
	return nil
}
