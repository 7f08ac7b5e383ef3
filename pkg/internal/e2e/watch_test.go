package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/internal/testpg"
)

// watcher is the role of the collector on the servers that it watches. It has
// pg_monitor and may connect; that is all.
const watcher = "watcher"

// watch is a system whose collector watches servers of the test.
type watch struct {
	*system
	catalogue *catalogue.Catalogue
	conn      *pgx.Conn // of the database where the rows come to
}

// newWatch makes a system that runs, but for the collector.
func newWatch(t *testing.T) *watch {
	t.Helper()
	c, err := catalogue.Default()
	require.NoError(t, err)
	w := &watch{system: newSystem(t, testdb.New(t)), catalogue: c}
	w.startServe()
	w.enrol("watching", w.state())
	w.conn, err = pgx.Connect(t.Context(), w.db)
	require.NoError(t, err)
	t.Cleanup(func() { _ = w.conn.Close(context.Background()) })
	return w
}

// prepare does on a server what an administrator does before it is watched.
func (w *watch) prepare(s *testpg.Server, databases ...string) {
	w.t.Helper()
	s.Exec("postgres", "create role "+watcher+" login in role pg_monitor")
	for _, database := range databases {
		s.Exec(database, "create extension if not exists pg_stat_statements")
		for _, f := range w.catalogue.Families() {
			if f.Setup != "" {
				s.Exec(database, f.Setup)
			}
		}
	}
}

// collect starts the collector on a host that is stored under the name. It reads
// every family of the catalogue and of the folder more, if any, once a second.
func (w *watch) collect(servers map[string]*testpg.Server, host, more string) {
	w.t.Helper()
	var yaml strings.Builder
	fmt.Fprintf(&yaml, "statement_timeout: 2s\nhost: {name: %s}\nservers:\n", host)
	for name, s := range servers {
		fmt.Fprintf(&yaml, "  - {name: %s, conninfo: %q, log_files: %q}\n", name, s.URLAs(watcher, "postgres"), logFiles(s))
	}
	yaml.WriteString(w.everySecond(more))
	config := filepath.Join(w.dir, "collector.yaml")
	require.NoError(w.t, os.WriteFile(config, []byte(yaml.String()), 0o600))
	args := []string{"run", "--state-dir", w.state(), "--config", config, "--admin-listen", "127.0.0.1:0"}
	if more != "" {
		args = append(args, "--catalogue-dir", more)
	}
	w.collector = w.run("collector", args...)
}

// logging are the settings of a server whose log the collector reads.
func logging(major int) []string {
	return []string{"logging_collector = on", "log_destination = '" + logFormat(major) + "log'", "log_directory = 'log'"}
}

// logFormat is the newest that the version has.
func logFormat(major int) string {
	if major < 15 {
		return "csv"
	}
	return "json"
}

func logFiles(s *testpg.Server) string {
	return filepath.Join(s.Data(), "log", "*."+logFormat(s.Major()))
}

// everySecond is the part of the configuration that says what is read.
func (w *watch) everySecond(more string) string {
	var yaml strings.Builder
	yaml.WriteString("families:\n")
	for _, f := range w.catalogue.Families() {
		fmt.Fprintf(&yaml, "  %s: {interval: 1s}\n", f.Name)
	}
	if more != "" {
		files, err := filepath.Glob(filepath.Join(more, "*.yaml"))
		require.NoError(w.t, err)
		for _, file := range files {
			fmt.Fprintf(&yaml, "  %s: {interval: 1s}\n", strings.TrimSuffix(filepath.Base(file), ".yaml"))
		}
	}
	return yaml.String()
}

// stored reads one value of the rows of a family from a server. The query sees
// them as the table f, with the parameters from $2 on; false means no row.
func stored[T any](w *watch, server, family, query string, args ...any) (v T, ok bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	rows, err := w.conn.Query(ctx, `with f as (select * from metrics.`+family+`
		where server_id in (select server_id from metrics.server where name = $1)) `+query, append([]any{server}, args...)...)
	require.NoError(w.t, err, query)
	all, err := pgx.CollectRows(rows, pgx.RowTo[T])
	require.NoError(w.t, err, query)
	if len(all) == 0 {
		return v, false
	}
	return all[0], true
}

// sees waits until a condition over the rows of a family from a server is true.
func (w *watch) sees(what, server, family, condition string, args ...any) {
	w.t.Helper()
	w.eventually(what, func() bool {
		is, ok := stored[*bool](w, server, family, "select "+condition, args...)
		return ok && is != nil && *is
	})
}

// goesOn waits for rows of a family that were read after now.
func (w *watch) goesOn(server, family string) {
	w.t.Helper()
	w.sees(family+" of "+server+" goes on", server, family, "exists (select from f where time > $2)", now())
}

// now is the time as the database stores it.
func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }

// lacking returns the families that have rows from none of the servers, though
// there is a query for their version.
func (w *watch) lacking(major int, servers ...string) []string {
	w.t.Helper()
	var names []string
	for _, f := range w.catalogue.Families() {
		if _, ok := f.Query(major); !ok && len(f.Queries) > 0 {
			continue
		}
		if !w.has(f, servers...) {
			names = append(names, f.Name)
		}
	}
	return names
}

// has reports whether there are rows of a family from any of the servers.
func (w *watch) has(f *catalogue.Family, servers ...string) bool {
	w.t.Helper()
	return slices.ContainsFunc(servers, func(server string) bool {
		n, _ := stored[int](w, server, f.Name, "select 1 from f limit 1")
		return n == 1
	})
}
