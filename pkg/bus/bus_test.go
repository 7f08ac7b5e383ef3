package bus

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/bus/natsserver"
	"pganalytics/pkg/fault"
	"pganalytics/pkg/internal/testnats"
)

func TestMain(m *testing.M) {
	if testnats.Member() {
		return
	}
	goleak.VerifyTestMain(m)
}

// patience bounds every poll of these tests.
const patience = 20 * time.Second

// world is one test's server and a bus connected to it.
type world struct {
	*Bus
	t      *testing.T
	server *natsserver.Server
	dir    string
	url    string
	cfg    Config
}

// setup starts a server and connects to it, with all streams made.
func setup(t *testing.T, change ...func(*Config)) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir()}
	w.start(natsserver.Config{})
	t.Cleanup(func() { w.server.Stop() })
	w.cfg = Config{
		URL:             w.url,
		BatchesMaxBytes: 64 << 20, DeadLettersMaxBytes: 32 << 20,
		RequestTimeout: 2 * time.Second, ConfirmEvery: 100 * time.Millisecond,
	}
	for _, f := range change {
		f(&w.cfg)
	}
	w.Bus = w.connect()
	require.NoError(t, w.EnsureStreams(t.Context()))
	return w
}

// start starts the server on the world's directory, and on its port if it had
// one before.
func (w *world) start(cfg natsserver.Config) {
	w.t.Helper()
	cfg.StoreDir, cfg.Listen = w.dir, true
	if w.url != "" {
		u, err := url.Parse(w.url)
		require.NoError(w.t, err)
		_, port, err := net.SplitHostPort(u.Host)
		require.NoError(w.t, err)
		cfg.Port, err = strconv.Atoi(port)
		require.NoError(w.t, err)
	}
	server, err := natsserver.Start(cfg, slog.New(slog.DiscardHandler))
	require.NoError(w.t, err)
	w.server, w.url = server, server.URL()
}

func (w *world) connect() *Bus {
	w.t.Helper()
	b, err := Connect(w.t.Context(), w.cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(w.t, err)
	w.t.Cleanup(func() { _ = b.Close(context.Background()) })
	return b
}

func (w *world) stopAndNotice() {
	w.t.Helper()
	w.server.Stop()
	require.Eventually(w.t, func() bool { return !w.nc.IsConnected() }, patience, time.Millisecond)
}

func (w *world) restart(cfg natsserver.Config) {
	w.t.Helper()
	before := w.reconnects.Load()
	w.server.Stop()
	w.start(cfg)
	require.Eventually(w.t, func() bool { return w.reconnects.Load() > before }, patience, time.Millisecond)
	require.Eventually(w.t, func() bool { return w.Ready(w.t.Context()) == nil }, patience, time.Millisecond)
}

// publish publishes n batches of size bytes of tuples each.
func (w *world) publish(n, size int) []*batch.Batch {
	w.t.Helper()
	batches := make([]*batch.Batch, n)
	for i := range batches {
		batches[i] = newBatch(size)
		duplicate, err := w.Publisher().Publish(w.t.Context(), batches[i])
		require.NoError(w.t, err)
		require.False(w.t, duplicate)
	}
	return batches
}

func (w *world) status() Status {
	w.t.Helper()
	s, err := w.Status(w.t.Context())
	require.NoError(w.t, err)
	return s
}

func (w *world) consumer() *Consumer {
	w.t.Helper()
	c, err := w.Consumer(w.t.Context())
	require.NoError(w.t, err)
	return c
}

// fetch returns up to n messages, waiting until there is at least one.
func (w *world) fetch(c *Consumer, n int) []batch.Delivery {
	w.t.Helper()
	var got []batch.Delivery
	require.Eventually(w.t, func() bool {
		var err error
		got, err = c.Fetch(w.t.Context(), n, 2*natsserver.MaxPayload, 100*time.Millisecond)
		return err == nil && len(got) > 0
	}, patience, time.Millisecond)
	return got
}

// ackAll acks deliveries; the server learns of it later: see awaitFloor.
func (w *world) ackAll(deliveries []batch.Delivery) {
	w.t.Helper()
	for _, d := range deliveries {
		require.NoError(w.t, d.Ack(w.t.Context()))
	}
}

func (w *world) awaitFloor(floor uint64) {
	w.t.Helper()
	require.Eventually(w.t, func() bool { return w.status().AckFloor == floor }, patience, time.Millisecond)
}

// newBatch returns a sealed batch with size random bytes of tuples.
func newBatch(size int) *batch.Batch {
	tuples := make([]byte, size)
	_, _ = rand.Read(tuples) // never fails
	now := time.Now().UTC().Truncate(time.Microsecond)
	b := &batch.Batch{
		CollectorID: uuid.New(), ID: uuid.Must(uuid.NewV7()), SentAt: now, ReceivedAt: now,
		Sections: []batch.Section{{Family: "f", Server: "s", MinTime: now, MaxTime: now, Rows: min(1, size), Tuples: tuples}},
	}
	b.Seal()
	return b
}

func requireUnavailable(t *testing.T, err error) {
	t.Helper()
	require.Error(t, err)
	require.Equal(t, fault.Unavailable, fault.ClassOf(err), "%v", err)
}

func TestConnectWaitsForTheServer(t *testing.T) {
	t.Parallel()
	w := &world{t: t, dir: t.TempDir()}
	w.start(natsserver.Config{})
	w.server.Stop()
	connected, url := make(chan error, 1), w.url
	go func() {
		b, err := Connect(t.Context(), Config{URL: url}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		if err == nil {
			err = b.Close(t.Context())
		}
		connected <- err
	}()
	w.start(natsserver.Config{})
	defer w.server.Stop()
	require.NoError(t, <-connected)
}

func TestConnectGivesUpWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := Connect(ctx, Config{URL: "nats://127.0.0.1:1"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, nats.ErrNoServers)
}

func TestConfigNamesAllFaults(t *testing.T) {
	t.Parallel()
	err := Config{User: "a.b", Prefix: "x.y", Replicas: 9, BatchesMaxBytes: -1, DuplicateWindow: 1, MinPayload: 1}.Validate()
	for _, name := range []string{"URL", "User", "PasswordFile", "Prefix", "Replicas", "BatchesMaxBytes", "DuplicateWindow", "MinPayload"} {
		require.ErrorContains(t, err, name)
	}
	require.NoError(t, Config{URL: "nats://x"}.Validate())
}

func TestReadyFollowsTheServer(t *testing.T) {
	t.Parallel()
	w := setup(t)
	require.NoError(t, w.Ready(t.Context()))
	w.stopAndNotice()
	requireUnavailable(t, w.Ready(t.Context()))
	w.restart(natsserver.Config{})
}

func TestTwoInstallationsShareAServer(t *testing.T) {
	t.Parallel()
	w := setup(t)
	cfg := w.cfg
	cfg.Prefix = "other"
	other := &world{t: t, cfg: cfg}
	other.Bus = other.connect()
	require.NoError(t, other.EnsureStreams(t.Context()))
	require.NoError(t, other.Guard(t.Context()))
	require.NoError(t, w.Guard(t.Context()))

	other.publish(2, 10)
	require.NoError(t, other.DeadLetters().Bury(t.Context(), batch.Letter{Payload: []byte("x")}))
	require.NoError(t, other.IdentityBucket().Put(t.Context(), "k", []byte("v")))
	require.EqualValues(t, 2, other.status().Messages)
	require.EqualValues(t, 1, other.status().DeadLetters)
	require.Zero(t, w.status().Messages)
	require.Zero(t, w.status().DeadLetters)
	_, err := w.IdentityBucket().Get(t.Context(), "k")
	require.Equal(t, fault.NotFound, fault.ClassOf(err))
}
