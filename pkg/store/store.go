// Package store keeps metric batches in TimescaleDB: the tables, the ledger
// and the loader that writes both in one transaction.
//
// A batch is stored if and only if its row is in ingest.batch, because that
// row and the batch's rows commit together. So a batch is stored once however
// often it is loaded, and a restored backup tells by itself which batches it
// lacks. The package knows nothing of the stream and decides nothing about
// messages: it returns an outcome or a classified error for the caller to act
// on.
package store

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"pganalytics/pkg/catalogue"
)

// Store loads batches into one database. Its methods may be called at once
// from many goroutines.
type Store struct {
	cfg        Config
	catalogue  *catalogue.Catalogue
	log        *slog.Logger
	pool       *pgxpool.Pool
	metrics    *metrics
	progress   *progress
	dimensions map[string]string // family → statement that settles its staged rows
	servers    string            // statement that keeps metrics.server
}

// Open returns a store for the families of cat. It does not connect: a
// database that is away is told by Probe and Load, as Unavailable. The
// tables must exist, see Migrate and EnsureSchema. Errors name what is wrong
// with cfg.
func Open(ctx context.Context, cfg Config, cat *catalogue.Catalogue, log *slog.Logger, reg prometheus.Registerer) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	cfg = cfg.withDefaults()
	s := &Store{
		cfg:        cfg,
		catalogue:  cat,
		log:        log,
		progress:   newProgress(),
		dimensions: map[string]string{},
		servers:    serverStatement(cat),
	}
	for _, f := range cat.Families() {
		if f.Dimension {
			s.dimensions[f.Name] = settleStatement(f)
		}
	}
	poolCfg, err := loadingSessions(cfg, s.admit, stageTables(cat), log)
	if err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	poolCfg.PrepareConn = func(_ context.Context, conn *pgx.Conn) (bool, error) {
		return session{conn}.rewinds() == s.progress.generation(), nil
	}
	if s.pool, err = pgxpool.NewWithConfig(ctx, poolCfg); err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	s.metrics = newMetrics(reg, s.pool)
	return s, nil
}

// Close ends all sessions. It waits for those in use.
func (s *Store) Close() { s.pool.Close() }

// Probe commits a small write. It tells a database that takes writes from one
// that is away, read-only or full; nil means that a load which failed failed
// for reasons of its own. The error is classified like those of Load.
func (s *Store) Probe(ctx context.Context) error {
	err := s.session(ctx, func(ses session) error {
		if _, err := ses.Exec(ctx, "begin"); err != nil {
			return ses.failed("begin", err)
		}
		return s.commit(ctx, ses, &pgx.Batch{}, probeSlot)
	})
	s.metrics.probed(err)
	if err != nil {
		return fmt.Errorf("probe the database: %w", err)
	}
	return nil
}
