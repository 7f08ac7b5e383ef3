package pgread

import (
	"context"
	"slices"
	"time"

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
	Off      string // why the family is not read; empty if it is
	Err      error  // why it cannot be read
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
		f := FamilyReport{Family: t.family.Name}
		if t.family.Scope == catalogue.Database {
			f.Database = s.conninfo.Database
		}
		if t.sql == "" {
			f.Off = "not on servers of this version"
			report.Families = append(report.Families, f)
			continue
		}
		if conn.IsClosed() {
			if conn, err = s.connect(ctx, ""); err != nil {
				return nil, err
			}
		}
		start := time.Now()
		limited, cancel := context.WithTimeout(ctx, s.cfg.StatementTimeout+grace)
		res, err := query(limited, conn, t.family, t.sql, nil)
		cancel()
		f.Took, f.Err = time.Since(start), err
		if err == nil {
			f.Rows = len(res.rows)
		}
		report.Families = append(report.Families, f)
	}
	return report, nil
}
