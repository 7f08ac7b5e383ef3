package chaos

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/bus/natsserver"
)

// The test's binary is a NATS server where these are set, so that a test can
// kill it: a server within the test could only be stopped.
const (
	roleStore = "CHAOS_NATS_STORE"
	rolePort  = "CHAOS_NATS_PORT"
)

// role plays the role that the environment asks for and reports whether there
// was one.
func role() bool {
	dir := os.Getenv(roleStore)
	if dir == "" {
		return false
	}
	port, err := strconv.Atoi(os.Getenv(rolePort))
	if err == nil {
		var server *natsserver.Server
		if server, err = natsserver.Start(natsserver.Config{StoreDir: dir, Listen: true, Port: port}, slog.New(slog.DiscardHandler)); err == nil {
			fmt.Println(server.URL())
			_, err = io.Copy(io.Discard, os.Stdin) // until the test ends
			server.Stop()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

// natsProcess is a NATS server in a process of its own.
type natsProcess struct {
	t    *testing.T
	dir  string
	port string
	url  string
	cmd  *exec.Cmd
}

func startNATS(t *testing.T) *natsProcess {
	t.Helper()
	n := &natsProcess{t: t, dir: t.TempDir(), port: "0"}
	n.start()
	_, n.port, _ = strings.Cut(strings.TrimPrefix(n.url, "nats://"), ":")
	t.Cleanup(n.kill)
	return n
}

func (n *natsProcess) start() {
	n.t.Helper()
	n.cmd = exec.Command(os.Args[0])
	n.cmd.Env = append(os.Environ(), roleStore+"="+n.dir, rolePort+"="+n.port)
	n.cmd.Stderr = os.Stderr
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	_, err := n.cmd.StdinPipe()
	require.NoError(n.t, err)
	stdout, err := n.cmd.StdoutPipe()
	require.NoError(n.t, err)
	require.NoError(n.t, n.cmd.Start())
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(n.t, err, "the NATS server does not start")
	n.url = strings.TrimSpace(line)
}

func (n *natsProcess) kill() {
	_ = n.cmd.Process.Kill()
	_ = n.cmd.Wait() // it was killed: that is its error
}
