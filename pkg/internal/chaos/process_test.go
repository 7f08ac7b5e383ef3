package chaos

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/internal/testlog"
	"pganalytics/pkg/service"
)

// process is one of the programs, running.
type process struct {
	t         *testing.T
	cmd       *exec.Cmd
	log       *testlog.Buffer
	running   bool
	endpoints string // file
	admin     string // URL, once it is ready
}

type ingesterConfig struct {
	db, natsURL, catalogue string   // default to the site's
	flags                  []string // after those that make it quick enough for a test
}

// ingest starts an ingester and returns when it is ready.
func (s *site) ingest(cfg ingesterConfig) *process {
	s.t.Helper()
	in := s.startIngester(cfg)
	in.ready()
	return in
}

func (s *site) startIngester(cfg ingesterConfig) *process {
	s.t.Helper()
	orElse(&cfg.db, s.db)
	orElse(&cfg.natsURL, s.natsURL)
	orElse(&cfg.catalogue, s.catalogue)
	in := run(s.t, cfg.db, "ingester", append(append(quick(cfg.catalogue), "--nats-url", cfg.natsURL), cfg.flags...)...)
	s.ingesters = append(s.ingesters, in)
	return in
}

// quick are the flags of whatever ingests, that make it quick enough for a
// test and as the site's streams are.
func quick(catalogue string) []string {
	return []string{
		"--catalogue-dir", catalogue, "--nats-ack-wait", ackWait.String(),
		"--nats-batches-max-bytes", fmt.Sprint(batchesMaxBytes), "--nats-dead-letters-max-bytes", fmt.Sprint(deadLettersMaxBytes),
		"--extend-every", "400ms", "--fetch-wait", "50ms", "--database-lock-timeout", "2s", "--load-timeout", "20s",
	}
}

// run starts a program. It is killed when the test ends.
func run(t *testing.T, db, program string, args ...string) *process {
	t.Helper()
	p := &process{t: t, log: &testlog.Buffer{}, running: true, endpoints: filepath.Join(t.TempDir(), "endpoints")}
	p.cmd = exec.Command(filepath.Join(programs, program), append(args, "--admin-listen", "127.0.0.1:0", "--endpoints-file", p.endpoints)...)
	p.cmd.Stderr = p.log
	p.cmd.Env = append(os.Environ(), "PGANALYTICS_DATABASE_URL="+db)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() {
		if p.running {
			p.kill()
		}
		if t.Failed() {
			t.Logf("%s, process %d:\n%s", program, p.cmd.Process.Pid, p.log.Tail(30))
		}
	})
	return p
}

// ready waits until the process says where it listens.
func (p *process) ready() service.Endpoints {
	p.t.Helper()
	var e service.Endpoints
	eventually(p.t, "the process is ready", func() bool {
		data, err := os.ReadFile(p.endpoints)
		return err == nil && json.Unmarshal(data, &e) == nil
	})
	p.admin = e.Admin
	return e
}

func (p *process) signal(sig syscall.Signal) {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Signal(sig))
}

// kill ends it as a crash or the kernel for want of memory would.
func (p *process) kill() {
	p.t.Helper()
	p.signal(syscall.SIGKILL)
	_ = p.cmd.Wait() // it was killed: that is its error
	p.running = false
}

// stop asks it to end and checks that it did so in good order.
func (p *process) stop() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	p.running = false
	require.NoError(p.t, p.cmd.Wait(), p.log.Tail(20))
}

func (s *site) stopIngesters() {
	s.t.Helper()
	for _, in := range s.ingesters {
		if in.running {
			in.stop()
		}
	}
}

// value returns the sum of a metric over its labels.
func (p *process) value(name string) float64 {
	p.t.Helper()
	res, err := http.Get(p.admin + "/metrics")
	require.NoError(p.t, err)
	defer func() { _ = res.Body.Close() }()
	sum, found := 0.0, false
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		rest, ok := strings.CutPrefix(lines.Text(), name)
		if !ok || !strings.HasPrefix(rest, " ") && !strings.HasPrefix(rest, "{") {
			continue
		}
		value, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		require.NoError(p.t, err)
		sum, found = sum+value, true
	}
	require.True(p.t, found, name)
	return sum
}
