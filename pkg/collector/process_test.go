package collector

import (
	"bufio"
	"encoding/json"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/internal/testnet"
	"pganalytics/pkg/internal/testpg"
)

// logLines are what a program has logged, one JSON object each.
type logLines struct {
	mu    sync.Mutex
	texts []string
}

func (l *logLines) read(in io.Reader) {
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		l.mu.Lock()
		l.texts = append(l.texts, lines.Text())
		l.mu.Unlock()
	}
}

func (l *logLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.texts, "\n")
}

func (l *logLines) with(parts ...string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
next:
	for _, text := range l.texts {
		for _, part := range parts {
			if !strings.Contains(text, part) {
				continue next
			}
		}
		n++
	}
	return n
}

func TestTheProgramReadsItsFileAgainAtSIGHUPAndItsLogTellsNoSecret(t *testing.T) {
	t.Parallel()
	l, s := newLine(t), testpg.Start(t, 18)
	s.Exec("postgres", "create role watcher login password 's3cret-1'", "grant pg_monitor to watcher",
		"create role stranger", "create schema pganalytics authorization stranger", "grant usage on schema pganalytics to public",
		"create function pganalytics.sequence_last_values(oid[]) returns bigint language sql as 'select 1::bigint'")
	dir := t.TempDir()
	program := filepath.Join(dir, "collector")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "pganalytics/cmd/collector").CombinedOutput()
	require.NoError(t, err, string(out))
	at, err := url.Parse(s.URLAs("watcher", "postgres"))
	require.NoError(t, err)
	at.User = url.UserPassword("watcher", "s3cret-1")
	config := filepath.Join(dir, "collector.yaml")
	write := func(servers ...string) {
		t.Helper()
		text := "host: off\nfamilies: {pg_instance: {interval: 1s}, pg_sequences: {interval: 1s}}\nservers:\n"
		for _, name := range servers {
			text += "  - {name: " + name + ", conninfo_env: WATCHED}\n"
		}
		require.NoError(t, os.WriteFile(config, []byte(text), 0o600))
	}
	write("one")
	cmd := exec.CommandContext(t.Context(), program, "run", "--config", config, "--state-dir", l.cfg.StateDir, "--admin-listen", testnet.FreeAddress(t), "--log-level", "debug")
	cmd.Env = append(os.Environ(), "WATCHED="+at.String())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var log logLines
	read := make(chan struct{})
	go func() { defer close(read); log.read(stderr) }()
	logged := func(parts ...string) {
		t.Helper()
		require.Eventually(t, func() bool { return log.with(parts...) > 0 }, time.Minute, 20*time.Millisecond, "%v\n%s", parts, &log)
	}
	sessions := func() int {
		return testpg.Value[int](s, "postgres", "select count(*)::int from pg_stat_activity where application_name = 'pganalytics-collector' and usename = 'watcher'")
	}
	logged("family is not read", `"server":"one"`, `"family":"pg_sequences"`, `"reason":"function pganalytics.sequence_last_values`)

	write("one", "two")
	require.NoError(t, cmd.Process.Signal(syscall.SIGHUP))
	logged("configuration read again", `"servers":2`)
	logged("family is not read", `"server":"two"`)
	write("two", "two")
	require.NoError(t, cmd.Process.Signal(syscall.SIGHUP))
	logged("the former one stays in force", "is used twice")
	write("two")
	require.NoError(t, cmd.Process.Signal(syscall.SIGHUP))
	logged("configuration read again", `"servers":1`)
	logged("no longer read as it was", `"server":"one"`)
	s.Kill()
	logged("attempt failed", `"server":"two"`, "connect to the server", `"next_try_in":"1s"`)
	s.Start()
	logged("works again", `"server":"two"`)
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	<-read
	require.NoError(t, cmd.Wait())
	require.Zero(t, sessions())

	for _, text := range log.texts {
		var line map[string]any
		require.NoError(t, json.Unmarshal([]byte(text), &line), text)
		require.NotContains(t, text, "s3cret")
		require.NotContains(t, text, "watcher:")
		for key, value := range line {
			_, nested := value.(map[string]any)
			require.False(t, nested, "%s is no text: %s", key, text)
		}
		if strings.Contains(text, `"err":`) {
			require.Regexp(t, `"err":"([^"\\]|\\.)*"\}$`, text, "the error comes last")
		}
	}
	if testing.Verbose() {
		t.Log(&log)
	}
}
