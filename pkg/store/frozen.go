package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// Of the sessions that one session waits for, those of other loaders of the
// same role whose transaction is older than a load can be. They are ended in
// the list of columns: a condition may be tried on sessions that nobody waits
// for.
const endBlockers = `
select a.pid, extract(epoch from clock_timestamp() - a.xact_start)::float8, pg_terminate_backend(a.pid)
from unnest(pg_blocking_pids($1)) b(pid) join pg_stat_activity a using (pid)
where a.application_name = $2 and a.usename = current_user and a.datname = current_database()
  and a.xact_start < clock_timestamp() - make_interval(secs => $3)`

// endBlockersOf ends frozen loaders for which the session waits, until stop is
// called. A process that is stopped in mid-COPY keeps its transaction for ever,
// and with it the batches and the new chunks that others need: the database
// waits for its next rows, and no timeout counts there.
func (s *Store) endBlockersOf(ctx context.Context, ses session) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	pid := ses.PgConn().PID()
	go func() {
		defer close(done)
		for again := time.NewTicker(s.cfg.KeyTimeout / 2); ; { // while a key is still waited for
			select {
			case <-ctx.Done():
				again.Stop()
				return
			case <-again.C:
			}
			if err := s.endBlockers(ctx, pid); err != nil && ctx.Err() == nil {
				s.log.Warn("look for frozen loaders", "err", err)
			}
		}
	}()
	return func() {
		cancel()
		<-done // the session is ours till then, and not yet another load's
	}
}

func (s *Store) endBlockers(ctx context.Context, waiting uint32) error {
	return s.session(ctx, func(ses session) error {
		// Nearly no time; and ending it in the middle would cost the session.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanup)
		defer cancel()
		rows, err := ses.Query(ctx, endBlockers, int32(waiting), applicationName, s.cfg.FrozenAfter.Seconds())
		if err != nil {
			return ses.failed("look for blockers", err)
		}
		var pid int32
		var age float64
		var ended bool // false when it was gone by itself
		_, err = pgx.ForEachRow(rows, []any{&pid, &age, &ended}, func() error {
			if !ended {
				return nil
			}
			s.metrics.frozen.Inc()
			s.log.Warn("ended the session of a frozen loader, which others were waiting for", "pid", pid, "age_seconds", age)
			return nil
		})
		return ses.failed("look for blockers", err)
	})
}
