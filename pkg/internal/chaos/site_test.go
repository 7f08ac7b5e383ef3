package chaos

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/bus"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/internal/testnats"
	"pganalytics/pkg/store"
)

// site is a stream and a database, with ingesters as processes between them.
type site struct {
	t         *testing.T
	db        string // URL of the database
	natsURL   string
	catalogue string // directory of the families
	bus       *bus.Bus
	journal   *journal
	ingesters []*process
}

type siteConfig struct {
	db      string // defaults to a database of its own on the shared server
	natsURL string // defaults to a server of its own in this process
}

// ackWait is short, so that a fault can outlast it.
const (
	ackWait             = 2 * time.Second
	batchesMaxBytes     = 256 << 20
	deadLettersMaxBytes = 64 << 20
)

func newSite(t *testing.T, cfg siteConfig) *site {
	t.Helper()
	s := bareSite(t, cfg.db)
	s.natsURL = cfg.natsURL
	if s.natsURL == "" {
		s.natsURL = testnats.Start(t).URL()
	}
	require.NoError(t, store.Migrate(t.Context(), s.db))
	require.NoError(t, store.EnsureSchema(t.Context(), s.db, loadCatalogue(t)))
	s.connectBus(bus.Config{URL: s.natsURL})
	require.NoError(t, s.bus.EnsureStreams(t.Context()))
	return s
}

// bareSite has neither tables nor streams yet.
func bareSite(t *testing.T, db string) *site {
	t.Helper()
	if db == "" {
		db = testdb.New(t)
	}
	return &site{t: t, db: db, catalogue: writeCatalogue(t, true), journal: newJournal(t)}
}

func (s *site) connectBus(cfg bus.Config) {
	s.t.Helper()
	cfg.AckWait, cfg.BatchesMaxBytes, cfg.DeadLettersMaxBytes = ackWait, batchesMaxBytes, deadLettersMaxBytes
	var err error
	s.bus, err = bus.Connect(s.t.Context(), cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(s.t, err)
	s.t.Cleanup(func() { _ = s.bus.Close(context.Background()) })
}

// ownCluster is a site on a database server that the test may break.
func ownCluster(t *testing.T) (*site, *testdb.Cluster) {
	t.Helper()
	cluster := testdb.StartCluster(t)
	return newSite(t, siteConfig{db: cluster.URL()}), cluster
}

// connect opens a session of the test's own; it ends with the test.
func (s *site) connect() *pgx.Conn { s.t.Helper(); return connectTo(s.t, s.db) }

func connectTo(t *testing.T, db string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), db)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func sql(t *testing.T, conn *pgx.Conn, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		_, err := conn.Exec(t.Context(), statement)
		require.NoError(t, err, statement)
	}
}

// number runs a query that returns one number, on a session of its own.
func (s *site) number(query string, args ...any) int {
	s.t.Helper()
	n, err := s.tryNumber(query, args...)
	require.NoError(s.t, err)
	return n
}

func (s *site) tryNumber(query string, args ...any) (n int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.db)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close(ctx) }()
	return n, conn.QueryRow(ctx, query, args...).Scan(&n)
}

// batches is the number of batches in the ledger.
func (s *site) batches() int { s.t.Helper(); return s.number("select count(*) from ingest.batch") }

// flowing waits until n more batches are in the ledger.
func (s *site) flowing(n int) {
	s.t.Helper()
	before := s.batches()
	s.eventually("batches are stored", func() bool { return s.batches() >= before+n })
}

// settled waits until every message on the stream has been acknowledged.
func (s *site) settled() {
	s.t.Helper()
	s.eventually("every message is acknowledged", func() bool {
		status, err := s.bus.Status(context.Background())
		return err == nil && status.LastSequence > 0 && status.AckFloor == status.LastSequence
	})
}

// outstanding is the number of messages that were handed out and are not
// acknowledged.
func (s *site) outstanding() int {
	s.t.Helper()
	status, err := s.bus.Status(context.Background())
	require.NoError(s.t, err)
	return status.AckPending
}

func (s *site) eventually(what string, ok func() bool) {
	s.t.Helper()
	eventually(s.t, what, ok)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, 2*time.Minute, 50*time.Millisecond, what)
}
