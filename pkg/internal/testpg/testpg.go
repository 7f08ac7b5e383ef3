// Package testpg gives tests real PostgreSQL servers to watch, of every major version that scripts/postgres.sh unpacks.
//
// Each server has a folder of its own and listens on a socket there, on no port; it is gone, with the folder, when its
// test ends, also when the test binary is killed. Nothing here stands in for a server. What the product itself stores
// its rows in is package testdb's.
package testpg

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pganalytics/pkg/catalogue"
)

// variable holds the folder that `scripts/postgres.sh fetch` prints.
const variable = "TEST_POSTGRES_ROOT"

// hostRoot is where Debian's packages put their servers.
const hostRoot = "/usr/lib/postgresql"

// patience bounds every wait for a server: generous, for a busy host.
const patience = time.Minute

// Server is one PostgreSQL server.
type Server struct {
	tb    testing.TB
	major int
	bin   string
	home  string // the socket, the log and data/
	end   func() // stops and deletes it
}

// Start starts a server of the major version with settings of postgresql.conf besides its own, such as
// "max_connections = 10". It loads pg_stat_statements, times its input and output, has WAL for logical decoding and
// lets standbys stream. It skips the test where there is no such version, and fails it under CI=true.
func Start(tb testing.TB, major int, settings ...string) *Server {
	tb.Helper()
	s := newServer(tb, major)
	s.copyCluster()
	s.Configure(append(standard(major), settings...)...)
	s.Start()
	return s
}

// Versions returns the major versions to test with: all that the catalogue has queries for with WATCH=all, else few.
func Versions(few ...int) []int {
	if os.Getenv("WATCH") != "all" {
		return few
	}
	var all []int
	for major := catalogue.OldestServer; major <= catalogue.NewestServer; major++ {
		all = append(all, major)
	}
	return all
}

func standard(major int) []string {
	settings := []string{
		"listen_addresses = ''",
		"port = 5432",
		"max_connections = 100",
		"shared_buffers = 16MB",
		"shared_preload_libraries = 'pg_stat_statements'",
		"track_io_timing = on",
		"track_functions = all",
		"wal_level = logical",
		"max_wal_senders = 8",
		"max_replication_slots = 8",
		"wal_keep_size = 256MB",
		"timezone = 'UTC'",
		"log_timezone = 'UTC'",
		"fsync = off", // only the machine's own end could tell
	}
	if major >= 14 {
		settings = append(settings, "track_wal_io_timing = on")
	}
	return settings
}

// newServer makes a server's folder, and what deletes it.
func newServer(tb testing.TB, major int) *Server {
	tb.Helper()
	s := &Server{tb: tb, major: major, bin: programs(tb, major)}
	home, err := os.MkdirTemp("", "pganalytics-pg")
	must(tb, err)
	s.home = home
	if id := credential(tb); id != nil {
		must(tb, os.Chown(home, int(id.Uid), int(id.Gid)))
	}
	s.end = undertake(tb, home)
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("PostgreSQL %d:\n%s", major, s.logTail())
		}
		s.end()
	})
	return s
}

// undertake starts what stops the server in the folder and deletes it, once the returned function is called or this
// process is gone.
func undertake(tb testing.TB, home string) (end func()) {
	tb.Helper()
	cmd := exec.Command("sh", "-c", `cat
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ] && [ "/proc/$pid/cwd" -ef "$1/data" ]; then
  kill -QUIT "$pid"
  while [ "/proc/$pid/cwd" -ef "$1/data" ]; do sleep 0.02; done
fi
rm -rf "$1"`, "sh", home)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is not for it
	hold, err := cmd.StdinPipe()
	must(tb, err)
	must(tb, cmd.Start())
	return func() {
		_ = hold.Close()
		if err := cmd.Wait(); err != nil {
			tb.Errorf("testpg: delete %s: %v", home, err)
		}
	}
}

// common is a server that the tests of this binary share, once one of them wanted it.
type common struct {
	mu     sync.Mutex
	server *Server
}

// By major version, *common each: servers that run, and files that initdb made.
var commons, clusters sync.Map

// of returns the server of the version, which begin makes if there is none.
func of(all *sync.Map, major int, begin func() *Server) *Server {
	c, _ := all.LoadOrStore(major, &common{})
	shared := c.(*common)
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.server == nil {
		shared.server = begin()
	}
	return shared.server
}

// copyCluster makes the data directory. Once per version that is initdb's work, which takes as long as much of a test.
func (s *Server) copyCluster() {
	s.tb.Helper()
	from := of(&clusters, s.major, func() *Server {
		first := newServer(&binary{TB: s.tb}, s.major)
		must(s.tb, first.command("initdb", "-D", first.data(), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"))
		return first
	})
	must(s.tb, s.asOwner("cp", "-a", from.data(), s.data()))
}

// Shared returns a server that all tests of the binary share: they read, or change what is theirs alone. It skips and
// fails as Start does.
func Shared(tb testing.TB, major int) *Server {
	tb.Helper()
	return of(&commons, major, func() *Server { return Start(&binary{TB: tb}, major) }).For(tb)
}

// For returns the server for a part of the test: what a call starts ends with that part, and what fails fails there.
func (s *Server) For(tb testing.TB) *Server {
	part := *s
	part.tb = tb
	return &part
}

// binary is a test that ends when its process does.
type binary struct{ testing.TB }

func (*binary) Cleanup(func()) {}

// programs returns the folder of the version's programs, or ends a test that cannot have them.
func programs(tb testing.TB, major int) string {
	tb.Helper()
	root := filepath.Join(cmp.Or(os.Getenv(variable), hostRoot), strconv.Itoa(major))
	if _, err := os.Stat(filepath.Join(root, "bin", "initdb")); err == nil {
		return filepath.Join(root, "bin")
	}
	if reason, err := os.ReadFile(filepath.Join(root, "missing")); err == nil {
		tb.Skipf("no PostgreSQL %d: %s", major, strings.TrimSpace(string(reason)))
	}
	reason := fmt.Sprintf("needs PostgreSQL %d: set %s=$(scripts/postgres.sh fetch) or run make test", major, variable)
	if os.Getenv("CI") == "true" {
		tb.Fatal(reason) // a skipped test would be a silent green
	}
	tb.Skip(reason)
	return ""
}

// credential is that of the servers' user where a test is root, who must not run one.
func credential(tb testing.TB) *syscall.Credential {
	tb.Helper()
	if os.Getuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		u, err = user.Lookup("nobody")
	}
	must(tb, err)
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	must(tb, err)
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	must(tb, err)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// command runs one of the version's programs.
func (s *Server) command(program string, args ...string) error {
	return s.asOwner(filepath.Join(s.bin, program), args...)
}

// asOwner runs a program as the servers' user.
func (s *Server) asOwner(program string, args ...string) error {
	cmd := exec.Command(program, args...)
	cmd.Dir = s.home
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential(s.tb)}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if filepath.Base(program) == "pg_ctl" { // the server would keep the pipe open
		cmd.Stdout, cmd.Stderr = nil, nil
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %v: %w %s", program, args, err, &out)
	}
	return nil
}

// Major is the major version.
func (s *Server) Major() int { return s.major }

// URL is that of a database, as a superuser. It stays the same when the server is started again.
func (s *Server) URL(database string) string { return s.URLAs("postgres", database) }

// URLAs is that of a database as another role, for which no password is needed.
func (s *Server) URLAs(role, database string) string {
	return fmt.Sprintf("postgres://%s@/%s?host=%s&port=5432&sslmode=disable", role, database, s.home)
}

// Database makes an empty database that is dropped when the test ends, and returns its name.
func (s *Server) Database() string {
	s.tb.Helper()
	name := "test_" + strings.ToLower(rand.Text()[:10])
	s.Exec("postgres", "create database "+name)
	s.tb.Cleanup(func() { s.Exec("postgres", "drop database "+name+" with (force)") })
	return name
}

// Connect opens a session as a superuser that ends with the test.
func (s *Server) Connect(database string) *pgx.Conn {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.URL(database))
	must(s.tb, err)
	s.tb.Cleanup(func() { hangUp(conn) })
	return conn
}

// Exec executes statements, each in a transaction of its own, as a superuser.
func (s *Server) Exec(database string, statements ...string) {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.URL(database))
	must(s.tb, err)
	defer hangUp(conn)
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			s.tb.Fatalf("testpg: %s: %v", statement, err)
		}
	}
}

// Value returns what a query of one value gives a superuser.
func Value[T any](s *Server, database, query string, args ...any) T {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.URL(database))
	must(s.tb, err)
	defer hangUp(conn)
	var v T
	if err := conn.QueryRow(ctx, query, args...).Scan(&v); err != nil {
		s.tb.Fatalf("testpg: %s: %v", query, err)
	}
	return v
}

func hangUp(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // the server may be gone
}

func (s *Server) data() string { return filepath.Join(s.home, "data") }

// Data is the server's data directory.
func (s *Server) Data() string { return s.data() }

// logTail returns the end of the server's log.
func (s *Server) logTail() string {
	f, err := os.Open(filepath.Join(s.home, "log"))
	if err != nil {
		return err.Error()
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil && info.Size() > 8<<10 {
		_, _ = f.Seek(-8<<10, io.SeekEnd)
	}
	text, _ := io.ReadAll(f)
	return string(text)
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatalf("testpg: %v", err)
	}
}
