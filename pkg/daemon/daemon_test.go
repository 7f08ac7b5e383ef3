package daemon_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pganalytics/pkg/daemon"
)

func TestMain(m *testing.M) {
	if os.Getenv("DAEMON_TEST_CHILD") != "" {
		child()
		return
	}
	goleak.VerifyTestMain(m)
}

// journal records what the parts did, in order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
}

func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]string(nil), j.lines...)
}

// slow is a part that takes a while to start and to stop.
func (j *journal) slow(name string) daemon.Part {
	return daemon.Part{Name: name, Run: func(ctx context.Context, ready func()) error {
		j.add(name + " starting")
		time.Sleep(time.Second) // bubble time
		j.add(name + " ready")
		ready()
		ready() // a second call is harmless
		<-ctx.Done()
		j.add(name + " stopping")
		time.Sleep(time.Second)
		j.add(name + " stopped")
		return ctx.Err()
	}}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestPartsStartInOrderAndStopInReverseEachFullyBeforeTheNext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var j journal
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- daemon.Run(ctx, quiet(), time.Minute, j.slow("a"), j.slow("b"), j.slow("c")) }()
		time.Sleep(time.Minute)
		cancel()
		require.NoError(t, <-done)
		require.Equal(t, []string{
			"a starting", "a ready", "b starting", "b ready", "c starting", "c ready",
			"c stopping", "c stopped", "b stopping", "b stopped", "a stopping", "a stopped",
		}, j.all())
	})
}

func TestFirstErrorStopsTheOthersAndIsReturnedWithThePartsName(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var j journal
		broken := errors.New("it broke")
		err := daemon.Run(t.Context(), quiet(), time.Minute, j.slow("a"), daemon.Part{
			Name: "b", Run: func(_ context.Context, ready func()) error {
				ready()
				time.Sleep(time.Minute)
				return broken
			},
		}, j.slow("c"))
		require.ErrorIs(t, err, broken)
		require.ErrorContains(t, err, "b: ")
		require.Equal(t, []string{
			"a starting", "a ready", "c starting", "c ready",
			"c stopping", "c stopped", "a stopping", "a stopped",
		}, j.all())
	})
}

func TestPartThatFailsToStartKeepsTheNextFromStarting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var j journal
		broken := errors.New("address in use")
		err := daemon.Run(t.Context(), quiet(), time.Minute, j.slow("a"), daemon.Part{
			Name: "b", Run: func(context.Context, func()) error { return broken },
		}, j.slow("c"))
		require.ErrorIs(t, err, broken)
		require.Equal(t, []string{"a starting", "a ready", "a stopping", "a stopped"}, j.all())
	})
}

func TestPartThatEndsByItselfIsAFailureThatNamesIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var j journal
		err := daemon.Run(t.Context(), quiet(), time.Minute, j.slow("a"), daemon.Part{
			Name: "quitter", Run: func(_ context.Context, ready func()) error { ready(); return nil },
		})
		require.ErrorContains(t, err, "quitter: ended by itself")
	})
}

func TestPartThatDoesNotStopIsNamedAndTheOthersStillStop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var j journal
		release := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			done <- daemon.Run(ctx, quiet(), 10*time.Second, j.slow("a"), daemon.Part{
				Name: "stuck", Run: func(_ context.Context, ready func()) error { ready(); <-release; return nil },
			})
		}()
		time.Sleep(time.Minute)
		cancel()
		require.ErrorContains(t, <-done, "stuck: did not stop within 10s")
		require.Contains(t, j.all(), "a stopped")
		close(release)
	})
}

func TestStopDuringStartStopsWhatHasStarted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var j journal
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond) // b is starting
		defer cancel()
		require.NoError(t, daemon.Run(ctx, quiet(), time.Minute, j.slow("a"), j.slow("b"), j.slow("c")))
		require.NotContains(t, j.all(), "c starting")
		require.Equal(t, "a stopped", j.all()[len(j.all())-1])
	})
}

// child is what the signal test runs as another process: it stops at the
// first signal, and then takes for ever.
func child() {
	ctx, stop := daemon.Signals(context.Background())
	defer stop()
	_, _ = io.WriteString(os.Stdout, "started\n")
	<-ctx.Done()
	_, _ = io.WriteString(os.Stdout, "stopping\n")
	select {}
}

func TestFirstSignalStopsSecondOneEndsTheProcess(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), "DAEMON_TEST_CHILD=1")
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewReader(stdout)
	expect := func(want string) {
		line, err := lines.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, want, strings.TrimSpace(line))
	}
	expect("started")
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	expect("stopping")

	// The handler is released right after the context ends, so the first of
	// these may still be swallowed.
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	require.Eventually(t, func() bool {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
			return true
		default:
			return false
		}
	}, 20*time.Second, 10*time.Millisecond)
	require.NoError(t, ctx.Err(), "ended by the test's deadline, not by the signal")
}
