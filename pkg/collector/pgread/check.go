package pgread

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pganalytics/pkg/catalogue"
)

// Report is what a check of a server found.
type Report struct {
	Version  int // major
	Families []FamilyReport
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

// Check connects and reads every family once, those of scope database in the
// database of the conninfo only. An error means that the server could not be
// reached.
func (s *Server) Check(ctx context.Context) (*Report, error) {
	tasks := slices.Concat(s.tasks(catalogue.Instance), s.tasks(catalogue.Database))
	conn, err := s.connectAs(ctx, "", tasks)
	if err != nil {
		return nil, err
	}
	defer func() {
		if conn != nil {
			hangUp(conn)
		}
	}()
	report := &Report{}
	if report.Version, err = majorVersion(conn.ParameterStatus("server_version")); err != nil {
		return nil, err
	}
	for _, t := range tasks {
		if conn.IsClosed() {
			if conn, err = s.connect(ctx, ""); err != nil {
				return nil, err
			}
		}
		report.Families = append(report.Families, s.check(ctx, conn, t))
	}
	return report, nil
}

// check reads one family.
func (s *Server) check(ctx context.Context, conn *pgconn.PgConn, t *task) FamilyReport {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.StatementTimeout+grace)
	defer cancel()
	f := FamilyReport{Family: t.family.Name}
	if t.family.Scope == catalogue.Database {
		f.Database = s.conninfo.Database
	}
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
