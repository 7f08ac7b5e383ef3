package testdb

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Cluster is a PostgreSQL server of one test's own, for tests that stop, kill or break the server itself.
type Cluster struct {
	tb     testing.TB
	script string
	home   string
	url    string
}

// StartCluster starts a private server; it is stopped and deleted when the test ends, also when the test binary is
// killed. It skips the test where New does.
func StartCluster(tb testing.TB) *Cluster {
	tb.Helper()
	serverURL(tb) // not used, but where tests have no database at all this one is not made either
	root, err := moduleRoot()
	if err != nil {
		tb.Fatalf("testdb: %v", err)
	}
	c := &Cluster{tb: tb, script: filepath.Join(root, "scripts", "timescaledb.sh")}

	// The server lives for as long as its command does, and cat for as long as this process holds the pipe.
	cmd := exec.Command(c.script, "run", "--", "sh", "-c", `printf '%s\n' "$TSDB_HOME" "$DATABASE_URL"; exec cat`)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Minute
	hold, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatalf("testdb: %v", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatalf("testdb: %v", err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatalf("testdb: start a cluster: %v", err)
	}
	tb.Cleanup(func() {
		_ = hold.Close()
		if err := cmd.Wait(); err != nil {
			tb.Errorf("testdb: delete the cluster: %v\n%s", err, &stderr)
		}
	})
	lines := bufio.NewReader(stdout)
	c.home = readLine(tb, lines)
	c.url = readLine(tb, lines)
	return c
}

// URL is that of the database postgres, as a superuser. It stays the same when the server is started again.
func (c *Cluster) URL() string { return c.url }

// Stop shuts the server down in good order, ending all sessions.
func (c *Cluster) Stop() {
	c.tb.Helper()
	c.command("stop", "fast")
}

// Start starts the server again after Stop or Kill; after Kill it recovers from its log first.
func (c *Cluster) Start() {
	c.tb.Helper()
	c.command("start")
}

// Kill ends the server's main process with SIGKILL and returns when it is gone. Its other processes notice at once and
// end by themselves.
func (c *Cluster) Kill() {
	c.tb.Helper()
	text, err := os.ReadFile(filepath.Join(c.home, "data", "postmaster.pid"))
	if err != nil {
		c.tb.Fatalf("testdb: kill the server: %v", err)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		c.tb.Fatalf("testdb: kill the server: %v", err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		c.tb.Fatalf("testdb: kill the server: %v", err)
	}
	for deadline := time.Now().Add(30 * time.Second); alive(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.tb.Fatalf("testdb: process %d outlived SIGKILL", pid)
		}
	}
}

// Copy returns a copy of the stopped server's files, as a backup of it or a standby that falls behind from now on.
func (c *Cluster) Copy() Copy {
	c.tb.Helper()
	dir := filepath.Join(c.tb.TempDir(), "data")
	c.copyFiles(filepath.Join(c.home, "data"), dir)
	return Copy(dir)
}

// Copy is the files of a Cluster as they once were.
type Copy string

// Restore puts a copy in the place of the stopped server's files.
func (c *Cluster) Restore(from Copy) {
	c.tb.Helper()
	data := filepath.Join(c.home, "data")
	if err := os.RemoveAll(data); err != nil {
		c.tb.Fatalf("testdb: restore: %v", err)
	}
	c.copyFiles(string(from), data)
}

// copyFiles keeps the owner, for the server runs as somebody else when the test is root.
func (c *Cluster) copyFiles(from, to string) {
	c.tb.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		c.tb.Fatalf("testdb: copy the cluster's files: %v\n%s", err, out)
	}
}

func (c *Cluster) command(args ...string) {
	c.tb.Helper()
	cmd := exec.Command(c.script, args...)
	cmd.Env = append(os.Environ(), "TSDB_HOME="+c.home, "TSDB_PORT=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		c.tb.Fatalf("testdb: %s the cluster: %v\n%s", args[0], err, out)
	}
}

// alive tells a process that still runs from a zombie, which waits only to be reaped.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ") // the name in brackets may hold anything
	return !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}

func readLine(tb testing.TB, r *bufio.Reader) string {
	tb.Helper()
	line, err := r.ReadString('\n')
	if err == io.EOF {
		tb.Fatal("testdb: the cluster did not start")
	}
	if err != nil {
		tb.Fatalf("testdb: start a cluster: %v", err)
	}
	return strings.TrimSuffix(line, "\n")
}
