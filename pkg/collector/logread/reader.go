package logread

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
)

// Family is the name of the family that is read here.
const Family = "pg_log_summary"

// Config of the reader of one server's log files.
type Config struct {
	// CollectorID is the collector's own.
	CollectorID uuid.UUID

	// Server is the name of the server that writes the files.
	Server string

	// Files is an absolute path or pattern, as of filepath.Match, that ends in
	// .csv or .json. Rotated files should match too.
	Files string

	// Interval is how often the files are read.
	Interval time.Duration

	// UpTo tells up to which preset families are read now. Nil: all are. What
	// is logged meanwhile is counted later.
	UpTo func() catalogue.Preset
}

// Metrics count what is read. The label is the server's name.
type Metrics struct {
	errors, unreadable *prometheus.CounterVec
}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	counter := func(name, help string) *prometheus.CounterVec {
		return promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
			Name: "pganalytics_collector_log_" + name, Help: help,
		}, []string{"server"})
	}
	return &Metrics{
		errors:     counter("errors_total", "Readings of a server's log files that failed."),
		unreadable: counter("unreadable_total", "Places where a server's log files make no sense, or a record is too long."),
	}
}

// Forget ends the series of a server whose log files are no longer read.
func (m *Metrics) Forget(server string) {
	m.errors.DeleteLabelValues(server)
	m.unreadable.DeleteLabelValues(server)
}

// Reader reads one server's log files.
type Reader struct {
	cfg      Config
	family   *catalogue.Family
	follower *Follower
	log      *slog.Logger
	metrics  *Metrics
	out      chan<- []batch.Section
	failed   bool
}

// NewReader makes the reader. What it reads goes to out.
func NewReader(cfg Config, cat *catalogue.Catalogue, log *slog.Logger, m *Metrics, out chan<- []batch.Section) (*Reader, error) {
	family, known := cat.Family(Family)
	if !known {
		return nil, fmt.Errorf("the catalogue has no family %s", Family)
	}
	follower, err := New(cfg.Files)
	if err != nil {
		return nil, err
	}
	return &Reader{
		cfg: cfg, family: family, follower: follower, metrics: m, out: out,
		log: log.With("server", cfg.Server, "family", Family),
	}, nil
}

// Run reads until ctx ends. Whoever takes the sections must do so until Run
// has returned.
func (r *Reader) Run(ctx context.Context) error {
	ticker := time.NewTicker(r.cfg.Interval)
	defer ticker.Stop()
	for {
		if r.cfg.UpTo == nil || r.family.Preset <= r.cfg.UpTo() {
			if s := r.section(r.read()); s.Rows > 0 {
				r.out <- []batch.Section{s}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// read returns what was logged since the last time.
func (r *Reader) read() Count {
	count, err := r.follower.Read()
	if err != nil {
		r.metrics.errors.WithLabelValues(r.cfg.Server).Inc()
		if !r.failed {
			r.log.Warn("log files cannot be read", "err", err)
		}
	} else if r.failed {
		r.log.Info("log files are read again")
	}
	r.failed = err != nil
	if count.Unreadable > 0 {
		r.metrics.unreadable.WithLabelValues(r.cfg.Server).Add(float64(count.Unreadable))
		r.log.Warn("log files make no sense in places", "places", count.Unreadable)
	}
	return count
}

func (r *Reader) section(count Count) batch.Section {
	at := time.Now().UTC().Truncate(time.Microsecond)
	s := batch.Section{
		Family: Family, Server: r.cfg.Server, ServerID: batch.ServerID(r.cfg.CollectorID, r.cfg.Server),
		Columns: batch.ColumnsOf(r.family), MinTime: at, MaxTime: at,
	}
	for _, key := range count.Keys() {
		s.Tuples = batch.AppendTuple(s.Tuples, batch.LeadFields+len(s.Columns), at, s.ServerID)
		s.Tuples = batch.AppendText(batch.AppendText(s.Tuples, key.Severity), key.SQLState)
		s.Tuples = batch.AppendInt64(s.Tuples, count.Messages[key])
		s.Rows++
	}
	return s
}
