package e2e

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/collector/uplink"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/internal/testlog"
)

// loggedIn is an operator who is the first admin.
func loggedIn(t *testing.T) *operator {
	t.Helper()
	i := newOperator(t)
	mine := i.file("a quiet lake 47 herons")
	require.Eventually(t, func() bool {
		_, err := i.try("login", "admin", "--data-dir", i.data(), "--password-file", filepath.Join(i.data(), "first-admin-password"),
			"--new-password-file", mine, "--session-file", i.session)
		return err == nil
	}, 30*time.Second, 100*time.Millisecond, "logged in")
	return i
}

func TestCollectorsAreManagedFromTheCommandLine(t *testing.T) {
	t.Parallel()
	i := loggedIn(t)
	hosts := filepath.Join(t.TempDir(), "hosts.txt")
	require.NoError(t, os.WriteFile(hosts, []byte("# the fleet\ndb1\ndb2\n\n"), 0o600))
	var made []struct {
		Name          string `json:"name"`
		Token         string `json:"token"`
		URL           string `json:"url"`
		CAFingerprint string `json:"ca_fingerprint"`
	}
	out := i.do("collectors", "enroll-token", "--from", hosts, "--cidr", "127.0.0.0/8", "--output", "json")
	require.NoError(t, json.Unmarshal([]byte(out), &made))
	require.Len(t, made, 2)
	enrol := func(n int, token, state string, more ...string) {
		t.Helper()
		i.command("collector", append([]string{"enroll", "--url", made[n].URL, "--ca-fingerprint", made[n].CAFingerprint,
			"--token-file", i.file(token), "--name", made[n].Name, "--state-dir", state}, more...)...)
	}
	states := []string{i.state(), filepath.Join(i.dir, "second")}
	for n := range made {
		enrol(n, made[n].Token, states[n])
	}
	require.Regexp(t, `(?m)^db1 +registered`, i.do("collectors", "list"))
	c := i.client()
	var res *http.Response
	i.eventually("a batch is taken", func() bool {
		res = c.push(uuid.Must(uuid.NewV7()).String(), 1)
		return res.StatusCode == http.StatusAccepted
	})
	i.eventually("status is real", func() bool { return strings.Contains(i.do("collectors", "list", "--status", "active"), "db1") })

	require.Contains(t, i.do("collectors", "disable", "db1"), "disabled")
	disabled := time.Now()
	i.eventually("it is refused", func() bool {
		return c.push(uuid.Must(uuid.NewV7()).String(), 1).StatusCode == http.StatusForbidden
	})
	require.Less(t, time.Since(disabled), 2*time.Second)
	require.Contains(t, i.do("collectors", "enable", "db1"), "active")
	i.eventually("it is let in again", func() bool {
		return c.push(uuid.Must(uuid.NewV7()).String(), 1).StatusCode == http.StatusAccepted
	})

	// A copy of the identity renews, and so does the original.
	id, err := uplink.LoadIdentity(i.state())
	require.NoError(t, err)
	elsewhere := t.TempDir()
	thief := uplink.NewClient(id, elsewhere, prometheus.NewRegistry())
	defer thief.Close()
	require.NoError(t, thief.Renew(t.Context()))
	i.clientOf(elsewhere) // seen in use
	original := uplink.NewClient(id, t.TempDir(), prometheus.NewRegistry())
	defer original.Close()
	require.ErrorContains(t, original.Renew(t.Context()), "collector_locked")
	require.Contains(t, i.do("collectors", "show", "db1"), "locked")
	_, err = i.try("collectors", "enable", "db1", "--session-file", i.session)
	require.ErrorContains(t, err, "status_conflict")
	var again struct {
		Token string `json:"token"`
	}
	require.NoError(t, json.Unmarshal([]byte(i.do("collectors", "unlock", "db1", "--output", "json")), &again))
	enrol(0, again.Token, i.state(), "--force")
	c = i.client()
	require.Equal(t, id.CollectorID, c.id.CollectorID, "it is the same collector")
	i.eventually("it is in again", func() bool {
		return c.push(uuid.Must(uuid.NewV7()).String(), 1).StatusCode == http.StatusAccepted
	})

	_, err = i.try("collectors", "delete", "db2", "--session-file", i.session)
	require.ErrorContains(t, err, "--yes")
	i.do("collectors", "delete", "db2", "--yes")
	require.NotContains(t, i.do("collectors", "list"), "db2")
	_, err = i.try("collectors", "show", "db2", "--session-file", i.session)
	require.ErrorContains(t, err, "no collector")
	require.Contains(t, i.do("audit", "--resource-type", "collector"), "collector.delete")
}

func (s *system) exec(sql string) {
	s.t.Helper()
	conn, err := pgx.Connect(s.t.Context(), s.db)
	require.NoError(s.t, err)
	_, err = conn.Exec(s.t.Context(), sql)
	require.NoError(s.t, errors.Join(err, conn.Close(s.t.Context())))
}

// readme returns the code blocks of a section of README.md.
func readme(t *testing.T, section string) []string {
	t.Helper()
	text, err := os.ReadFile("../../../README.md")
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(text), "\n## "+section+"\n")
	require.True(t, found)
	rest, _, _ = strings.Cut(rest, "\n## ")
	var blocks []string
	for _, b := range regexp.MustCompile("(?s)```[a-z]*\n(.*?)```").FindAllStringSubmatch(rest, -1) {
		blocks = append(blocks, b[1])
	}
	return blocks
}

// What README says to paste, pasted; only directory, address and database are this test's.
func TestEnrolACollectorOfTheReadmeWorksAsItStands(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testdb.StartCluster(t).URL()) // it loads pg_stat_statements
	s.startServe()
	blocks := readme(t, "Enrol a collector")
	require.Len(t, blocks, 5)
	work := t.TempDir()
	require.NoError(t, os.Symlink(programs, filepath.Join(work, "bin")))
	shell := func(line string) *exec.Cmd {
		cmd := exec.Command("sh", "-c", strings.ReplaceAll(line, "/var/lib/pganalytics", s.data()))
		cmd.Dir = work
		cmd.Env = append(os.Environ(), "DATABASE_URL="+s.db, "PATH="+programs+":"+os.Getenv("PATH"),
			"PGPASSFILE="+filepath.Join(work, "pgpass"))
		if regexp.MustCompile(`collector (enroll|run|status)`).MatchString(line) {
			cmd.Env = append(cmd.Env, "PGANALYTICS_STATE_DIR="+s.state())
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		return cmd
	}
	paste := func(line string) string {
		t.Helper()
		out, err := shell(line).CombinedOutput()
		require.NoError(t, err, "%s\n%s", line, out)
		return string(out)
	}

	printed := paste(blocks[0])
	lines := strings.Split(strings.TrimSpace(printed), "\n")
	enrol := strings.TrimSpace(lines[len(lines)-1])
	form := regexp.QuoteMeta(strings.TrimSpace(blocks[1]))
	form = strings.ReplaceAll(form, regexp.QuoteMeta("https://monitor.example.com:8443"), `https://\S+`)
	form = strings.ReplaceAll(form, "sha256:…", `sha256:[0-9a-f]{64}`)
	require.Regexp(t, "^"+form+"$", enrol, "README shows the line that is printed")
	require.Contains(t, paste(enrol), "enrolled db1")

	db, err := pgx.ParseConfig(s.db)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(work, "pgpass"), fmt.Appendf(nil, "*:*:*:*:%s\n", db.Password), 0o600))
	yaml := regexp.MustCompile(`conninfo: .*`).ReplaceAllLiteralString(blocks[2],
		fmt.Sprintf("conninfo: host=%s port=%d user=%s dbname=%s", db.Host, db.Port, db.User, db.Database))
	require.NoError(t, os.WriteFile(filepath.Join(work, "collector.yaml"), []byte(yaml), 0o600))
	commands := strings.Split(strings.TrimSpace(blocks[3]), "\n")
	require.Len(t, commands, 2)
	s.exec("create extension if not exists pg_stat_statements") // the collector's role may not, see README
	paste(commands[0])
	run := shell("exec " + commands[1])
	run.Env = append(run.Env, "PGANALYTICS_ADMIN_LISTEN=127.0.0.1:0")
	log := &testlog.Buffer{}
	run.Stdout, run.Stderr = log, log
	require.NoError(t, run.Start())
	t.Cleanup(func() {
		_ = run.Process.Signal(syscall.SIGTERM)
		_ = run.Wait()
	})
	s.eventually("the first rows", func() bool {
		return strings.Count(paste(strings.TrimSpace(blocks[4])), "\n") > 1
	})
	require.Contains(t, paste("collector status"), "db1")
}

// pushes goes on pushing as one collector and tells what was not accepted.
type pushes struct {
	mu     sync.Mutex
	client *client
	done   int
	failed []string
	step   string
}

func (p *pushes) run(stop <-chan struct{}) {
	for n := 0; ; n++ {
		select {
		case <-stop:
			return
		case <-time.After(10 * time.Millisecond):
		}
		p.one(n)
	}
}

func (p *pushes) one(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n%10 == 0 { // handshakes are requests too
		p.client.http.CloseIdleConnections()
	}
	if n%25 == 0 {
		p.client.fetchToken()
	}
	res := p.client.push(uuid.Must(uuid.NewV7()).String(), 1)
	if p.done++; res.StatusCode != http.StatusAccepted {
		p.failed = append(p.failed, fmt.Sprintf("%s: %d", p.step, res.StatusCode))
	}
}

// at names the step for what fails from now on, and lets some requests pass.
func (p *pushes) at(s *system, step string) {
	p.mu.Lock()
	p.step = step
	before := p.done
	p.mu.Unlock()
	s.eventually("requests go on", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.done > before+30
	})
}

// kid returns the key that signed the token in use.
func (p *pushes) kid() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	raw, _ := base64.RawURLEncoding.DecodeString(strings.Split(p.client.token, ".")[0])
	var h struct{ Kid string }
	_ = json.Unmarshal(raw, &h)
	return h.Kid
}

func TestAuthoritiesAndSigningKeyAreReplacedWithoutAFailedRequest(t *testing.T) {
	t.Parallel()
	s := newSystem(t, "")
	s.startServe()
	s.enrol("c1", s.state())
	p := &pushes{client: s.client()}
	s.eventually("known", func() bool {
		return p.client.push(uuid.Must(uuid.NewV7()).String(), 1).StatusCode == http.StatusAccepted
	})
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { defer close(stopped); p.run(stop) }()
	end := sync.OnceFunc(func() { close(stop); <-stopped })
	defer end()

	step := func(args ...string) {
		t.Helper()
		readings := func() int { return strings.Count(s.serve.log.Tail(1<<20), `"files read again"`) }
		before := readings()
		s.command("pganalytics", append(append([]string{"ca"}, args...), "--data-dir", s.data())...)
		s.eventually("serve has read the files again", func() bool { return readings() > before })
		<-time.After(1500 * time.Millisecond) // verifier and authority each look once a second
		p.at(s, strings.Join(args, " "))
	}
	newKey := func(former string) {
		t.Helper()
		s.eventually("tokens are signed with the new key", func() bool { return p.kid() != former })
	}
	renew := func() {
		t.Helper()
		id, err := uplink.LoadIdentity(s.state())
		require.NoError(t, err)
		client := uplink.NewClient(id, s.state(), prometheus.NewRegistry())
		defer client.Close()
		require.NoError(t, client.Renew(t.Context()))
		p.mu.Lock()
		defer p.mu.Unlock()
		p.client = s.client()
	}

	kid := p.kid()
	step("rotate-signing-key")
	newKey(kid)

	former := s.client()
	step("rotate-begin", "collector")
	step("rotate-switch", "collector")
	renew()
	step("rotate-finish", "collector", "--force")
	former.http.CloseIdleConnections()
	_, err := former.http.Post(former.id.CollectorURL+"/api/v1/collectors/token", "application/json", nil)
	require.Error(t, err, "a certificate of the former authority opens no connection")

	step("rotate-begin", "server")
	renew() // the collector learns of the new one
	step("rotate-switch", "server", "--force")
	step("rotate-finish", "server")
	former = s.client()
	renew()
	require.Len(t, p.client.id.ServerCAs, 1)
	require.False(t, p.client.id.ServerCAs[0].Equal(former.id.ServerCAs[0]) && p.client.id.ServerCAs[0].Equal(former.id.ServerCAs[1]))

	kid = p.kid()
	step("rotate-begin", "root")
	step("rotate-switch", "root")
	newKey(kid)
	step("rotate-finish", "root", "--force")
	p.at(s, "the end")
	end()
	require.Empty(t, p.failed)
	require.Greater(t, p.done, 300)

	// A stolen key is another matter: its tokens are refused at once.
	stolen := p.client.token
	kid = p.kid()
	s.command("pganalytics", "ca", "rotate-signing-key", "--revoke-old", "--data-dir", s.data())
	s.eventually("the old key's tokens are refused", func() bool {
		p.client.fetchToken() // never fails
		p.client.token = stolen
		return p.client.push(uuid.Must(uuid.NewV7()).String(), 1).StatusCode == http.StatusUnauthorized
	})
	s.eventually("new ones are good", func() bool {
		p.client.fetchToken()
		return p.client.push(uuid.Must(uuid.NewV7()).String(), 1).StatusCode == http.StatusAccepted
	})
	require.NotEqual(t, kid, p.kid())
	s.serve.stop(t)
}
