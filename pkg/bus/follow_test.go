package bus

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/bus/natsserver"
	"pganalytics/pkg/fault"
)

// mirror is a sink that keeps what it is told, as a verifier would.
type mirror struct {
	mu        sync.Mutex
	next      map[string]string // being read
	current   map[string]string // as of Complete; nil before the first
	begins    int
	completes int
	confirmed time.Time
}

func (m *mirror) Begin() { m.do(func() { m.next = map[string]string{}; m.begins++ }) }
func (m *mirror) Apply(key string, value []byte) error {
	if key == "refused" {
		return errors.New("refused")
	}
	m.do(func() { m.next[key] = string(value) })
	return nil
}
func (m *mirror) Remove(key string)    { m.do(func() { delete(m.next, key) }) }
func (m *mirror) Complete()            { m.do(func() { m.current = m.next; m.completes++ }) }
func (m *mirror) Confirm(at time.Time) { m.do(func() { m.confirmed = at }) }

func (m *mirror) do(f func()) { m.mu.Lock(); defer m.mu.Unlock(); f() }

func (m *mirror) read() (current map[string]string, begins int, confirmed time.Time) {
	m.do(func() { current, begins, confirmed = maps.Clone(m.current), m.begins, m.confirmed })
	return current, begins, confirmed
}

// follow follows the world's identity bucket until the test ends.
func (w *world) follow() *mirror { return w.followBucket(w.IdentityBucket()) }

func (w *world) followBucket(b *Bucket) *mirror {
	w.t.Helper()
	m := &mirror{}
	ctx, cancel := context.WithCancel(w.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.Follow(ctx, m) }()
	w.t.Cleanup(func() {
		cancel()
		require.NoError(w.t, <-ended)
	})
	return m
}

// awaitConfirmed waits until the sink has exactly want, confirmed after now.
func awaitConfirmed(t *testing.T, m *mirror, want map[string]string) {
	t.Helper()
	since := time.Now()
	require.Eventually(t, func() bool {
		current, _, confirmed := m.read()
		return maps.Equal(current, want) && current != nil && confirmed.After(since)
	}, patience, time.Millisecond, "want %v", want)
}

func (w *world) put(key, value string) {
	w.t.Helper()
	require.NoError(w.t, w.IdentityBucket().Put(w.t.Context(), key, []byte(value)))
}

func TestFollowBeginsWithEverythingAndGoesOnLive(t *testing.T) {
	t.Parallel()
	w := setup(t)
	want := map[string]string{}
	for i := range 600 { // more than the watcher's buffer
		key := fmt.Sprintf("collector.%d", i)
		w.put(key, "1")
		want[key] = "1"
	}
	w.put("gone", "x")
	require.NoError(t, w.IdentityBucket().Delete(t.Context(), "gone"))
	m := w.follow()
	awaitConfirmed(t, m, want)

	w.put("collector.0", "2")
	w.put("collector.600", "1")
	require.NoError(t, w.IdentityBucket().Delete(t.Context(), "collector.1"))
	want["collector.0"], want["collector.600"] = "2", "1"
	delete(want, "collector.1")
	awaitConfirmed(t, m, want)
	_, begins, _ := m.read()
	require.Equal(t, 1, begins)
	require.Equal(t, 1, m.completes)
}

func TestFollowOfAnEmptyBucketIsComplete(t *testing.T) {
	t.Parallel()
	awaitConfirmed(t, setup(t).follow(), map[string]string{})
}

func TestARefusedEntryDoesNotStopTheOthers(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.put("refused", "x")
	m := w.follow()
	w.put("k", "v")
	awaitConfirmed(t, m, map[string]string{"k": "v"})
}

func TestARecreatedBucketIsNoticed(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.put("old", "1")
	w.put("old2", "1")
	m := w.follow()
	awaitConfirmed(t, m, map[string]string{"old": "1", "old2": "1"})

	require.NoError(t, w.js.DeleteKeyValue(t.Context(), w.names.identity))
	deleted := time.Now()
	require.Never(t, func() bool { _, _, confirmed := m.read(); return confirmed.After(deleted) },
		time.Second, 10*time.Millisecond, "confirmed although the bucket is gone")
	require.NoError(t, w.EnsureStreams(t.Context()))
	w.put("new", "1")
	begin := time.Now()
	awaitConfirmed(t, m, map[string]string{"new": "1"})
	require.Less(t, time.Since(begin), 5*time.Second)
}

// Between two questions the bucket is deleted and made anew with as many
// revisions as before: only its creation time tells.
func TestABucketSwappedBetweenTwoQuestionsIsNoticed(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.put("old", "1")
	m := w.follow()
	awaitConfirmed(t, m, map[string]string{"old": "1"})
	require.NoError(t, w.js.DeleteKeyValue(t.Context(), w.names.identity))
	require.NoError(t, w.EnsureStreams(t.Context()))
	w.put("new", "1")
	awaitConfirmed(t, m, map[string]string{"new": "1"})
}

func TestAPurgedBucketIsReadAgain(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.put("a", "1")
	w.put("b", "1")
	m := w.follow()
	awaitConfirmed(t, m, map[string]string{"a": "1", "b": "1"})
	stream, err := w.js.Stream(t.Context(), bucketStream(w.names.identity))
	require.NoError(t, err)
	require.NoError(t, stream.Purge(t.Context())) // a watcher is told nothing
	awaitConfirmed(t, m, map[string]string{})
}

func TestFollowStopsConfirmingWithoutTheServerAndRecovers(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.put("a", "1")
	m := w.follow()
	awaitConfirmed(t, m, map[string]string{"a": "1"})
	w.stopAndNotice()
	stopped := time.Now()
	require.Never(t, func() bool { _, _, confirmed := m.read(); return confirmed.After(stopped) },
		500*time.Millisecond, 10*time.Millisecond)
	current, _, _ := m.read()
	require.Equal(t, map[string]string{"a": "1"}, current, "what was known is kept")

	w.restart(natsserver.Config{})
	w.put("b", "1")
	begin := time.Now()
	awaitConfirmed(t, m, map[string]string{"a": "1", "b": "1"})
	require.Less(t, time.Since(begin), 5*time.Second, "the watcher alone takes longer to notice that it is cut off")
}

func TestFollowWaitsForTheBucket(t *testing.T) {
	t.Parallel()
	w := setup(t)
	require.NoError(t, w.js.DeleteKeyValue(t.Context(), w.names.identity))
	m := w.follow()
	require.NoError(t, w.EnsureStreams(t.Context()))
	awaitConfirmed(t, m, map[string]string{})
}

func TestBucketTellsAMissingKey(t *testing.T) {
	t.Parallel()
	w := setup(t)
	b := w.IdentityBucket()
	_, err := b.Get(t.Context(), "k")
	require.Equal(t, fault.NotFound, fault.ClassOf(err))
	require.NoError(t, b.Delete(t.Context(), "k"))
	w.put("k", "v")
	got, err := b.Get(t.Context(), "k")
	require.NoError(t, err)
	require.Equal(t, "v", string(got))
	require.Equal(t, fault.Internal, fault.ClassOf(b.Put(t.Context(), "a b", nil)))
	w.stopAndNotice()
	requireUnavailable(t, b.Put(t.Context(), "k", nil))
	w.start(natsserver.Config{})
}
