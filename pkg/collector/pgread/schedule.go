package pgread

import (
	"context"
	"hash/fnv"
	"log/slog"
	"time"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/policy"
)

// maxSpread bounds how long after the start a family is first read.
const maxSpread = 10 * time.Second

// maxBackOff is the longest pause that repeated failures make.
const maxBackOff = time.Hour

// task is one family on its schedule.
type task struct {
	family  *catalogue.Family
	reading policy.Reading
	query   catalogue.Query // for the version of the server last connected to; empty when it has none
	columns []batch.Column
	places  []int // of all columns
	due     time.Time
	spent   bool              // it timed out in a database: not in another one of this round
	states  map[string]*state // by database
}

// state is what is known of a family in one database.
type state struct {
	health
	requirement
	filter *filter   // nil: all rows are sent
	sent   *sentKeys // of a dimension that is read by key
	size   int       // bytes of the last result; of a filter's first one, as if it were large

	cut, dropping bool // the last result lacked rows
}

// tasks returns the families of a scope that are on. Their first times are
// spread, by name and so alike at every start. They keep the reading of the
// monotonic clock, which Truncate would take away: else nothing would be read
// for an hour after the machine's clock was set back by one.
func (s *Server) tasks(scope catalogue.Scope) []*task {
	var tasks []*task
	start := time.Now()
	for _, f := range s.catalogue.Families() {
		reading, on := s.cfg.Families[f.Name]
		if f.Scope != scope || !on || len(f.Queries) == 0 {
			continue
		}
		h := fnv.New64a()
		_, _ = h.Write([]byte(s.cfg.Name + "\x00" + f.Name))
		first := start.Add(time.Duration(h.Sum64() % uint64(min(reading.Interval, maxSpread))))
		t := &task{
			family: f, reading: reading, due: first.Add(-time.Duration(first.Nanosecond())),
			columns: batch.ColumnsOf(f), states: map[string]*state{},
		}
		for i := range f.Columns {
			t.places = append(t.places, i)
		}
		tasks = append(tasks, t)
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
		t.spent = false
		missed := int64(now.Sub(t.due) / t.reading.Interval)
		s.unread(t, late, int(missed))
		t.due = t.due.Add(time.Duration(missed+1) * t.reading.Interval)
	}
	return due
}

// choose chooses the queries for a server's version. One that nobody knows yet
// gets the newest.
func (s *Server) choose(tasks []*task, major int) {
	if major > catalogue.NewestServer && s.newer.Swap(int32(major)) != int32(major) {
		s.log.Warn("the server is newer than the catalogue; the queries for the newest known version are used",
			"version", major, "newest_known", catalogue.NewestServer)
	}
	for _, t := range tasks {
		t.query, _ = t.family.Query(major)
	}
}

// state returns what is known of the family in a database.
func (t *task) state(database string) *state {
	st, ok := t.states[database]
	if !ok {
		st = &state{filter: newFilter(t.family)}
		if st.filter != nil {
			st.size = largeResult
		}
		t.states[database] = st
	}
	return st
}

// health of one thing that may fail again and again: it is asked less and less
// often, and only changes are logged.
type health struct {
	failures int
	sqlState string // of the last failure
	slow     int    // how often in a row it took too long
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
	if h.failures == 0 || h.sqlState != state {
		level = slog.LevelWarn
	}
	h.failures++
	h.sqlState = state
	h.rest(h.failures, base, limit)
	log.Log(context.Background(), level, "attempt failed", "what", what, "failures", h.failures, "next_try_in", pause(h.failures, base, limit), "err", err)
}

// maxSlow is how often in a row something may take too long before it is asked
// less often.
const maxSlow = 3

// slowed notes that it worked and took too long. From the third time in a row
// on the pause doubles from base on, up to limit.
func (h *health) slowed(log *slog.Logger, what string, took, base, limit time.Duration) {
	slow := h.slow + 1
	*h = health{slow: slow}
	if slow < maxSlow {
		return
	}
	h.rest(slow-maxSlow+1, base, limit)
	if slow == maxSlow {
		log.Warn("takes too long; it is read less often until it is faster", "what", what, "took", took, "times_in_a_row", slow)
	}
}

// worked notes a success.
func (h *health) worked(log *slog.Logger, what string) {
	if h.failures > 0 || h.slow >= maxSlow {
		log.Info("works again", "what", what, "after_failures", h.failures, "after_slow", h.slow)
	}
	*h = health{}
}

func (h *health) rest(times int, base, limit time.Duration) {
	h.until = time.Now().Add(pause(times, base, limit))
}

// pause doubles from base on with every time after the first, up to limit.
func pause(times int, base, limit time.Duration) time.Duration {
	if shift := times - 1; shift < 20 {
		return min(base<<shift, limit)
	}
	return limit
}
