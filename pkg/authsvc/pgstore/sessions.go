package pgstore

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/identity"
)

// One statement looks and locks: whoever disables the user waits for it, and
// then ends the session that follows.
const markLogin = `
update identity.app_user
set last_login = $3
where id = $1 and password_hash = $2 and is_active
returning` + userColumns

// StartSession stores a login.
func (s *Store) StartSession(ctx context.Context, l authsvc.Login, by authsvc.Act) (authsvc.User, error) {
	var u authsvc.User
	err := s.inTx(ctx, "store login", func(tx pgx.Tx) (err error) {
		if u, err = oneUser(ctx, tx, authsvc.ErrCredentials, markLogin, l.UserID, l.Hash, by.At); err != nil {
			return err
		}
		if err := addSession(ctx, tx, l, by); err != nil {
			return err
		}
		return auditSession(ctx, tx, "session.login", "success", l.SessionID, by, map[string]any{"username": u.Username})
	})
	return u, err
}

func auditSession(ctx context.Context, tx pgx.Tx, action, result string, id uuid.UUID, by authsvc.Act, changes map[string]any) error {
	return audit(ctx, tx, act{
		at: by.At, actor: by.Actor, action: action, result: result,
		resourceType: "session", resourceID: id.String(), source: by.Source, changes: changes,
	})
}

const insertSession = `
insert into identity.session (id, user_id, created_at, source_ip)
values ($1, $2, $3, $4)`

func addSession(ctx context.Context, tx pgx.Tx, l authsvc.Login, by authsvc.Act) error {
	var source *netip.Addr
	if by.Source.IsValid() {
		source = &by.Source
	}
	if _, err := tx.Exec(ctx, insertSession, l.SessionID, l.UserID, by.At, source); err != nil {
		return fmt.Errorf("store session: %w", err)
	}
	return addRefreshToken(ctx, tx, l.SessionID, l.Token)
}

const insertRefreshToken = `
insert into identity.refresh_token (id, session_id, issued_at, expires_at)
values ($1, $2, $3, $4)`

func addRefreshToken(ctx context.Context, tx pgx.Tx, session uuid.UUID, t authsvc.RefreshToken) error {
	if _, err := tx.Exec(ctx, insertRefreshToken, t.ID, session, t.IssuedAt, t.Expires); err != nil {
		return fmt.Errorf("store refresh token: %w", err)
	}
	return nil
}

// The row lock lets one use of a session's tokens after the other decide.
const lockSession = `
select s.ended_at is not null or s.user_id <> $2
from identity.session s
where s.id = $1
for update`

const selectRefreshToken = `
select t.expires_at, t.used_at, n.id, n.issued_at, n.expires_at, n.used_at
from identity.refresh_token t
left join identity.refresh_token n on n.id = t.successor
where t.id = $1 and t.session_id = $2`

const useRefreshToken = `
update identity.refresh_token
set used_at = $2, successor = $3
where id = $1`

// Rotate does what authsvc.Rotation describes.
func (s *Store) Rotate(ctx context.Context, r authsvc.Rotation) (authsvc.Rotated, error) {
	var done authsvc.Rotated
	err := s.inTx(ctx, "rotate refresh token", func(tx pgx.Tx) error {
		var over bool
		err := tx.QueryRow(ctx, lockSession, r.Presented.SessionID, r.Presented.UserID).Scan(&over)
		if over || errors.Is(err, pgx.ErrNoRows) {
			return authsvc.ErrRefreshRefused
		}
		if err != nil {
			return fmt.Errorf("lock session: %w", err)
		}
		if done.User, err = oneUser(ctx, tx, authsvc.ErrRefreshRefused, selectUser, r.Presented.UserID); err != nil {
			return err
		}
		if !done.User.IsActive {
			return authsvc.ErrRefreshRefused
		}
		return rotate(ctx, tx, r, &done)
	})
	return done, err
}

// rotate decides on the token of a live session that is locked.
func rotate(ctx context.Context, tx pgx.Tx, r authsvc.Rotation, done *authsvc.Rotated) error {
	var (
		expires                           time.Time
		used, nextIssued, nextEnd, nextAt *time.Time
		nextID                            *uuid.UUID
	)
	err := tx.QueryRow(ctx, selectRefreshToken, r.Presented.ID, r.Presented.SessionID).
		Scan(&expires, &used, &nextID, &nextIssued, &nextEnd, &nextAt)
	unknown := errors.Is(err, pgx.ErrNoRows)
	switch {
	case err != nil && !unknown:
		return fmt.Errorf("read refresh token: %w", err)
	case !unknown && !r.By.At.Before(expires):
		return authsvc.ErrRefreshRefused
	case !unknown && used == nil:
		// The old one first: a session has one unused token at any time.
		if _, err := tx.Exec(ctx, useRefreshToken, r.Presented.ID, r.By.At, r.Next.ID); err != nil {
			return fmt.Errorf("use refresh token: %w", err)
		}
		done.Token = r.Next
		return addRefreshToken(ctx, tx, r.Presented.SessionID, r.Next)
	case !unknown && nextID != nil && nextAt == nil && r.By.At.Sub(*used) <= r.Grace:
		done.Token = authsvc.RefreshToken{ID: *nextID, IssuedAt: nextIssued.UTC(), Expires: nextEnd.UTC()}
		return nil
	}
	// Used before, or signed by us and not in this database, which is then from
	// an older backup and knows a token as unused that was used since: in both
	// cases nobody can tell who is the session's owner.
	done.Reused = true
	if done.Ended, err = endSession(ctx, tx, r.Presented.SessionID, "reuse", r.By.At); err != nil {
		return err
	}
	return auditSession(ctx, tx, "session.reuse", "refused", r.Presented.SessionID, r.By,
		map[string]any{"username": done.User.Username, "known": !unknown})
}

const endOne = `
update identity.session
set ended_at = coalesce(ended_at, $2), end_reason = coalesce(end_reason, $3)
where id = $1
returning id, ended_at`

const endAll = `
update identity.session
set ended_at = $2, end_reason = $3
where user_id = $1 and ended_at is null
returning id, ended_at`

func endSession(ctx context.Context, tx pgx.Tx, id uuid.UUID, reason string, at time.Time) (identity.SessionEnd, error) {
	var e identity.SessionEnd
	if err := tx.QueryRow(ctx, endOne, id, at, reason).Scan(&e.ID, &e.EndedAt); err != nil {
		return e, fmt.Errorf("end session: %w", err)
	}
	return e, nil
}

func endSessions(ctx context.Context, tx pgx.Tx, user uuid.UUID, reason string, at time.Time) ([]identity.SessionEnd, error) {
	rows, err := tx.Query(ctx, endAll, user, at, reason)
	if err != nil {
		return nil, fmt.Errorf("end sessions: %w", err)
	}
	ended, err := pgx.CollectRows(rows, pgx.RowToStructByPos[identity.SessionEnd])
	if err != nil {
		return nil, fmt.Errorf("end sessions: %w", err)
	}
	return ended, nil
}

// EndSession ends a session. One that is not there has ended long ago, or was
// begun after the backup that the database came from: it is ended just the
// same.
func (s *Store) EndSession(ctx context.Context, id uuid.UUID, by authsvc.Act) (identity.SessionEnd, error) {
	ended := identity.SessionEnd{ID: id, EndedAt: by.At}
	err := s.inTx(ctx, "end session", func(tx pgx.Tx) error {
		e, err := endSession(ctx, tx, id, "logout", by.At)
		switch {
		case err == nil:
			ended = e
		case !errors.Is(err, pgx.ErrNoRows):
			return err
		}
		return auditSession(ctx, tx, "session.logout", "success", id, by, nil)
	})
	return ended, err
}

const pruneSessions = `
delete from identity.session s
where s.ended_at < $1 or not exists (select from identity.refresh_token t where t.session_id = s.id and t.expires_at >= $1)`

const pruneRefreshTokens = `
delete from identity.refresh_token
where expires_at < $1`

// PruneSessions forgets what no token refers to any more.
func (s *Store) PruneSessions(ctx context.Context, before time.Time) error {
	for _, statement := range []string{pruneSessions, pruneRefreshTokens} {
		if _, err := s.pool.Exec(ctx, statement, before); err != nil {
			return classify("prune sessions", err)
		}
	}
	return nil
}

const selectKnownUsers = `
select id, is_active, generation, updated_at
from identity.app_user`

const selectEndedSessions = `
select id, ended_at
from identity.session
where ended_at > $1`

// People returns all that verifiers must know.
func (s *Store) People(ctx context.Context, endedAfter time.Time) (identity.People, error) {
	p := identity.NewPeople()
	users, err := all[identity.User](ctx, s, selectKnownUsers)
	if err != nil {
		return p, classify("read users", err)
	}
	sessions, err := all[identity.SessionEnd](ctx, s, selectEndedSessions, endedAfter)
	if err != nil {
		return p, classify("read sessions", err)
	}
	tokens, err := s.knownTokens(ctx)
	if err != nil {
		return p, classify("read API tokens", err)
	}
	for _, u := range users {
		p.Users[u.ID] = u
	}
	for _, e := range sessions {
		p.Sessions[e.ID] = e
	}
	for _, t := range tokens {
		p.APITokens[t.ID] = t
	}
	return p, nil
}

func all[T any](ctx context.Context, s *Store, sql string, args ...any) ([]T, error) {
	rows, err := s.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[T])
}
