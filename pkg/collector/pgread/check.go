package pgread

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pganalytics/pkg/catalogue"
)

// Report is what a check of a server found.
type Report struct {
	Version   string // as the server says it
	Standby   bool
	User      string // role that the collector is
	Superuser bool
	Monitor   bool   // has the rights of pg_monitor
	Database  string // that of the conninfo

	Extensions []Extension
	Families   []FamilyReport
}

// Extension is one that families need, as it is in a database.
type Extension struct {
	Database  string
	Name      string
	Version   string
	Available string // the version that the server's files have
}

// FamilyReport is what one query gave.
type FamilyReport struct {
	Family   string
	Database string // empty for scope instance
	Rows     int
	Took     time.Duration
	Off      *Off  // why the family is not read; nil if it is
	Err      error // why it cannot be read
}

// Check connects and reads every family once, those of scope database in every
// database. An error means that the server could not be reached.
func (s *Server) Check(ctx context.Context) (*Report, error) {
	tasks := s.tasks(catalogue.Instance)
	conn, err := s.connectAs(ctx, "", tasks)
	if err != nil {
		return nil, err
	}
	defer func() { hangUp(conn) }()
	report := &Report{}
	if err := s.facts(ctx, conn, report); err != nil {
		return nil, err
	}
	names, err := s.databases(ctx, conn)
	if err != nil {
		return nil, err
	}
	if report.Extensions, err = s.extensions(ctx, conn, report.Database); err != nil {
		return nil, err
	}
	for _, t := range tasks {
		if conn.IsClosed() {
			if conn, err = s.connect(ctx, ""); err != nil {
				return nil, err
			}
		}
		report.Families = append(report.Families, s.check(ctx, conn, "", t))
	}
	tasks = s.tasks(catalogue.Database)
	for _, name := range names {
		if len(tasks) > 0 && ctx.Err() == nil {
			s.checkDatabase(ctx, name, tasks, report)
		}
	}
	return report, ctx.Err()
}

// checkDatabase reads what is read in one database. One that cannot be
// connected to is a fault of all its families.
func (s *Server) checkDatabase(ctx context.Context, name string, tasks []*task, report *Report) {
	conn, err := s.connectAs(ctx, name, tasks)
	if err == nil {
		defer hangUp(conn)
		if name != report.Database {
			var more []Extension
			more, err = s.extensions(ctx, conn, name)
			report.Extensions = append(report.Extensions, more...)
		}
	}
	for _, t := range tasks {
		if err != nil {
			report.Families = append(report.Families, FamilyReport{Family: t.family.Name, Database: name, Err: err})
			continue
		}
		report.Families = append(report.Families, s.check(ctx, conn, name, t))
	}
}

// check reads one family.
func (s *Server) check(ctx context.Context, conn *pgconn.PgConn, database string, t *task) FamilyReport {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.StatementTimeout+grace)
	defer cancel()
	f := FamilyReport{Family: t.family.Name, Database: database}
	if f.Off, f.Err = s.look(ctx, conn, t); f.Off != nil || f.Err != nil {
		return f
	}
	start := time.Now()
	res, err := s.rows(ctx, conn, t, &state{}, now())
	f.Took, f.Err = time.Since(start), err
	if err == nil {
		f.Rows = len(res.ends)
	}
	return f
}

const factsSQL = `
select pg_catalog.current_setting('server_version'), pg_catalog.pg_is_in_recovery(), current_user::text,
       r.rolsuper, pg_catalog.pg_has_role(r.oid, 'pg_monitor', 'usage'), pg_catalog.current_database()::text
  from pg_catalog.pg_roles r
 where r.rolname = current_user`

func (s *Server) facts(ctx context.Context, conn *pgconn.PgConn, report *Report) error {
	rows, err := s.ask(ctx, conn, factsSQL)
	if err != nil || len(rows) != 1 {
		return fmt.Errorf("ask the server what it is: %w", err)
	}
	row := rows[0]
	report.Version, report.Standby, report.User = row[0], row[1] == "t", row[2]
	report.Superuser, report.Monitor, report.Database = row[3] == "t", row[4] == "t", row[5]
	return nil
}

const extensionsSQL = `
select e.extname::text, e.extversion, coalesce(a.default_version, e.extversion)
  from pg_catalog.pg_extension e
  left join pg_catalog.pg_available_extensions a on a.name = e.extname
 order by 1`

// extensions returns those of a database that families need.
func (s *Server) extensions(ctx context.Context, conn *pgconn.PgConn, database string) ([]Extension, error) {
	needed := map[string]bool{}
	for _, f := range s.catalogue.Families() {
		needed[f.Requires.Extension] = true
	}
	rows, err := s.ask(ctx, conn, extensionsSQL)
	if err != nil {
		return nil, fmt.Errorf("list extensions: %w", err)
	}
	var list []Extension
	for _, row := range rows {
		if needed[row[0]] {
			list = append(list, Extension{Database: database, Name: row[0], Version: row[1], Available: row[2]})
		}
	}
	return list, nil
}

// ask returns the rows of a small result as texts.
func (s *Server) ask(ctx context.Context, conn *pgconn.PgConn, sql string) ([][]string, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.StatementTimeout+grace)
	defer cancel()
	res := conn.ExecParams(ctx, sql, nil, nil, nil, nil).Read()
	if res.Err != nil {
		return nil, res.Err
	}
	rows := make([][]string, len(res.Rows))
	for i, row := range res.Rows {
		for _, value := range row {
			rows[i] = append(rows[i], string(value))
		}
	}
	return rows, nil
}
