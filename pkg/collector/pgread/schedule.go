package pgread

import (
	"context"
	"hash/fnv"
	"log/slog"
	"time"

	"pganalytics/pkg/catalogue"
)

// maxSpread bounds how long after the start a family is first read.
const maxSpread = 10 * time.Second

// maxBackOff is the longest pause that repeated failures make.
const maxBackOff = time.Hour

// task is one family on its schedule.
type task struct {
	family   *catalogue.Family
	sql      string // for the version of the server last connected to; "" when it has none
	interval time.Duration
	due      time.Time
	health   map[string]*health // by database
	filters  map[string]*filter // by database
}

// tasks returns the families of a scope that are on. Their first times are
// spread, by name and so alike at every start. They keep the reading of the
// monotonic clock, which Truncate would take away: else nothing would be read
// for an hour after the machine's clock was set back by one.
func (s *Server) tasks(scope catalogue.Scope) []*task {
	var tasks []*task
	start := time.Now()
	for _, f := range s.catalogue.Families() {
		interval := s.interval(f)
		if f.Scope != scope || interval <= 0 || len(f.Queries) == 0 {
			continue
		}
		h := fnv.New64a()
		_, _ = h.Write([]byte(s.cfg.Name + "\x00" + f.Name))
		first := start.Add(time.Duration(h.Sum64() % uint64(min(interval, maxSpread))))
		tasks = append(tasks, &task{
			family: f, interval: interval, due: first.Add(-time.Duration(first.Nanosecond())),
			health: map[string]*health{}, filters: map[string]*filter{},
		})
	}
	return tasks
}

// wait returns the tasks that are due, once any is, and sets their next times;
// nil when ctx ended. Samples whose time has passed meanwhile are not made up
// for.
func (s *Server) wait(ctx context.Context, tasks []*task) []*task {
	next := tasks[0].due
	for _, t := range tasks {
		if t.due.Before(next) {
			next = t.due
		}
	}
	timer := time.NewTimer(time.Until(next))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return nil
	case <-timer.C:
	}
	now := time.Now()
	var due []*task
	for _, t := range tasks {
		if t.due.After(now) {
			continue
		}
		due = append(due, t)
		missed := int64(now.Sub(t.due) / t.interval)
		if missed > 0 {
			s.metrics.skipped.WithLabelValues(s.cfg.Name, t.family.Name).Add(float64(missed))
		}
		t.due = t.due.Add(time.Duration(missed+1) * t.interval)
	}
	return due
}

// prepare chooses the queries for a server's version.
func prepare(tasks []*task, major int) {
	for _, t := range tasks {
		q, _ := t.family.Query(major)
		t.sql = q.SQL
	}
}

// filter returns the task's filter for a database, nil when it needs none.
func (t *task) filter(database string) *filter {
	f, ok := t.filters[database]
	if !ok {
		f = newFilter(t.family)
		t.filters[database] = f
	}
	return f
}

// health of one thing that may fail again and again: it is asked less and less
// often, and only changes are logged.
type health struct {
	failures int
	state    string // SQLSTATE of the last failure
	until    time.Time
}

// of returns the health under a key.
func of(m map[string]*health, key string) *health {
	h, ok := m[key]
	if !ok {
		h = &health{}
		m[key] = h
	}
	return h
}

// resting reports whether it is too early to try again.
func (h *health) resting(now time.Time) bool { return now.Before(h.until) }

// failed notes a failure of what, a few constant words. The pause doubles from base on, up to limit.
func (h *health) failed(log *slog.Logger, what string, err error, base, limit time.Duration) {
	state := sqlState(err)
	level := slog.LevelDebug
	if h.failures == 0 || h.state != state {
		level = slog.LevelWarn
	}
	h.failures++
	h.state = state
	pause := limit
	if shift := h.failures - 1; shift < 20 {
		pause = min(base<<shift, limit)
	}
	h.until = time.Now().Add(pause)
	log.Log(context.Background(), level, "attempt failed", "what", what, "failures", h.failures, "next_try_in", pause, "err", err)
}

// worked notes a success.
func (h *health) worked(log *slog.Logger, what string) {
	if h.failures > 0 {
		log.Info("works again", "what", what, "after_failures", h.failures)
	}
	*h = health{}
}
