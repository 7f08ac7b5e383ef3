package store

import (
	"context"
	"errors"
	"fmt"
)

// Alone runs f while no other process does, or does not run it and returns
// false. It takes a session for as long as f runs: should that be lost, another
// process may begin before f has ended, which f must bear.
func (s *Store) Alone(ctx context.Context, f func(ctx context.Context) error) (ran bool, err error) {
	err = s.session(ctx, func(ses session) error {
		ran, err = ses.alone(ctx, replayLock, func() error { return f(ctx) })
		return err
	})
	if err != nil {
		return ran, fmt.Errorf("run alone: %w", err)
	}
	return ran, nil
}

// alone runs f while this session has the advisory lock, unless another one
// has it.
func (ses session) alone(ctx context.Context, lock int64, f func() error) (ran bool, err error) {
	if err := ses.QueryRow(ctx, "select pg_try_advisory_lock($1)", lock).Scan(&ran); err != nil || !ran {
		return false, ses.failed("lock", err)
	}
	err = f()
	if ses.IsClosed() {
		return true, err // and the lock is gone with the session
	}
	_, unlockErr := ses.Exec(context.WithoutCancel(ctx), "select pg_advisory_unlock($1)", lock)
	return true, errors.Join(err, ses.failed("unlock", unlockErr))
}
