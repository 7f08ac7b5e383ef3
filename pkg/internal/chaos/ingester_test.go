package chaos

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/service"
)

// ingester is a process of its own.
type ingester struct {
	t       *testing.T
	cmd     *exec.Cmd
	log     *log
	running bool
	admin   string
}

type ingesterConfig struct {
	db, natsURL, catalogue string   // default to the site's
	flags                  []string // after those that make it quick enough for a test
}

// ingest starts an ingester and returns when it is ready.
func (s *site) ingest(cfg ingesterConfig) *ingester {
	s.t.Helper()
	in := s.startIngester(cfg)
	in.ready(s)
	return in
}

func (s *site) startIngester(cfg ingesterConfig) *ingester {
	s.t.Helper()
	orElse(&cfg.db, s.db)
	orElse(&cfg.natsURL, s.natsURL)
	orElse(&cfg.catalogue, s.catalogue)
	endpoints := filepath.Join(s.t.TempDir(), "endpoints")
	in := &ingester{t: s.t, log: &log{}, running: true, admin: endpoints}
	in.cmd = exec.Command(filepath.Join(programs, "ingester"), append([]string{
		"--nats-url", cfg.natsURL, "--catalogue-dir", cfg.catalogue,
		"--nats-ack-wait", ackWait.String(),
		"--nats-batches-max-bytes", fmt.Sprint(batchesMaxBytes),
		"--nats-dead-letters-max-bytes", fmt.Sprint(deadLettersMaxBytes),
		"--admin-listen", "127.0.0.1:0", "--endpoints-file", endpoints,
		"--extend-every", "400ms", "--fetch-wait", "50ms", "--database-lock-timeout", "2s", "--load-timeout", "20s",
	}, cfg.flags...)...)
	in.cmd.Stderr = in.log
	in.cmd.Env = append(os.Environ(), "PGANALYTICS_DATABASE_URL="+cfg.db)
	in.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(s.t, in.cmd.Start())
	s.ingesters = append(s.ingesters, in)
	s.t.Cleanup(func() {
		if in.running {
			_ = in.cmd.Process.Kill()
			_ = in.cmd.Wait()
		}
		if s.t.Failed() {
			s.t.Logf("ingester %d:\n%s", in.cmd.Process.Pid, in.log.tail(30))
		}
	})
	return in
}

func (in *ingester) ready(s *site) {
	in.t.Helper()
	s.eventually("the ingester is ready", func() bool {
		data, err := os.ReadFile(in.admin)
		if err != nil {
			return false
		}
		var e service.Endpoints
		require.NoError(in.t, json.Unmarshal(data, &e))
		in.admin = e.Admin
		return true
	})
}

func (in *ingester) signal(sig syscall.Signal) {
	in.t.Helper()
	require.NoError(in.t, in.cmd.Process.Signal(sig))
}

// kill ends it as a crash or the kernel for want of memory would.
func (in *ingester) kill() {
	in.t.Helper()
	in.signal(syscall.SIGKILL)
	_ = in.cmd.Wait() // it was killed: that is its error
	in.running = false
}

// stop asks it to end and checks that it did so in good order.
func (in *ingester) stop() {
	in.t.Helper()
	in.signal(syscall.SIGTERM)
	in.running = false
	require.NoError(in.t, in.cmd.Wait(), in.log.tail(20))
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
func (in *ingester) value(name string) float64 {
	in.t.Helper()
	res, err := http.Get(in.admin + "/metrics")
	require.NoError(in.t, err)
	defer func() { _ = res.Body.Close() }()
	sum, found := 0.0, false
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		rest, ok := strings.CutPrefix(lines.Text(), name)
		if !ok || !strings.HasPrefix(rest, " ") && !strings.HasPrefix(rest, "{") {
			continue
		}
		value, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		require.NoError(in.t, err)
		sum, found = sum+value, true
	}
	require.True(in.t, found, name)
	return sum
}

// log keeps what a process writes.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

var _ io.Writer = (*log)(nil)

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *log) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *log) tail(lines int) string {
	all := strings.Split(strings.TrimSpace(l.text()), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
