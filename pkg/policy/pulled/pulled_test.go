package pulled_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pganalytics/pkg/bus"
	"pganalytics/pkg/internal/testnats"
	"pganalytics/pkg/policy/pulled"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 60 * time.Second

// world is a bucket on a real server, and a gateway's memory of it.
type world struct {
	t        *testing.T
	nats     *testnats.Server
	bus      *bus.Bus
	readings atomic.Int32 // of the bucket from its beginning
	bucket   *bus.Bucket
	snapshot *pulled.Snapshot
}

func setup(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, nats: testnats.Start(t)}
	var err error
	w.bus, err = bus.Connect(t.Context(), bus.Config{URL: w.nats.URL(), ConfirmEvery: 50 * time.Millisecond}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(t, err)
	t.Cleanup(func() { _ = w.bus.Close(context.Background()) })
	require.NoError(t, w.bus.EnsureStreams(t.Context()))
	w.bucket = w.bus.ConfigBucket()
	w.snapshot = w.follow()
	return w
}

// follow returns another gateway's memory.
func (w *world) follow() *pulled.Snapshot {
	s := pulled.NewSnapshot(w.bucket)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.bucket.Follow(ctx, counted{s, &w.readings}) }()
	w.t.Cleanup(func() {
		cancel()
		require.NoError(w.t, <-ended)
	})
	w.eventually(func() bool { _, known := s.Answer(uuid.New()); return known })
	return s
}

// counted counts how often the bucket was read to its end.
type counted struct {
	*pulled.Snapshot
	readings *atomic.Int32
}

func (c counted) Complete() { c.Snapshot.Complete(); c.readings.Add(1) }

func (w *world) eventually(ok func() bool) {
	w.t.Helper()
	require.Eventually(w.t, ok, patience, time.Millisecond)
}

func (w *world) publish(v pulled.Version) {
	w.t.Helper()
	require.NoError(w.t, pulled.Publish(w.t.Context(), w.bucket, v))
}

// committed are versions as a database has them.
type committed []pulled.Version

func (c committed) NewestConfigs(context.Context) ([]pulled.Version, error) { return c, nil }

func TestOnlyANewerVersionReplacesAnother(t *testing.T) {
	t.Parallel()
	w := setup(t)
	id := uuid.New()
	for _, v := range []pulled.Version{{Number: 3, Document: "three"}, {Number: 2, Document: "two"}, {Number: 3, Document: "other"}} {
		v.Collector = id
		w.publish(v)
	}
	there, err := pulled.Published(t.Context(), w.bucket, id)
	require.NoError(t, err)
	require.Equal(t, pulled.Record{Version: 3, Document: "three"}, there)
	w.eventually(func() bool { return w.snapshot.Version(id) == 3 })

	// Whoever writes past Publish does not get through to collectors either.
	older, err := json.Marshal(pulled.Record{Version: 1, Document: "one"})
	require.NoError(t, err)
	require.NoError(t, w.bucket.Put(t.Context(), "document."+id.String(), older))
	w.publish(pulled.Version{Number: 4, Document: "fleet"})
	w.eventually(func() bool { return w.snapshot.Version(uuid.New()) == 4 })
	answer, _ := w.snapshot.Answer(id)
	require.Equal(t, pulled.Answer{CollectorID: id, Version: 3, Document: "three"}, answer)
}

func TestTheOwnDocumentCountsAndElseTheDefault(t *testing.T) {
	t.Parallel()
	own, fleet := pulled.Record{Version: 5, Document: "own"}, pulled.Record{Version: 7, Document: "fleet"}
	require.Equal(t, own, pulled.Effective(own, fleet))
	require.Equal(t, fleet, pulled.Effective(pulled.Record{}, fleet))
	require.Equal(t, fleet, pulled.Effective(pulled.Record{Version: 6}, fleet))
	// Taken back after the default was set: the number rises all the same.
	require.Equal(t, pulled.Record{Version: 9, Document: "fleet"}, pulled.Effective(pulled.Record{Version: 9}, fleet))
	require.Equal(t, pulled.Record{Version: 9}, pulled.Effective(pulled.Record{Version: 9}, pulled.Record{}))
}

func TestABucketMadeAnewIsFilledAndNobodyIsToldOfItsLack(t *testing.T) {
	t.Parallel()
	w := setup(t)
	id, other := uuid.New(), uuid.New()
	versions := committed{{Number: 2, Document: "fleet"}, {Number: 1, Collector: id, Document: "own"}}
	require.NoError(t, pulled.Reconcile(t.Context(), versions, w.bucket))
	w.eventually(func() bool { return w.snapshot.Version(id) == 1 && w.snapshot.Version(other) == 2 })

	nc, err := nats.Connect(w.nats.URL())
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	require.NoError(t, js.DeleteKeyValue(t.Context(), "config"))
	require.NoError(t, w.bus.EnsureStreams(t.Context()))
	w.eventually(func() bool { return w.readings.Load() == 2 })
	require.EqualValues(t, 1, w.snapshot.Version(id), "it has read the empty bucket, and goes on with what it had")
	fresh := w.follow()
	require.Zero(t, fresh.Version(id), "it cannot know")

	require.NoError(t, pulled.Reconcile(t.Context(), versions, w.bucket))
	for _, s := range []*pulled.Snapshot{fresh, w.snapshot} {
		w.eventually(func() bool { return s.Version(id) == 1 && s.Version(other) == 2 })
	}
	// The first one follows the new bucket.
	w.publish(pulled.Version{Number: 3, Collector: id, Document: "newer"})
	w.eventually(func() bool {
		require.NotZero(t, w.snapshot.Version(id))
		return w.snapshot.Version(id) == 3
	})
}

// ordered notes in which order keys are written.
type ordered struct {
	*bus.Bucket
	keys []string
}

func (o *ordered) Revise(ctx context.Context, key string, change func([]byte) []byte) error {
	o.keys = append(o.keys, key)
	return o.Bucket.Revise(ctx, key, change)
}

func TestTheDefaultIsPublishedLast(t *testing.T) {
	t.Parallel()
	w := setup(t)
	id := uuid.New()
	o := &ordered{Bucket: w.bucket}
	require.NoError(t, pulled.Reconcile(t.Context(), committed{{Number: 1, Document: "fleet"}, {Number: 2, Collector: id, Document: "own"}}, o))
	require.Equal(t, []string{"document." + id.String(), "document.default"}, o.keys, "or a collector takes it for want of its own")
}

func TestASnapshotOutlivesItsServer(t *testing.T) {
	t.Parallel()
	w := setup(t)
	id := uuid.New()
	w.publish(pulled.Version{Number: 1, Collector: id, Document: "own"})
	w.eventually(func() bool { return w.snapshot.Version(id) == 1 })
	w.nats.Stop()
	answer, known := w.snapshot.Answer(id)
	require.True(t, known)
	require.Equal(t, "own", answer.Document)
	w.nats.Restart()
	require.Eventually(t, func() bool {
		return pulled.Publish(t.Context(), w.bucket, pulled.Version{Number: 2, Collector: id, Document: "newer"}) == nil
	}, patience, 50*time.Millisecond)
	w.eventually(func() bool { return w.snapshot.Version(id) == 2 })
}

func TestAStateIsWrittenOnceUntilItChanges(t *testing.T) {
	t.Parallel()
	w := setup(t)
	id := uuid.New()
	written := func() int64 {
		state, err := pulled.StateOf(t.Context(), w.bucket, id)
		require.NoError(t, err)
		return state.At.UnixNano()
	}
	said := pulled.State{Applied: 1, Refused: 2, Detail: "why", Resent: &pulled.Resent{ID: uuid.New(), Found: 3}}
	require.NoError(t, w.snapshot.Report(t.Context(), id, said))
	first := written()
	// Once the report has come back the same is not written again.
	w.eventually(func() bool {
		before := written()
		require.NoError(t, w.snapshot.Report(t.Context(), id, said))
		return written() == before
	})
	last := written()
	for range 10 {
		require.NoError(t, w.snapshot.Report(t.Context(), id, said))
	}
	require.Equal(t, last, written())
	require.GreaterOrEqual(t, last, first)

	resent := *said.Resent
	resent.Missing++
	said.Resent = &resent
	require.NoError(t, w.snapshot.Report(t.Context(), id, said))
	state, err := pulled.StateOf(t.Context(), w.bucket, id)
	require.NoError(t, err)
	require.Equal(t, 1, state.Resent.Missing)
}

func TestARequestToResendStaysUntilItIsDone(t *testing.T) {
	t.Parallel()
	w := setup(t)
	id := uuid.New()
	request := func(last uint64) pulled.Resend {
		return pulled.Resend{ID: uuid.New(), Ranges: []pulled.Range{{First: 1, Last: last}}, By: "cli:test", At: time.Now()}
	}
	ask := func(r pulled.Resend) pulled.Resend {
		asked, err := pulled.Ask(t.Context(), w.bucket, id, r)
		require.NoError(t, err)
		return asked
	}
	first := ask(request(5))
	require.Equal(t, first.ID, ask(request(5)).ID, "asked already")
	w.eventually(func() bool { a, _ := w.snapshot.Answer(id); return a.Resend != nil && a.Resend.ID == first.ID })
	answer, _ := w.snapshot.Answer(id)
	require.Equal(t, &pulled.Resend{ID: first.ID, Ranges: first.Ranges}, answer.Resend, "who asked is left out")

	require.NotEqual(t, first.ID, ask(request(6)).ID, "other numbers")
	again := ask(request(6))
	require.NoError(t, w.snapshot.Report(t.Context(), id, pulled.State{Resent: &pulled.Resent{ID: again.ID}}))
	require.NotEqual(t, again.ID, ask(request(6)).ID, "done, and lost again")
}

// A record can be anything: whoever writes the bucket is believed in nothing
// that cannot be read.
func FuzzSnapshot(f *testing.F) {
	f.Add("document.default", []byte(`{"version":1,"document":"{}"}`))
	f.Add("resend.6ba7b810-9dad-11d1-80b4-00c04fd430c8", []byte(`{"id":"6ba7b810-9dad-11d1-80b4-00c04fd430c8","ranges":[{"first":1}]}`))
	f.Add("state.6ba7b810-9dad-11d1-80b4-00c04fd430c8", []byte(`{"applied":-1}`))
	f.Add("state.default", []byte(`{}`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		s := pulled.NewSnapshot(nil)
		s.Complete()
		id := uuid.MustParse("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
		before, _ := s.Answer(id)
		err := s.Apply(key, value)
		after, _ := s.Answer(id)
		if err != nil {
			require.Equal(t, before, after)
		}
		s.Remove(key)
	})
}
