package pgread

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pganalytics/pkg/catalogue"
)

// Reason is why a family is not read from a database.
type Reason uint8

// The reasons.
const (
	OldServer   Reason = iota + 1 // servers of this version do not have it
	NoExtension                   // its extension is not there
	NoFunction                    // its function is not there: the family's setup was not run
	NoPrivilege                   // the collector's role may not execute its function
	NotTrusted                    // its function may be a stranger's, and would run with the collector's rights
	TextsAreOff                   // it is nothing but query texts, and these are off
)

// Off says that a family is not read from a database, and why. Something else
// than a failure: nothing is wrong with server or collector.
type Off struct {
	Reason Reason
	Needs  string // name of the extension or function
}

// String tells people.
func (o Off) String() string {
	switch o.Reason {
	case OldServer:
		return "not on servers of this version"
	case NoExtension:
		return "extension " + o.Needs + " is not in this database"
	case NoFunction:
		return "function " + o.Needs + " is not in this database"
	case NoPrivilege:
		return "the role may not execute the function " + o.Needs
	case NotTrusted:
		return "function " + o.Needs + ", or its schema, is in the hands of a role that could gain the collector's rights thereby"
	case TextsAreOff:
		return "query texts are off"
	}
	return fmt.Sprintf("reason(%d)", o.Reason)
}

// LogValue tells logs, whatever their format.
func (o Off) LogValue() slog.Value { return slog.StringValue(o.String()) }

// requirement is what is known of what a family needs in one database.
type requirement struct {
	off  *Off // nil: nothing is missing
	next time.Time
}

// off returns why a family cannot be read over this connection, nil if it can.
// What changes on the server is seen at the latest after Config.LookAgain.
func (s *Server) off(ctx context.Context, conn *pgconn.PgConn, log *slog.Logger, t *task, st *state) (*Off, error) {
	if time.Now().Before(st.next) {
		return st.off, nil
	}
	off, err := s.look(ctx, conn, t)
	if err != nil {
		return nil, fmt.Errorf("look for what the family needs: %w", err)
	}
	switch {
	case off == nil && st.off != nil:
		log.Info("family is read again", "before", st.off)
	case off != nil && !t.knows(*off): // once for all databases
		log.Warn("family is not read", "reason", off)
	}
	st.off, st.next = off, time.Now().Add(s.cfg.LookAgain)
	return off, nil
}

// knows reports whether the family is off in some database for that reason.
func (t *task) knows(off Off) bool {
	for _, st := range t.states {
		if st.off != nil && *st.off == off {
			return true
		}
	}
	return false
}

// look finds out why the family cannot be read, nil if it can.
func (s *Server) look(ctx context.Context, conn *pgconn.PgConn, t *task) (*Off, error) {
	if t.query.SQL == "" {
		return &Off{Reason: OldServer}, nil
	}
	if s.cfg.QueryText == TextOff && onlyTexts(t.family) {
		return &Off{Reason: TextsAreOff}, nil
	}
	needs := t.family.Requires
	if needs == (catalogue.Requires{}) {
		return nil, nil
	}
	there, err := s.requirements(ctx, conn, needs)
	switch {
	case err != nil:
		return nil, err
	case needs.Extension != "" && !there.extension:
		return &Off{NoExtension, needs.Extension}, nil
	case needs.Function != "" && !there.function:
		return &Off{NoFunction, needs.Function}, nil
	case needs.Function != "" && !there.trusted:
		return &Off{NotTrusted, needs.Function}, nil
	case needs.Function != "" && !there.executable:
		return &Off{NoPrivilege, needs.Function}, nil
	}
	return nil, s.prepare(ctx, conn) // the extension may have come after the connection
}

// onlyTexts reports whether a dimension has nothing but query texts.
func onlyTexts(f *catalogue.Family) bool {
	return f.Dimension && !slices.ContainsFunc(f.Columns, func(c catalogue.Column) bool { return !c.NotNull && !c.QueryText })
}

// requirementsSQL looks for functions of the wanted name, whatever their
// parameters: which one a query calls is the parser's choice. They are trusted
// if they and their schema, which not everybody may write to, belong to roles
// that have all that the collector's has, and so gain nothing from being called
// by it. That a function is security definer would not do: defaults of its
// parameters, and casts to their types, are evaluated with the caller's rights,
// and its owner can replace it between this look and the call. It does in any
// other schema than the collector's own, which strangers know by name: there
// whoever wrote the family chose whose function is called.
const requirementsSQL = `
with functions as (
  select pg_catalog.has_function_privilege(p.oid, 'execute') and pg_catalog.has_schema_privilege(n.oid, 'usage') as executable,
         n.nspname <> 'pganalytics' and p.prosecdef
         or not pg_catalog.has_schema_privilege('public', n.oid, 'create') and not exists (
           select from pg_catalog.pg_roles r
            where (r.rolname = 'pg_monitor' or pg_catalog.pg_has_role(r.oid, 'member'))
              and (r.rolname <> current_user or r.rolsuper)
              and not (pg_catalog.pg_has_role(p.proowner, r.oid, 'member') and pg_catalog.pg_has_role(n.nspowner, r.oid, 'member'))
         ) as trusted
    from pg_catalog.pg_proc p
    join pg_catalog.pg_namespace n on n.oid = p.pronamespace
   where n.nspname || '.' || p.proname = $2)
select exists (select from pg_catalog.pg_extension where extname = $1),
       exists (select from functions),
       exists (select from functions where executable),
       not exists (select from functions where not trusted)`

type requirements struct{ extension, function, executable, trusted bool }

func (s *Server) requirements(ctx context.Context, conn *pgconn.PgConn, needs catalogue.Requires) (there requirements, err error) {
	args := [][]byte{[]byte(needs.Extension), []byte(needs.Function)}
	text := catalogue.Text.OID()
	res := conn.ExecParams(ctx, requirementsSQL, args, []uint32{text, text}, nil, nil).Read()
	if res.Err != nil {
		return there, res.Err
	}
	is := func(i int) bool { return string(res.Rows[0][i]) == "t" }
	return requirements{is(0), is(1), is(2), is(3)}, nil
}
