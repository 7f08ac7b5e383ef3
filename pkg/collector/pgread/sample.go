package pgread

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pganalytics/pkg/batch"
)

// readAll reads what is due over one connection, and hands over at once what
// it read in a turn.
func (s *Server) readAll(ctx context.Context, conn *pgconn.PgConn, database string, due []*task) []batch.Section {
	var sections []batch.Section
	for i, t := range due {
		switch {
		case ctx.Err() != nil:
			return sections
		case conn.IsClosed():
			s.unreached(due[i:])
			return sections
		case t.query.SQL == "":
			continue
		case t.family.Preset > s.cfg.UpTo():
			s.unread(t, pressure, 1)
			continue
		case t.spent:
			s.unread(t, spent, 1)
			continue
		case t.state(database).resting(time.Now()):
			s.unread(t, backedOff, 1)
			continue
		}
		if t.state(database).size < largeResult {
			sections = append(sections, s.read(ctx, conn, database, t)...)
			continue
		}
		end := turn.take(ctx)
		s.deliver(append(sections, s.read(ctx, conn, database, t)...))
		sections = nil
		end()
	}
	return sections
}

// read reads one family. Its failure is noted and goes no further.
func (s *Server) read(ctx context.Context, conn *pgconn.PgConn, database string, t *task) []batch.Section {
	log := s.log.With("family", t.family.Name)
	if database != "" {
		log = log.With("database", database)
	}
	limited, cancel := context.WithTimeout(ctx, s.cfg.StatementTimeout+grace)
	defer cancel()
	st := t.state(database)
	off, err := s.off(limited, conn, log, t, st)
	if off != nil {
		s.unread(t, missing, 1)
		return nil
	}
	at, start := now(), time.Now()
	var sections []batch.Section
	if err == nil {
		sections, err = s.sample(limited, conn, log, t, st, at)
	}
	if err != nil && ctx.Err() != nil {
		return nil // broken off; what was read to its end is handed over
	}
	s.metrics.query(start, err)
	if err != nil {
		s.failed(conn, log, t, st, err)
		return nil
	}
	if took := time.Since(start); took > s.cfg.SlowAfter {
		st.slowed(log, "read the family", took, 2*t.reading.Interval, max(maxBackOff, t.reading.Interval))
	} else {
		st.worked(log, "read the family")
	}
	return sections
}

func (s *Server) failed(conn *pgconn.PgConn, log *slog.Logger, t *task, st *state, err error) {
	s.metrics.queryErrors.WithLabelValues(s.cfg.Name, t.family.Name).Inc()
	if conn.IsClosed() && !timedOut(err) {
		log.Warn("connection lost while reading", "err", err) // not the family's fault
		return
	}
	if lacking(err) {
		st.next = time.Time{} // what was there is gone
	}
	t.spent = timedOut(err) // where one database holds it up, the next ones may too: one timeout a round, not one for each
	st.failed(log, "read the family", err, 2*t.reading.Interval, max(maxBackOff, t.reading.Interval))
}

// sample asks for the rows that are there now and returns those that are to be
// sent.
func (s *Server) sample(ctx context.Context, conn *pgconn.PgConn, log *slog.Logger, t *task, st *state, at time.Time) ([]batch.Section, error) {
	res, err := s.rows(ctx, conn, t, st, at)
	if err != nil {
		return nil, err
	}
	st.size = len(res.tuples)
	s.note(log, t, st, res)
	current, before := part{res.tuples, len(res.ends), at}, part{}
	if st.filter != nil {
		if current, before, err = st.filter.pass(res, at); err != nil {
			return nil, err
		}
		current.tuples = slices.Clone(current.tuples)
		giveBack(res.tuples)
		s.metrics.unsent.WithLabelValues(s.cfg.Name, t.family.Name).Add(float64(len(res.ends) - current.rows))
	}
	s.metrics.rows.WithLabelValues(s.cfg.Name, t.family.Name).Add(float64(current.rows + before.rows))
	var sections []batch.Section
	for _, p := range []part{before, current} {
		if p.rows > 0 {
			sections = append(sections, s.section(t, p))
		}
	}
	return sections, nil
}

func (s *Server) rows(ctx context.Context, conn *pgconn.PgConn, t *task, st *state, at time.Time) (*result, error) {
	if t.query.Keys != "" {
		return s.readKeyed(ctx, conn, t, st, at)
	}
	q := s.question(t, t.query.SQL, at)
	q.limit(t.reading.MaxRows)
	if st.filter != nil {
		q.room, q.known = borrow(st.size), st.filter.identify
	} else {
		q.room = make([]byte, 0, st.size)
	}
	return ask(ctx, conn, q)
}

// question returns one about all columns of the family.
func (s *Server) question(t *task, sql string, at time.Time) *question {
	return &question{family: t.family, places: t.places, sql: sql, at: at, server: s.id, texts: s.cfg.QueryText}
}

func (s *Server) section(t *task, p part) batch.Section {
	return batch.Section{
		Family: t.family.Name, Server: s.cfg.Name, ServerID: s.id, Columns: t.columns,
		Rows: p.rows, MinTime: p.at, MaxTime: p.at, Tuples: p.tuples,
	}
}

// note counts what had to be changed in a result, and what it lacks.
func (s *Server) note(log *slog.Logger, t *task, st *state, res *result) {
	for what, n := range res.fixed {
		if n > 0 {
			s.metrics.fixed.WithLabelValues(s.cfg.Name, t.family.Name, fixNames[what]).Add(float64(n))
		}
	}
	dropped := res.fixed[keyless] + res.fixed[oversized]
	if dropped > 0 && !st.dropping {
		log.Warn("rows are dropped, for they would be refused", "no_key", res.fixed[keyless], "too_long", res.fixed[oversized])
	}
	st.dropping = dropped > 0

	cut := res.cut()
	s.metrics.cut.WithLabelValues(s.cfg.Name, t.family.Name).Add(float64(cut))
	switch {
	case cut > 0 && !st.cut:
		log.Warn("result is cut", "rows", len(res.ends), "cut_rows", cut, "max_rows", t.reading.MaxRows)
	case cut == 0 && st.cut:
		log.Info("result is no longer cut", "rows", len(res.ends))
	}
	st.cut = cut > 0
}

// deliver hands sections over and waits until they are taken.
func (s *Server) deliver(sections []batch.Section) {
	if len(sections) > 0 {
		s.out <- sections
	}
}

// now returns the time as PostgreSQL would store it.
func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }
