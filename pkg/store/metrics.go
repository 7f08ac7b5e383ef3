package store

import (
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
)

type metrics struct {
	batches   *prometheus.CounterVec
	rows      prometheus.Counter
	loads     *prometheus.HistogramVec
	probes    *prometheus.CounterVec
	frozen    prometheus.Counter
	rewinds   *prometheus.CounterVec
	rounds    *prometheus.CounterVec
	chunks    prometheus.Counter
	pruned    prometheus.Counter
	forgotten prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, pool *pgxpool.Pool) *metrics {
	f := promauto.With(reg)
	gauge := func(name, help string, value func(*pgxpool.Stat) int32) {
		f.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(value(pool.Stat())) })
	}
	gauge("pganalytics_store_sessions", "Open database sessions.", (*pgxpool.Stat).TotalConns)
	gauge("pganalytics_store_sessions_in_use", "Database sessions in use.", (*pgxpool.Stat).AcquiredConns)
	gauge("pganalytics_store_sessions_max", "Database sessions that may be open at once.", (*pgxpool.Stat).MaxConns)
	f.NewCounterFunc(prometheus.CounterOpts{
		Name: "pganalytics_store_session_waits_total", Help: "Times that a database session was waited for because none was idle.",
	}, func() float64 { return float64(pool.Stat().EmptyAcquireCount()) })
	return &metrics{
		batches: f.NewCounterVec(prometheus.CounterOpts{
			Name: "pganalytics_store_batches_total", Help: "Batches by the outcome of a load that committed.",
		}, []string{"outcome"}),
		rows: f.NewCounter(prometheus.CounterOpts{
			Name: "pganalytics_store_rows_total", Help: "Rows stored.",
		}),
		loads: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pganalytics_store_load_duration_seconds", Help: "Duration of loads by result: ok, or the class of the failure.",
			// From a single small batch on a fast disk to the statement timeout.
			Buckets: []float64{.002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"result"}),
		probes: f.NewCounterVec(prometheus.CounterOpts{
			Name: "pganalytics_store_probes_total", Help: "Probes by result: ok, or the class of the failure.",
		}, []string{"result"}),
		frozen: f.NewCounter(prometheus.CounterOpts{
			Name: "pganalytics_store_frozen_loaders_ended_total", Help: "Sessions of frozen loaders that were ended because they held batches which others were to store.",
		}),
		rewinds: f.NewCounterVec(prometheus.CounterOpts{
			Name: "pganalytics_store_rewinds_total", Help: "Times that the database lacked what was committed, by result: taken if what it lacks is taken care of, refused if it was not loaded into.",
		}, []string{"result"}),
		rounds: f.NewCounterVec(prometheus.CounterOpts{
			Name: "pganalytics_store_maintenance_total", Help: "Rounds of maintenance by result: ok, skipped while another process is at it, or the class of the first failure.",
		}, []string{"result"}),
		chunks: f.NewCounter(prometheus.CounterOpts{
			Name: "pganalytics_store_dropped_chunks_total", Help: "Chunks of metric tables dropped after their retention.",
		}),
		pruned: f.NewCounter(prometheus.CounterOpts{
			Name: "pganalytics_store_pruned_ledger_chunks_total", Help: "Chunks of the ledger dropped.",
		}),
		forgotten: f.NewCounter(prometheus.CounterOpts{
			Name: "pganalytics_store_pruned_dimension_rows_total", Help: "Dimension rows deleted because nobody reported them for their retention.",
		}),
	}
}

func (m *metrics) loaded(took time.Duration, items []batch.Item, outcomes []batch.Outcome, err error) {
	m.loads.WithLabelValues(result(err)).Observe(took.Seconds())
	if err != nil {
		return
	}
	for i, o := range outcomes {
		m.batches.WithLabelValues(o.String()).Inc()
		if o == batch.Stored {
			m.rows.Add(float64(items[i].Rows()))
		}
	}
}

func (m *metrics) probed(err error) { m.probes.WithLabelValues(result(err)).Inc() }

func (m *metrics) rewound(err error) {
	if err != nil {
		m.rewinds.WithLabelValues("refused").Inc()
		return
	}
	m.rewinds.WithLabelValues("taken").Inc()
}

func result(err error) string {
	if err == nil {
		return "ok"
	}
	return fault.ClassOf(err).String()
}

func (m *metrics) maintained(done Maintenance, err error) {
	switch {
	case done.Skipped:
		m.rounds.WithLabelValues("skipped").Inc()
	default:
		m.rounds.WithLabelValues(result(err)).Inc()
	}
	for _, n := range done.Chunks {
		m.chunks.Add(float64(n))
	}
	for _, n := range done.DimensionRows {
		m.forgotten.Add(float64(n))
	}
	m.pruned.Add(float64(done.LedgerChunks))
}
