package pgread

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
)

// Pauses between attempts to reach a server or a database.
const (
	minReconnect = time.Second
	maxReconnect = 30 * time.Second
)

// Run reads the server until ctx ends. Whoever takes the sections must do so
// until Run has returned.
func (s *Server) Run(ctx context.Context) error {
	var g errgroup.Group
	g.Go(func() error { s.runInstance(ctx); return nil })
	g.Go(func() error { s.runDatabases(ctx); return nil })
	return g.Wait()
}

// runInstance reads the families of scope instance over a connection that
// stays open.
func (s *Server) runInstance(ctx context.Context) {
	tasks := s.tasks(catalogue.Instance)
	if len(tasks) == 0 {
		return
	}
	var conn *pgconn.PgConn
	defer func() {
		if conn != nil {
			hangUp(conn)
		}
		s.metrics.up.DeleteLabelValues(s.cfg.Name) // neither up nor down: it is not read any more
	}()
	link := &health{}
	for {
		due := s.wait(ctx, tasks)
		if due == nil {
			return
		}
		if conn == nil {
			conn = s.reach(ctx, link, tasks)
		}
		if ctx.Err() != nil {
			return // an attempt to connect that was broken off says nothing of the server
		}
		if conn == nil {
			s.unreached(due)
			s.deliver(s.down(due))
			continue
		}
		s.deliver(s.readAll(ctx, conn, "", due))
		if conn.IsClosed() && ctx.Err() == nil { // is it the connection alone, or the server?
			hangUp(conn)
			if conn = s.reach(ctx, link, tasks); conn == nil && ctx.Err() == nil {
				s.deliver(s.down(tasks))
			}
		}
	}
}

// reach connects to the server unless it failed just before; nil: not there.
func (s *Server) reach(ctx context.Context, link *health, tasks []*task) *pgconn.PgConn {
	s.metrics.up.WithLabelValues(s.cfg.Name).Set(0)
	if link.resting(time.Now()) {
		return nil
	}
	conn, err := s.connectAs(ctx, "", tasks)
	if err != nil {
		if ctx.Err() == nil {
			s.metrics.connectErrors.WithLabelValues(s.cfg.Name).Inc()
			link.failed(s.log, "connect to the server", err, minReconnect, maxReconnect)
		}
		return nil
	}
	link.worked(s.log, "connect to the server")
	s.metrics.up.WithLabelValues(s.cfg.Name).Set(1)
	return conn
}

// connectAs connects and chooses the tasks' queries by the server's version.
func (s *Server) connectAs(ctx context.Context, database string, tasks []*task) (*pgconn.PgConn, error) {
	conn, err := s.connect(ctx, database)
	if err != nil {
		return nil, err
	}
	major, err := majorVersion(conn.ParameterStatus("server_version"))
	if err != nil {
		hangUp(conn)
		return nil, err
	}
	s.choose(tasks, major)
	return conn, nil
}

// down returns the row that says that the server does not answer, if
// pg_instance is among the tasks.
func (s *Server) down(tasks []*task) []batch.Section {
	for _, t := range tasks {
		place, ok := t.family.Column("is_up")
		if !ok || t.family.Name != "pg_instance" {
			continue
		}
		at := now()
		section := s.section(t, part{batch.AppendBool(batch.AppendTuple(nil, batch.LeadFields+1, at, s.id), false), 1, at})
		section.Columns = t.columns[place : place+1]
		return []batch.Section{section}
	}
	return nil
}

// runDatabases reads the families of scope database, one database after the
// other, over one connection at a time that is closed in between.
func (s *Server) runDatabases(ctx context.Context) {
	tasks := s.tasks(catalogue.Database)
	if len(tasks) == 0 {
		return
	}
	link, databases := &health{}, map[string]*health{}
	for {
		due := s.wait(ctx, tasks)
		if due == nil {
			return
		}
		names, err := s.discover(ctx)
		if err != nil {
			s.unreached(due)
			if ctx.Err() == nil {
				link.failed(s.log, "list databases", err, minReconnect, maxReconnect)
			}
			continue
		}
		link.worked(s.log, "list databases")
		for _, name := range names {
			if ctx.Err() != nil {
				return
			}
			s.visit(ctx, name, of(databases, name), due)
		}
		forget(names, databases, tasks)
	}
}

func (s *Server) discover(ctx context.Context) ([]string, error) {
	conn, err := s.connect(ctx, "")
	if err != nil {
		return nil, err
	}
	defer hangUp(conn)
	return s.databases(ctx, conn)
}

// visit reads what is due in one database.
func (s *Server) visit(ctx context.Context, name string, link *health, due []*task) {
	if link.resting(time.Now()) {
		s.unreached(due)
		return
	}
	if !slices.ContainsFunc(due, func(t *task) bool { return !t.spent }) {
		for _, t := range due {
			s.unread(t, spent, 1)
		}
		return
	}
	log := s.log.With("database", name)
	conn, err := s.connectAs(ctx, name, due)
	if err != nil {
		if ctx.Err() == nil {
			s.metrics.connectErrors.WithLabelValues(s.cfg.Name).Inc()
			link.failed(log, "connect to the database", err, due[0].reading.Interval, maxBackOff)
			s.unreached(due)
		}
		return
	}
	defer hangUp(conn)
	link.worked(log, "connect to the database")
	s.deliver(s.readAll(ctx, conn, name, due))
}

// forget drops what is remembered of databases that are gone.
func forget(names []string, databases map[string]*health, tasks []*task) {
	there := map[string]bool{}
	for _, name := range names {
		there[name] = true
	}
	for name := range databases {
		if there[name] {
			continue
		}
		delete(databases, name)
		for _, t := range tasks {
			delete(t.states, name)
		}
	}
}
