// Package hostread reads the catalogue's host families from the operating
// system of the collector's host.
//
// Invariants: what was read is handed over and never dropped here; a family
// that cannot be read never stops the others. It knows nothing of PostgreSQL.
package hostread

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/sync/errgroup"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
)

// Config of the reader of a host.
type Config struct {
	// CollectorID is the collector's own.
	CollectorID uuid.UUID

	// Name of the server that the rows are stored under: the host's own, or
	// that of a PostgreSQL server, to have them beside its rows.
	Name string

	// Intervals of the families that are on. A name that is no host family's
	// is passed over.
	Intervals map[string]time.Duration

	// UpTo tells up to which preset families are read now. Nil: all are.
	UpTo func() catalogue.Preset
}

// Families returns the names of all host families.
func Families() []string {
	return []string{"host_cpu", "host_disk", "host_filesystem", "host_load", "host_memory"}
}

// reading gives a family's rows, each as the fields after time and server_id.
type reading func(context.Context) ([][]byte, error)

// Host reads one host: the one it runs on.
type Host struct {
	cfg     Config
	log     *slog.Logger
	metrics *Metrics
	out     chan<- []batch.Section
	tasks   []task
}

// task is one family on its schedule.
type task struct {
	family   *catalogue.Family
	columns  []batch.Column
	interval time.Duration
	read     reading
}

// Metrics count what is read.
type Metrics struct {
	rows, errors, skipped *prometheus.CounterVec
}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	counter := func(name, help string) *prometheus.CounterVec {
		return promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
			Name: "pganalytics_collector_host_" + name, Help: help,
		}, []string{"family"})
	}
	return &Metrics{
		rows:    counter("rows_total", "Rows about the host read to be sent."),
		errors:  counter("errors_total", "Readings of the host that failed."),
		skipped: counter("skipped_samples_total", "Samples of the host not taken because the spool fills up."),
	}
}

// New makes the reader. What it reads goes to out.
func New(cfg Config, cat *catalogue.Catalogue, log *slog.Logger, m *Metrics, out chan<- []batch.Section) *Host {
	h := &Host{cfg: cfg, log: log.With("server", cfg.Name), metrics: m, out: out}
	readings := map[string]reading{
		"host_cpu": (&cpuReader{}).read, "host_disk": readDisks, "host_filesystem": readFilesystems,
		"host_load": readLoad, "host_memory": readMemory,
	}
	for _, name := range Families() {
		family, known := cat.Family(name)
		if interval := cfg.Intervals[name]; known && interval > 0 {
			h.tasks = append(h.tasks, task{family, batch.ColumnsOf(family), interval, readings[name]})
		}
	}
	return h
}

// Run reads until ctx ends. Whoever takes the sections must do so until Run
// has returned.
func (h *Host) Run(ctx context.Context) error {
	var g errgroup.Group
	for _, t := range h.tasks {
		g.Go(func() error {
			h.keep(ctx, t)
			return nil
		})
	}
	return g.Wait()
}

// keep reads one family at its times.
func (h *Host) keep(ctx context.Context, t task) {
	timer := time.NewTimer(spread(t.family.Name, t.interval))
	defer timer.Stop()
	failed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		timer.Reset(t.interval)
		if h.cfg.UpTo != nil && t.family.Preset > h.cfg.UpTo() {
			h.metrics.skipped.WithLabelValues(t.family.Name).Inc()
			continue
		}
		section, err := h.section(ctx, t)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			h.metrics.errors.WithLabelValues(t.family.Name).Inc()
			if !failed {
				h.log.Warn("host family cannot be read", "family", t.family.Name, "err", err)
			}
		} else if failed {
			h.log.Info("host family is read again", "family", t.family.Name)
		}
		failed = err != nil
		if section.Rows > 0 {
			h.metrics.rows.WithLabelValues(t.family.Name).Add(float64(section.Rows))
			h.out <- []batch.Section{section}
		}
	}
}

// Try reads every family once and returns what each gave, in the order of
// their names: for a check before anything is configured.
func (h *Host) Try(ctx context.Context) []Trial {
	trials := make([]Trial, len(h.tasks))
	for i, t := range h.tasks {
		began := time.Now()
		s, err := h.section(ctx, t)
		trials[i] = Trial{Family: t.family.Name, Interval: t.interval, Rows: s.Rows, Took: time.Since(began), Err: err}
	}
	return trials
}

// Trial is what reading a family once gave.
type Trial struct {
	Family   string
	Interval time.Duration
	Rows     int // 0 for host_cpu, which needs two readings
	Took     time.Duration
	Err      error
}

// section reads a family. What could be read is returned beside an error.
func (h *Host) section(ctx context.Context, t task) (batch.Section, error) {
	at := time.Now().UTC().Truncate(time.Microsecond)
	rows, err := t.read(ctx)
	s := batch.Section{
		Family: t.family.Name, Server: h.cfg.Name, ServerID: batch.ServerID(h.cfg.CollectorID, h.cfg.Name),
		Columns: t.columns, Rows: len(rows), MinTime: at, MaxTime: at,
	}
	for _, fields := range rows {
		s.Tuples = append(batch.AppendTuple(s.Tuples, batch.LeadFields+len(t.columns), at, s.ServerID), fields...)
	}
	if err != nil {
		return s, fmt.Errorf("read %s: %w", t.family.Name, err)
	}
	return s, nil
}

// maxSpread bounds how long after the start a family is first read.
const maxSpread = 10 * time.Second

// spread keeps the families from being read at the same moment.
func spread(family string, interval time.Duration) time.Duration {
	sum := fnv.New64a()
	_, _ = sum.Write([]byte(family))
	return time.Duration(sum.Sum64() % uint64(min(interval, maxSpread)))
}

// errNothing means that the system gave nothing where there must be something.
var errNothing = errors.New("the system tells nothing")
