package service_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/bus"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/ingester"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/internal/testnats"
	"pganalytics/pkg/store"
	"pganalytics/schemas"
)

func TestMain(m *testing.M) {
	if role(m) || testnats.Member() {
		return
	}
	goleak.VerifyTestMain(m)
}

const family = `
name: probe
description: Rows of the tests.
scope: instance
interval: 60s
retention: 30d
chunk: 1d
key: [n]
columns:
  - {name: n, type: integer, kind: label, help: Which row.}
  - {name: value, type: text, kind: info, help: Anything.}
queries:
  - {min_version: 13, sql: "select 1"}
`

func families(t testing.TB) *catalogue.Catalogue {
	t.Helper()
	cat, err := catalogue.Load(schemas.Metrics, fstest.MapFS{"probe.yaml": {Data: []byte(family)}})
	require.NoError(t, err)
	return cat
}

// line is a stream and a database with nothing between them yet.
type line struct {
	t     testing.TB
	nats  *testnats.Server // nil when it was given a URL
	bus   *bus.Bus
	store *store.Store
	url   string // of the database

	natsURL string
}

type lineConfig struct {
	databaseURL string // of an empty database; "" for one of its own
	natsURL     string // "" for a server of its own
	bus         bus.Config
	lockTimeout time.Duration // of the store; zero for its default
}

func newLine(t testing.TB, cfg lineConfig) *line {
	t.Helper()
	ctx := t.Context()
	l := &line{t: t, url: cfg.databaseURL, natsURL: cfg.natsURL}
	if l.natsURL == "" {
		l.nats = testnats.Start(t)
		l.natsURL = l.nats.URL()
	}
	if l.url == "" {
		l.url = testdb.New(t)
	}
	cat := families(t)
	require.NoError(t, store.Migrate(ctx, l.url))
	require.NoError(t, store.EnsureSchema(ctx, l.url, cat))

	cfg.bus.URL = l.natsURL
	cfg.bus.BatchesMaxBytes = max(cfg.bus.BatchesMaxBytes, 64<<20)
	cfg.bus.DeadLettersMaxBytes = 16 << 20
	var err error
	l.bus, err = bus.Connect(ctx, cfg.bus, quiet(), prometheus.NewRegistry())
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.bus.Close(context.Background()) })
	require.NoError(t, l.bus.EnsureStreams(ctx))

	l.store, err = store.Open(ctx, store.Config{URL: l.url, LockTimeout: cfg.lockTimeout}, cat, quiet(), prometheus.NewRegistry())
	require.NoError(t, err)
	t.Cleanup(l.store.Close)
	return l
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// settings that make an ingester quick enough for a test.
func settings() ingester.Config {
	return ingester.Config{
		Loaders: 2, FetchMessages: 200, FetchBytes: 16 << 20, FetchWait: 50 * time.Millisecond,
		LoadRows: 20_000, LoadBytes: 8 << 20, ExtendEvery: 500 * time.Millisecond, LoadTimeout: 10 * time.Second,
		UnknownFor: time.Hour, UnresolvedFor: time.Hour, UnresolvedTry: 10,
	}
}

// ingest runs an ingester until stop is called or the test ends. source may
// wrap the consumer to break one of its methods.
func (l *line) ingest(cfg ingester.Config, source func(ingester.Source) ingester.Source) (stop func()) {
	l.t.Helper()
	consumer, err := l.bus.Consumer(l.t.Context())
	require.NoError(l.t, err)
	if source == nil {
		return l.ingestWith(cfg, consumer, l.bus.DeadLetters())
	}
	return l.ingestWith(cfg, source(consumer), l.bus.DeadLetters())
}

func (l *line) ingestWith(cfg ingester.Config, source ingester.Source, letters ingester.DeadLetters) (stop func()) {
	l.t.Helper()
	in, err := ingester.New(cfg, source, l.store, letters, quiet(), prometheus.NewRegistry())
	require.NoError(l.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- in.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(l.t, <-done)
	})
	l.t.Cleanup(stop)
	return stop
}

// batchOf makes a sealed batch of rows that say text.
func batchOf(collector, id uuid.UUID, text string, rows int) *batch.Batch {
	sec, nsec := id.Time().UnixTime()
	at := time.Unix(sec, nsec).UTC().Truncate(time.Millisecond)
	server := batch.ServerID(collector, "db1")
	section := batch.Section{
		Family: "probe", Server: "db1", ServerID: server, Rows: rows, MinTime: at, MaxTime: at,
		Columns: []batch.Column{{Name: "n", Type: catalogue.Integer}, {Name: "value", Type: catalogue.Text}},
	}
	for n := range rows {
		section.Tuples = batch.AppendTuple(section.Tuples, 4, at, server)
		section.Tuples = batch.AppendInt32(section.Tuples, int32(n))
		section.Tuples = batch.AppendText(section.Tuples, text)
	}
	b := &batch.Batch{CollectorID: collector, ID: id, SentAt: at, ReceivedAt: time.Now().UTC(), Sections: []batch.Section{section}}
	b.Seal()
	return b
}

func newBatch(rows int) *batch.Batch {
	return batchOf(uuid.New(), uuid.Must(uuid.NewV7()), "x", rows)
}

// poison makes the rows something that COPY refuses, as only a faulty gateway
// could.
func poison(b *batch.Batch) *batch.Batch {
	s := &b.Sections[0]
	s.Tuples[len(s.Tuples)-1] = 0 // text with a NUL
	b.Seal()
	return b
}

func (l *line) publish(batches ...*batch.Batch) {
	l.t.Helper()
	for _, b := range batches {
		_, err := l.bus.Publisher().Publish(l.t.Context(), b)
		require.NoError(l.t, err)
	}
}

// number runs a query that returns one number, on a session of its own.
func (l *line) number(query string, args ...any) int {
	l.t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, l.url)
	require.NoError(l.t, err)
	defer func() { _ = conn.Close(ctx) }()
	var n int
	require.NoError(l.t, conn.QueryRow(ctx, query, args...).Scan(&n))
	return n
}

func (l *line) rows() int    { return l.number("select count(*) from metrics.probe") }
func (l *line) batches() int { return l.number("select count(*) from ingest.batch") }

func (l *line) status() bus.Status {
	l.t.Helper()
	s, err := l.bus.Status(context.Background())
	require.NoError(l.t, err)
	return s
}

// settled waits until every message on the stream has been acknowledged. The
// count of pending messages lags behind the stream; the floor does not.
func (l *line) settled() {
	l.t.Helper()
	l.eventually("every message is acknowledged", func() bool {
		s := l.status()
		return s.AckFloor == s.LastSequence
	})
}

func (l *line) eventually(what string, ok func() bool) {
	l.t.Helper()
	require.Eventually(l.t, ok, 30*time.Second, 25*time.Millisecond, what)
}

// letters waits until they can be read: a cluster whose server was killed may
// still be choosing who answers for them.
func (l *line) letters() (letters []batch.Letter) {
	l.t.Helper()
	l.eventually("the dead letters are read", func() (ok bool) {
		var err error
		letters, err = l.bus.DeadLetters().List(context.Background(), 1000)
		return err == nil
	})
	return letters
}

// tap wraps a source to look at, or break, what it hands out.
type tap struct {
	ingester.Source
	each func(d *batch.Delivery)
}

func (s tap) Fetch(ctx context.Context, maxMessages, maxBytes int, wait time.Duration) ([]batch.Delivery, error) {
	got, err := s.Source.Fetch(ctx, maxMessages, maxBytes, wait)
	for i := range got {
		s.each(&got[i])
	}
	return got, err
}
