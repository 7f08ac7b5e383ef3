package service_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/bus"
	"pganalytics/pkg/cmdline"
	"pganalytics/pkg/daemon"
	"pganalytics/pkg/service"
)

// roleVariable makes the test's binary an ingester, so that a test can kill it.
const roleVariable = "SERVICE_TEST_ROLE"

// role plays the role that the environment asks for and reports whether there
// was one.
func role(*testing.M) bool {
	if os.Getenv(roleVariable) != "ingester" {
		return false
	}
	ctx, stop := daemon.Signals(context.Background())
	defer stop()
	var cfg service.Ingester
	_, err := cmdline.Parse("ingester", "", &cfg, nil, os.Stdout, os.Stderr)
	if err == nil {
		err = service.RunIngester(ctx, cfg, os.Stderr, nil)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

func TestKilledIngesterLosesNothingAndStoresNothingTwice(t *testing.T) {
	t.Parallel()
	const kills, each, rows = 20, 150, 50
	l := newLine(t, lineConfig{bus: bus.Config{AckWait: time.Second}})
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "probe.yaml"), []byte(family), 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "run"), 0o700))

	interrupted := 0
	for kill := range kills + 1 {
		for range each {
			if kill < kills {
				l.publish(newBatch(rows))
			}
		}
		ready := filepath.Join(dir, "run", fmt.Sprint(kill))
		process, log := l.startIngester(dir, ready)
		l.eventually("the ingester is ready", func() bool { _, err := os.Stat(ready); return err == nil })
		if kill < kills {
			<-time.After(rand.N(60 * time.Millisecond)) // anywhere in the load
			require.NoError(t, process.Process.Kill())
			_ = process.Wait()
			if s := l.status(); s.Pending+uint64(s.AckPending) > 0 {
				interrupted++
			}
			continue
		}
		l.settled() // the last one lives
		require.NoError(t, process.Process.Signal(os.Interrupt))
		require.NoError(t, process.Wait(), log.String())
	}
	require.Greater(t, interrupted, kills/4, "too few kills hit a running load to mean anything")
	require.Equal(t, kills*each*rows, l.rows())
	require.Equal(t, kills*each, l.batches())
	require.Empty(t, l.letters())
}

func (l *line) startIngester(catalogueDir, ready string, env ...string) (*exec.Cmd, *bytes.Buffer) {
	l.t.Helper()
	log := &bytes.Buffer{}
	cmd := exec.Command(os.Args[0])
	cmd.Stderr = log
	cmd.Env = append(os.Environ(),
		roleVariable+"=ingester",
		"PGANALYTICS_NATS_URL="+l.nats.URL(),
		"PGANALYTICS_NATS_ACK_WAIT=1s",
		"PGANALYTICS_NATS_BATCHES_MAX_BYTES="+fmt.Sprint(64<<20),
		"PGANALYTICS_NATS_DEAD_LETTERS_MAX_BYTES="+fmt.Sprint(16<<20),
		"PGANALYTICS_DATABASE_URL="+l.url,
		"PGANALYTICS_CATALOGUE_DIR="+catalogueDir,
		"PGANALYTICS_ADMIN_LISTEN=127.0.0.1:0",
		"PGANALYTICS_ENDPOINTS_FILE="+ready,
		"PGANALYTICS_EXTEND_EVERY=300ms",
		"PGANALYTICS_FETCH_WAIT=20ms",
		"PGANALYTICS_LOAD_ROWS=100",
	)
	cmd.Env = append(cmd.Env, env...)
	require.NoError(l.t, cmd.Start())
	l.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd, log
}
