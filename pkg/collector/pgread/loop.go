package pgread

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"pganalytics/pkg/catalogue"
)

// Pauses between attempts to reach a server or a database.
const (
	minReconnect = time.Second
	maxReconnect = 30 * time.Second
)

// Run reads the server until ctx ends. Whoever takes the items must do so
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
		s.metrics.up.WithLabelValues(s.cfg.Name).Set(0)
	}()
	link := &health{}
	for {
		due := s.wait(ctx, tasks)
		if due == nil {
			return
		}
		if conn == nil || conn.IsClosed() {
			conn = s.reach(ctx, link, tasks)
		}
		if conn == nil {
			s.deliver(s.down(due))
			continue
		}
		s.deliver(s.readAll(ctx, conn, "", due))
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
	prepare(tasks, major)
	return conn, nil
}

// down returns the row that says that the server does not answer, when its
// time has come.
func (s *Server) down(due []*task) []Item {
	for _, t := range due {
		if _, ok := t.family.Column("is_up"); ok && t.family.Name == "pg_instance" {
			return []Item{{
				Family: t.family.Name, Server: s.cfg.Name, At: now(),
				Columns: []string{"is_up"}, Rows: [][]byte{[]byte("[false]")},
			}}
		}
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
		return
	}
	log := s.log.With("database", name)
	conn, err := s.connectAs(ctx, name, due)
	if err != nil {
		if ctx.Err() == nil {
			s.metrics.connectErrors.WithLabelValues(s.cfg.Name).Inc()
			link.failed(log, "connect to the database", err, due[0].interval, maxBackOff)
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
			delete(t.health, name)
			delete(t.filters, name)
		}
	}
}

// readAll runs what is due over one connection.
func (s *Server) readAll(ctx context.Context, conn *pgconn.PgConn, database string, due []*task) []Item {
	var items []Item
	for _, t := range due {
		if ctx.Err() != nil || conn.IsClosed() {
			break
		}
		if t.sql == "" || of(t.health, database).resting(time.Now()) {
			continue
		}
		items = append(items, s.read(ctx, conn, database, t)...)
	}
	return items
}

// read runs one query. Its failure is noted and goes no further.
func (s *Server) read(ctx context.Context, conn *pgconn.PgConn, database string, t *task) []Item {
	log := s.log.With("family", t.family.Name)
	if database != "" {
		log = log.With("database", database)
	}
	keep, at := t.filter(database), now()
	limited, cancel := context.WithTimeout(ctx, s.cfg.StatementTimeout+grace)
	defer cancel()
	res, err := query(limited, conn, t.family, t.sql, keep)
	if ctx.Err() != nil {
		return nil
	}
	s.metrics.query(at, err)
	if err != nil {
		s.metrics.queryErrors.WithLabelValues(s.cfg.Name, t.family.Name).Inc()
		if conn.IsClosed() && !errors.Is(err, context.DeadlineExceeded) {
			log.Warn("connection lost while reading", "err", err) // not the family's fault
			return nil
		}
		of(t.health, database).failed(log, "read the family", err, 2*t.interval, max(maxBackOff, t.interval))
		return nil
	}
	of(t.health, database).worked(log, "read the family")
	s.note(log, t, res)
	return s.items(t, keep, res, at)
}

// note counts what had to be changed in a result.
func (s *Server) note(log *slog.Logger, t *task, res *result) {
	if res.nulled > 0 {
		s.metrics.values.WithLabelValues("nulled").Add(float64(res.nulled))
	}
	if res.repaired > 0 {
		s.metrics.values.WithLabelValues("repaired").Add(float64(res.repaired))
	}
	if res.cut {
		s.metrics.cut.WithLabelValues(s.cfg.Name, t.family.Name).Inc()
		log.Warn("result was cut", "rows", maxRows)
	}
}

// items makes what is sent of a result.
func (s *Server) items(t *task, keep *filter, res *result, at time.Time) []Item {
	rows := res.rows
	var before [][]byte
	var beforeAt time.Time
	if keep != nil {
		rows, before, beforeAt = keep.pass(res.samples, at)
		s.metrics.unsent.WithLabelValues(s.cfg.Name, t.family.Name).Add(float64(len(res.samples) - len(rows)))
	}
	s.metrics.rows.WithLabelValues(s.cfg.Name, t.family.Name).Add(float64(len(rows) + len(before)))
	columns := make([]string, len(t.family.Columns))
	for i, c := range t.family.Columns {
		columns[i] = c.Name
	}
	var items []Item
	if len(before) > 0 {
		items = append(items, Item{Family: t.family.Name, Server: s.cfg.Name, At: beforeAt, Columns: columns, Rows: before})
	}
	if len(rows) > 0 {
		items = append(items, Item{Family: t.family.Name, Server: s.cfg.Name, At: at, Columns: columns, Rows: rows})
	}
	return items
}

// deliver hands items over and waits until they are taken.
func (s *Server) deliver(items []Item) {
	if len(items) > 0 {
		s.out <- items
	}
}

// now returns the time as PostgreSQL would store it.
func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }
