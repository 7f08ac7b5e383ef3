package chaos

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"pganalytics/pkg/internal/testlog"

	"github.com/stretchr/testify/require"
)

// replay starts pganalytics replay, which ends by itself.
func (s *site) replay(flags ...string) (*exec.Cmd, *testlog.Buffer) {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(programs, "pganalytics"), append([]string{
		"replay", "--nats-url", s.natsURL, "--catalogue-dir", s.catalogue, "--yes", "--timeout", "1m",
	}, flags...)...)
	out := &testlog.Buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(os.Environ(), "PGANALYTICS_DATABASE_URL="+s.db)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(s.t, cmd.Start())
	return cmd, out
}

// An operator replays what the ingesters hold, under load. The command is killed
// again and again, and goes on each time.
func TestAReplayThatIsKilledGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	s, cluster := ownCluster(t)
	f := s.collect(fleetConfig{})
	careful := []string{"--auto-rewind", "0s"}
	s.ingest(ingesterConfig{flags: careful})
	s.flowing(50)
	old := backup(cluster)
	s.flowing(300)
	s.goBack(cluster, old)
	s.eventually("somebody notices", s.held)

	flags := []string{"--rate", "1000"}
	for range 3 {
		before := s.batches()
		cmd, out := s.replay(flags...)
		s.eventually("it has begun", s.replaying)
		s.eventually("it gets on", func() bool { return s.batches() >= before+50 })
		require.NoError(t, cmd.Process.Kill())
		require.Error(t, cmd.Wait(), out.String())
		flags = []string{"--resume"}
	}
	require.True(t, s.held())
	cmd, out := s.replay("--resume")
	require.NoError(t, cmd.Wait(), out.String())
	require.False(t, s.held(), out.String())
	f.stop()
	s.verify()
	require.Contains(t, out.String(), "filled")
}
