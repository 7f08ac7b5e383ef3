package deploytest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/internal/testlog"
)

// The compose file's own commands, variables and files, in its own order, as
// processes on this host: rows arrive in the database.
func TestTheDeployedSystemStoresWhatItsCollectorReads(t *testing.T) {
	dir := checkout(t)
	// So that rows come at once.
	change(t, dir, "deploy/collector.yaml", "servers:", "families: {pg_stat_database: {interval: 1s}, pg_stat_statements: {interval: 1s}}\nservers:")
	s := newStack(t, dir)
	for name := range s.host.project.Services {
		s.up(name)
	}
	for name := range s.services {
		s.healthy(name)
	}
	for _, family := range []string{"pg_stat_database", "pg_stat_statements"} {
		s.eventually("rows of "+family, func() bool { return s.number("select count(*) from metrics."+family) > 0 })
	}
	require.Positive(t, s.number("select count(*) from ingest.batch"))
	require.Contains(t, s.run("operator", "stream", "status", "--output", "json"), `"dead_letters":0`)
	require.Contains(t, s.run("operator", "query", "select name from metrics.server"), database)
	require.Contains(t, s.run("operator", "collectors", "enroll-token", "--name", "another"), "--url "+"https://"+s.host.addresses["authsvc:8443"])

	// Starting it again changes nothing and loses nothing.
	identity := s.identity()
	for _, name := range []string{"pki", "migrate", "enroll"} {
		s.run(name)
	}
	require.Equal(t, identity, s.identity(), "an enrolled collector stays what it is")
	for _, name := range []string{"collector", "gateway", "authsvc", "ingester"} {
		s.stop(name)
	}
}

// stack is the system of a compose file, running on this host.
type stack struct {
	t        *testing.T
	host     *host
	db       *url.URL // the database of the metrics, as superuser
	services map[string]*process
	started  map[string]bool
}

type process struct {
	cmd *exec.Cmd
	log *testlog.Buffer
}

func newStack(t *testing.T, dir string) *stack {
	t.Helper()
	project, err := load(dir)
	require.NoError(t, err)
	s := &stack{t: t, host: newHost(t, project), services: map[string]*process{}, started: map[string]bool{}}
	cluster, err := url.Parse(testdb.StartCluster(t).URL())
	require.NoError(t, err)
	s.host.addresses[database+":5432"] = cluster.Host
	s.host.writeFiles()
	s.db = cluster
	t.Cleanup(func() {
		for name, p := range s.services {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
			if t.Failed() {
				t.Logf("%s:\n%s", name, p.log.Tail(40))
			}
		}
	})
	return s
}

// up starts a service once all it depends on is as it wants it.
func (s *stack) up(name string) {
	s.t.Helper()
	if s.started[name] {
		return
	}
	s.started[name] = true
	config := s.host.project.Services[name]
	for other, d := range config.DependsOn {
		s.up(other)
		if d.Condition == types.ServiceConditionHealthy {
			s.healthy(other)
		}
	}
	switch {
	case name == database:
		s.startDatabase()
	case name == stream:
		s.startStream()
	case len(config.Profiles) > 0: // started on demand only
	case oneShot(config):
		s.run(name)
	default:
		s.start(name)
	}
}

// healthy waits until the service's health check is content.
func (s *stack) healthy(name string) {
	s.t.Helper()
	if name == database {
		return // started and waited for
	}
	asked := s.host.rewrite(name, probe(s.host.project.Services[name]))
	s.eventually(name+" is healthy", func() bool { return get(s.t, asked) == http.StatusOK })
}

var psqlSet = regexp.MustCompile("(?m)^\\\\set (\\w+) `cat (\\S+)`$")

// startDatabase does what the image does with a new database: it makes it with
// TimescaleDB in it, and runs the file, whose two kinds of psql variables are
// replaced here.
func (s *stack) startDatabase() {
	s.t.Helper()
	name := *s.host.project.Services[database].Environment["POSTGRES_DB"]
	s.execute("create database " + name)
	s.db = s.db.JoinPath()
	s.db.Path = "/" + name
	s.execute("create extension timescaledb")
	file, err := os.ReadFile(s.host.paths[database]["/docker-entrypoint-initdb.d/100_pganalytics.sql"])
	require.NoError(s.t, err)
	script := string(file)
	for _, m := range psqlSet.FindAllStringSubmatch(script, -1) {
		value, err := os.ReadFile(m[2])
		require.NoError(s.t, err)
		script = strings.ReplaceAll(script, m[0], "")
		script = strings.ReplaceAll(script, ":'"+m[1]+"'", "'"+strings.TrimSpace(string(value))+"'")
	}
	s.execute(script)
}

// startStream runs NATS in this process from the file that is deployed.
func (s *stack) startStream() {
	s.t.Helper()
	for key, value := range s.host.environment(stream) {
		s.t.Setenv(key, value)
	}
	args := s.host.command(stream)
	require.Equal(s.t, "--config", args[0])
	options, err := server.ProcessConfigFile(args[1])
	require.NoError(s.t, err)
	options.NoSigs, options.NoLog = true, true
	srv, err := server.NewServer(options)
	require.NoError(s.t, err)
	srv.Start()
	s.t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
}

// run runs a service to its end, which must be a good one. Arguments replace
// its command, as those of docker compose run do.
func (s *stack) run(name string, args ...string) string {
	s.t.Helper()
	p := s.process(name, args...)
	var out bytes.Buffer
	p.cmd.Stdout = &out
	require.NoError(s.t, p.cmd.Start())
	timer := time.AfterFunc(2*time.Minute, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	require.NoError(s.t, p.cmd.Wait(), "%s: %s%s", name, &out, p.log.Tail(40))
	return out.String()
}

func (s *stack) start(name string) {
	s.t.Helper()
	p := s.process(name)
	require.NoError(s.t, p.cmd.Start())
	s.services[name] = p
}

// stop asks a service to end and checks that it did so in good order.
func (s *stack) stop(name string) {
	s.t.Helper()
	p := s.services[name]
	require.NoError(s.t, p.cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(s.t, p.cmd.Wait(), "%s: %s", name, p.log.Tail(40))
	delete(s.services, name)
}

func (s *stack) process(name string, args ...string) *process {
	s.t.Helper()
	config := s.host.project.Services[name]
	argv := s.host.command(name)
	if len(args) > 0 {
		argv = append(argv[:len(config.Entrypoint):len(config.Entrypoint)], args...)
	}
	program := filepath.Join(programs, argv[0])
	if _, err := os.Stat(program); err != nil {
		program, err = exec.LookPath(argv[0])
		require.NoError(s.t, err)
	}
	p := &process{cmd: exec.Command(program, argv[1:]...), log: &testlog.Buffer{}}
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.Env = []string{"PATH=" + programs + ":" + os.Getenv("PATH"), "TMPDIR=" + s.t.TempDir()}
	for key, value := range s.host.environment(name) {
		p.cmd.Env = append(p.cmd.Env, key+"="+value)
	}
	if m := probes.FindStringSubmatch(probe(config)); m != nil { // all services share this host's loopback
		p.cmd.Env = append(p.cmd.Env, "PGANALYTICS_ADMIN_LISTEN="+s.host.addresses[name+":"+m[1]])
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return p
}

func (s *stack) execute(sql string) {
	s.t.Helper()
	conn, err := pgx.Connect(s.t.Context(), s.db.String())
	require.NoError(s.t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	_, err = conn.Exec(s.t.Context(), sql)
	require.NoError(s.t, err)
}

func (s *stack) number(query string) int {
	s.t.Helper()
	conn, err := pgx.Connect(s.t.Context(), s.db.String())
	require.NoError(s.t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	var n int
	require.NoError(s.t, conn.QueryRow(s.t.Context(), query).Scan(&n))
	return n
}

// identity returns who the collector is.
func (s *stack) identity() string {
	s.t.Helper()
	data, err := os.ReadFile(filepath.Join(s.host.dir, "volumes", "collector", "identity.json"))
	require.NoError(s.t, err)
	var id struct {
		CollectorID  string `json:"collector_id"`
		CollectorURL string `json:"collector_url"`
		TokenURL     string `json:"token_url"`
	}
	require.NoError(s.t, json.Unmarshal(data, &id))
	require.Equal(s.t, "https://"+s.host.addresses["gateway:8444"], id.CollectorURL)
	require.Equal(s.t, "https://"+s.host.addresses["authsvc:8445"], id.TokenURL)
	return fmt.Sprint(id)
}

func (s *stack) eventually(what string, ok func() bool) {
	s.t.Helper()
	require.Eventually(s.t, ok, 90*time.Second, 100*time.Millisecond, what)
}
