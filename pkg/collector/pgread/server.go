// Package pgread reads the metric families of the catalogue from PostgreSQL
// servers on a schedule.
//
// Invariants: at most two connections to a server, read-only, with statement
// and lock timeouts; one failing query, database or server never stops the
// others; what was read is handed over and never dropped here: while nobody
// takes it, nothing more is read.
package pgread

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgproto3"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/policy"
)

// Config of one server.
type Config struct {
	// CollectorID is whose server it is: the ids of servers are computed of it.
	CollectorID uuid.UUID

	// Name of the server, which it keeps for ever: rows are stored under it.
	Name string

	// Conninfo is a URL or a DSN, as libpq takes them, with or without a
	// password. It is never printed.
	Conninfo string

	// Include and Exclude are patterns, as of path.Match, of names of
	// databases to read families of scope database from. An empty Include is
	// all. Templates, and databases that do not allow connections, never are.
	Include, Exclude []string

	// Families are those that are read, by name. Defaults to those of
	// catalogue.Standard as the catalogue has them.
	Families map[string]policy.Reading

	// QueryText says what becomes of raw query text. Defaults to TextRedacted.
	QueryText TextPolicy

	// UpTo tells, before every reading, the largest preset whose families are
	// read now; the others wait. nil: all are read, always.
	UpTo func() catalogue.Preset

	// StatementTimeout bounds one query on the server. Defaults to 5s.
	StatementTimeout time.Duration

	// LockTimeout bounds waiting for a lock on the server. Defaults to 100ms.
	LockTimeout time.Duration

	// ConnectTimeout bounds making a connection. Defaults to 5s.
	ConnectTimeout time.Duration

	// SlowAfter is how long a query may take. A family that takes longer three
	// times in a row is read less often, until it is faster. Defaults to half
	// of StatementTimeout.
	SlowAfter time.Duration

	// LookAgain is how often it is looked whether what a family needs is there.
	// Defaults to 10m.
	LookAgain time.Duration
}

func (c *Config) setDefaults(cat *catalogue.Catalogue) {
	if c.Families == nil {
		c.Families = policy.Policy{}.Resolve(cat)
	}
	if c.StatementTimeout == 0 {
		c.StatementTimeout = 5 * time.Second
	}
	if c.LockTimeout == 0 {
		c.LockTimeout = 100 * time.Millisecond
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = 5 * time.Second
	}
	if c.SlowAfter == 0 {
		c.SlowAfter = c.StatementTimeout / 2
	}
	if c.LookAgain == 0 {
		c.LookAgain = 10 * time.Minute
	}
	if c.UpTo == nil {
		c.UpTo = func() catalogue.Preset { return catalogue.Exhaustive }
	}
}

// Validate reports all faults. It shows nothing of the conninfo.
func (c *Config) Validate() error {
	var errs []error
	switch {
	case c.Name == "":
		errs = append(errs, errors.New("server has no name"))
	case !push.ValidName(c.Name): // would make dead letters of all that is read
		errs = append(errs, fmt.Errorf("server %q: name must be at most 255 bytes long, without control characters", c.Name))
	}
	if _, err := c.parse(); err != nil {
		errs = append(errs, fmt.Errorf("server %q: %w", c.Name, err))
	}
	for _, pattern := range append(append([]string(nil), c.Include...), c.Exclude...) {
		if _, err := path.Match(pattern, ""); err != nil {
			errs = append(errs, fmt.Errorf("server %q: bad database pattern %q", c.Name, pattern))
		}
	}
	return errors.Join(errs...)
}

// grace is how much longer than the server's own timeout the collector waits
// before it gives a connection up.
const grace = 2 * time.Second

// cancelTime is how long the collector waits for the end of a statement that it
// cancelled, or of a session that it ended, before it gives the connection up.
// A busy server takes its time, and losing the connection would cost those that
// are due behind the statement their turn.
const cancelTime = 5 * time.Second

// keepAlive notices within half a minute that a server's host is gone. The
// connection is idle for longer than that between two readings.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}

// parse makes the settings of a connection.
func (c *Config) parse() (*pgconn.Config, error) {
	cfg, err := pgconn.ParseConfig(c.Conninfo)
	if err != nil {
		// pgconn's own text hides the password; the rest of a conninfo may
		// be private too.
		return nil, errors.New("conninfo is not valid")
	}
	cfg.ConnectTimeout = c.ConnectTimeout
	cfg.DialFunc = (&net.Dialer{KeepAliveConfig: keepAlive}).DialContext
	cfg.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: conn, DeadlineDelay: cancelTime}
	}
	for name := range c.settings() {
		delete(cfg.RuntimeParams, name)
	}
	// Only these are sent with the connection: a name for the server's log, and
	// the longest wait for a lock, which is needed for the catalogs that a session
	// reads before its first statement. What else the session has of its own would
	// hide the server's settings if it were sent: see prepare.
	cfg.RuntimeParams["application_name"] = "pganalytics-collector"
	cfg.RuntimeParams["lock_timeout"] = milliseconds(c.LockTimeout)
	return cfg, nil
}

// settings are those of a session.
func (c *Config) settings() map[string]string {
	return map[string]string{
		"client_encoding":                     "UTF8",
		"statement_timeout":                   milliseconds(c.StatementTimeout),
		"idle_in_transaction_session_timeout": milliseconds(c.StatementTimeout),
		"default_transaction_read_only":       "on",
		"timezone":                            "UTC",
	}
}

func milliseconds(d time.Duration) string { return fmt.Sprint(d.Milliseconds()) }

// wanted reports whether families of scope database are read from a database.
func (c *Config) wanted(database string) bool {
	matches := func(patterns []string) bool {
		for _, p := range patterns {
			if ok, _ := path.Match(p, database); ok {
				return true
			}
		}
		return false
	}
	return (len(c.Include) == 0 || matches(c.Include)) && !matches(c.Exclude)
}

// Server reads one PostgreSQL server.
type Server struct {
	cfg       Config
	catalogue *catalogue.Catalogue
	log       *slog.Logger
	metrics   *Metrics
	out       chan<- []batch.Section
	id        uuid.UUID    // of the server
	newer     atomic.Int32 // the unknown version that was warned of
}

// NewServer makes the reader of a server. What it reads goes to out.
func NewServer(cfg Config, cat *catalogue.Catalogue, log *slog.Logger, m *Metrics, out chan<- []batch.Section) (*Server, error) {
	cfg.setDefaults(cat)
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Server{
		cfg: cfg, catalogue: cat, metrics: m, out: out,
		log: log.With("server", cfg.Name),
		id:  batch.ServerID(cfg.CollectorID, cfg.Name),
	}, nil
}

// connect opens a connection to a database, "" for the conninfo's own.
func (s *Server) connect(ctx context.Context, database string) (*pgconn.PgConn, error) {
	cfg, err := s.cfg.parse() // anew each time: passwords in files change
	if err != nil {
		return nil, err
	}
	if database != "" {
		cfg.Database = database
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ConnectTimeout)
	defer cancel()
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	if err := s.prepare(ctx, conn); err != nil {
		hangUp(conn)
		return nil, err
	}
	return conn, nil
}

// prepare makes the settings of a session, in one round trip. They are set, not
// sent with the connection: so pg_settings still has the server's own values, as
// those that a reset would give. Each is in force for the statements behind it.
func (s *Server) prepare(ctx context.Context, conn *pgconn.PgConn) error {
	settings := s.cfg.settings()
	// Texts of such a database may be anything. To a client of another encoding
	// the server would refuse every result with one that is not valid there.
	if conn.ParameterStatus("server_encoding") == "SQL_ASCII" {
		settings["client_encoding"] = "SQL_ASCII"
	}
	var sql strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&sql, "set %s = '%s';", name, settings[name])
	}
	if _, err := conn.Exec(ctx, sql.String()+searchPathSQL).ReadAll(); err != nil {
		return fmt.Errorf("prepare the session: %w", err)
	}
	return nil
}

// searchPathSQL leaves the system's schema and, for the names that only an
// extension has, the extension's own. Any other may be one that strangers write
// to, whose functions would then run with the rights of the collector's role.
const searchPathSQL = `
select pg_catalog.set_config('search_path', pg_catalog.concat_ws(', ', 'pg_catalog',
       (select pg_catalog.quote_ident(n.nspname)
          from pg_catalog.pg_extension e
          join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) e.extnamespace
         where e.extname operator(pg_catalog.=) 'pg_stat_statements')), false)`

// hangUp closes a connection and waits, not for long, until the server has
// ended the session: only then another one does not come on top of it.
func hangUp(conn *pgconn.PgConn) {
	link, err := conn.Hijack()
	if err != nil { // it is closed, or in the middle of something
		ctx, cancel := context.WithTimeout(context.Background(), cancelTime)
		defer cancel()
		_ = conn.Close(ctx)
		select {
		case <-conn.CleanupDone():
		case <-ctx.Done():
		}
		return
	}
	defer func() { _ = link.Conn.Close() }()
	_ = link.Conn.SetDeadline(time.Now().Add(cancelTime))
	link.Frontend.Send(&pgproto3.Terminate{})
	if link.Frontend.Flush() == nil {
		_, _ = io.Copy(io.Discard, link.Conn) // up to its end
	}
}

const databasesSQL = `
select datname::text
  from pg_catalog.pg_database
 where datallowconn and not datistemplate and datconnlimit <> -2 -- an interrupted drop
   and pg_catalog.has_database_privilege(datname, 'connect')
 order by 1`

// databases returns the names of the databases to read.
func (s *Server) databases(ctx context.Context, conn *pgconn.PgConn) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.StatementTimeout+grace)
	defer cancel()
	res := conn.ExecParams(ctx, databasesSQL, nil, nil, nil, nil).Read()
	if res.Err != nil {
		return nil, fmt.Errorf("list databases: %w", res.Err)
	}
	var names []string
	for _, row := range res.Rows {
		if name := string(row[0]); s.cfg.wanted(name) {
			names = append(names, name)
		}
	}
	return names, nil
}
