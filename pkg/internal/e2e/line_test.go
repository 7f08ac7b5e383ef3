package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/collector"
	"pganalytics/pkg/collector/spool"
	"pganalytics/pkg/internal/testdb"
)

func TestWhatACollectorReadsArrivesOnceWhoeverIsKilled(t *testing.T) {
	t.Parallel()
	s := newSystem(t, "")
	s.startServe()
	s.enrol("watcher", s.state())
	s.startCollector()
	for range 4 {
		n := len(s.accepted())
		s.eventually("batches are accepted", func() bool { return len(s.accepted()) > n+1 })
		s.serve.kill(t)
		<-time.After(rand.N(500 * time.Millisecond)) // the collector meets a closed door
		s.startServe()
		n = len(s.accepted())
		s.eventually("batches are accepted again", func() bool { return len(s.accepted()) > n })
		s.collector.kill(t)
		n = len(s.accepted())
		s.startCollector()
		s.eventually("the collector is back", func() bool { return len(s.accepted()) > n })
	}
	s.collector.stop(t)
	stats, err := spool.Inspect(collector.SpoolDir(s.state()))
	require.NoError(t, err)
	require.Zero(t, stats.Unsent, "what was spooled is sent")
	s.everythingStoredOnce()
	s.serve.stop(t)
}

func TestPushesGoOnWhileTheDatabaseIsAway(t *testing.T) {
	t.Parallel()
	cluster := testdb.StartCluster(t)
	watched := testdb.Empty(t)
	s := newSystem(t, cluster.URL())
	s.startServe()
	s.enrol("watcher", s.state())
	s.watch(watched)
	s.eventually("rows arrive", func() bool { return len(s.accepted()) > 1 })
	cluster.Stop()
	n := len(s.accepted())
	s.eventually("batches are accepted without the database", func() bool { return len(s.accepted()) > n+3 })
	cluster.Start()
	s.collector.stop(t)
	s.everythingStoredOnce()
	s.serve.stop(t)
}

// watch starts the collector on another database than serve's own.
func (s *system) watch(url string) {
	own := s.db
	s.db = url
	s.startCollector()
	s.db = own
}

func TestTheDemoEndsWithNothingLost(t *testing.T) {
	t.Parallel()
	database := testdb.Empty(t)
	temp := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(programs, "pganalytics"), "demo")
	cmd.Env = append(os.Environ(), "DEMO_SECONDS=10", "DATABASE_URL="+database, "TMPDIR="+temp)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, &stderr)
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	var report map[string]int
	require.NoError(t, json.Unmarshal([]byte(lines[len(lines)-1]), &report))
	require.Zero(t, report["lost"])
	require.Zero(t, report["duplicates"])
	require.Zero(t, report["dead_letters"])
	require.GreaterOrEqual(t, report["families"], 8)
	require.Positive(t, report["batches_accepted"])
	require.Equal(t, report["batches_accepted"], report["batches_stored"])
	left, err := os.ReadDir(temp)
	require.NoError(t, err)
	require.Empty(t, left, "the demo cleans up after itself")
	require.Contains(t, stderr.String(), "Look at the data:")
}
