package e2e

import (
	"encoding/json"
	"io"
	"maps"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/collector"
	"pganalytics/pkg/collector/spool"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/internal/testnet"
)

// outage is how long the network is away: short with all tests, ten minutes by
// make soak.
func outage(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("SOAK")
	if text == "" {
		return 12 * time.Second
	}
	d, err := time.ParseDuration(text)
	require.NoError(t, err, "SOAK")
	return d
}

// For the first half of the outage nothing passes, as when a cable is pulled;
// then connections are refused, and meanwhile the gateway is killed.
func TestNothingIsLostWhileTheNetworkIsAwayAndTheGatewayIsKilled(t *testing.T) {
	t.Parallel()
	length := outage(t)
	w := newWire(t)
	s := newSystem(t, "", "--collector-url", "https://"+w.address)
	s.startServe()
	w.to(s.collectors)
	s.enrol("watcher", s.state())
	s.watch(testdb.Empty(t))
	s.eventually("batches are accepted", func() bool { return len(s.accepted()) > 2 })

	w.set(silent)
	before := s.spooled()
	<-time.After(length / 2)
	w.set(refusing)
	s.serve.kill(t)
	s.startServe()
	<-time.After(length / 2)
	during := s.spooled()
	require.GreaterOrEqual(t, during.Last.Sequence-before.Last.Sequence, uint64(length/time.Second)/2, "reading went on")
	require.GreaterOrEqual(t, during.Unsent, int(length/time.Second)/2, "nothing passed")
	w.set(open)

	// After a long outage the pause before the next attempt is up to a minute.
	require.Eventually(t, func() bool { return s.spooled().Unsent < 3 }, 3*time.Minute+length, 100*time.Millisecond, "the backlog is sent")
	s.serve.kill(t) // once more, while it is busy
	s.startServe()
	n := len(s.accepted())
	s.eventually("batches are accepted again", func() bool { return len(s.accepted()) > n+2 })
	s.collector.stop(t)
	require.Zero(t, s.spooled().Unsent)
	s.everythingStoredOnce()

	var found struct {
		Collectors []struct {
			Batches map[string]uint64 `json:"batches"`
		} `json:"collectors"`
	}
	require.NoError(t, json.Unmarshal(s.command("pganalytics", "verify", "--data-dir", s.data(), "--output", "json"), &found))
	require.Len(t, found.Collectors, 1)
	maps.DeleteFunc(found.Collectors[0].Batches, func(_ string, n uint64) bool { return n == 0 })
	require.Equal(t, map[string]uint64{"stored": s.spooled().Last.Sequence}, found.Collectors[0].Batches)
	t.Logf("%v without network: %d batches, all stored once", length, s.spooled().Last.Sequence)
	s.serve.stop(t)
}

func (s *system) spooled() spool.Stats {
	s.t.Helper()
	stats, err := spool.Inspect(collector.SpoolDir(s.state()))
	require.NoError(s.t, err)
	return stats
}

// wire is a network that can be taken away.
type wire struct {
	address string
	wg      sync.WaitGroup

	mu     sync.Mutex
	target string
	state  state
	conns  map[net.Conn]struct{}
}

type state uint8

const (
	open     state = iota
	silent         // connections are made and nothing passes
	refusing       // every connection is closed at once
)

func newWire(t *testing.T) *wire {
	t.Helper()
	w := &wire{address: testnet.FreeAddress(t), conns: map[net.Conn]struct{}{}}
	listener, err := net.Listen("tcp", w.address)
	require.NoError(t, err)
	w.wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // the test is over
			}
			w.wg.Go(func() { w.link(conn) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		w.set(refusing)
		w.wg.Wait()
	})
	return w
}

func (w *wire) to(target string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.target = target
}

// set changes the state. Connections that were silent cannot be mended: their
// ends learn of it when the wire is there again, or refuses.
func (w *wire) set(to state) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state = to
	for conn := range w.conns {
		if to != silent {
			_ = conn.Close()
		}
	}
}

func (w *wire) link(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	if !w.add(conn) {
		return
	}
	defer w.remove(conn)
	w.mu.Lock()
	target := w.target
	w.mu.Unlock()
	server, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	if !w.add(server) {
		return
	}
	defer w.remove(server)
	var both sync.WaitGroup
	both.Go(func() { w.pass(server, conn) })
	both.Go(func() { w.pass(conn, server) })
	both.Wait()
}

func (w *wire) add(conn net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state == refusing {
		return false
	}
	w.conns[conn] = struct{}{}
	return true
}

func (w *wire) remove(conn net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.conns, conn)
}

// pass copies until an end closes; in silence it swallows.
func (w *wire) pass(dst, src net.Conn) {
	defer func() { _ = dst.Close() }()
	_, _ = io.Copy(writer(func(p []byte) (int, error) {
		w.mu.Lock()
		quiet := w.state == silent
		w.mu.Unlock()
		if quiet {
			return len(p), nil
		}
		return dst.Write(p)
	}), src)
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }
