package pgread

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics are shared by the readers of all servers. The labels server and
// family come from the configuration and the catalogue.
type Metrics struct {
	rows          *prometheus.CounterVec
	unsent        *prometheus.CounterVec
	queries       *prometheus.HistogramVec
	queryErrors   *prometheus.CounterVec
	connectErrors *prometheus.CounterVec
	up            *prometheus.GaugeVec
	fixed         *prometheus.CounterVec
	cut           *prometheus.CounterVec
	unread        *prometheus.CounterVec
}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	f := promauto.With(reg)
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return f.NewCounterVec(prometheus.CounterOpts{Name: "pganalytics_collector_" + name, Help: help}, labels)
	}
	return &Metrics{
		rows:   counter("rows_total", "Rows read to be sent.", "server", "family"),
		unsent: counter("unchanged_rows_total", "Rows read and not sent because nothing in them changed.", "server", "family"),
		queries: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pganalytics_collector_query_seconds",
			Help: "Time that one query of a family took.",
			// From a view in shared memory to the statement timeout.
			Buckets: []float64{.001, .005, .02, .1, .5, 1, 2, 5, 10},
		}, []string{"outcome"}),
		queryErrors:   counter("query_errors_total", "Queries that failed.", "server", "family"),
		connectErrors: counter("connect_errors_total", "Connections that failed.", "server"),
		up: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "pganalytics_collector_server_up", Help: "1 while the server is connected.",
		}, []string{"server"}),
		fixed: counter("fixed_total", "What could not be sent as it was: numbers and times sent as null, texts repaired, rows dropped that have no key or are too long.",
			"server", "family", "what"),
		cut:    counter("cut_rows_total", "Rows beyond the limits of their family.", "server", "family"),
		unread: counter("unread_total", "Times that a family was due and was not read.", "server", "family", "reason"),
	}
}

// Why a family that was due was not read.
const (
	late      = "late"        // the reading before, or the spool, took too long
	pressure  = "pressure"    // the spool fills
	backedOff = "backed_off"  // it failed or was slow
	spent     = "timed_out"   // in another database, just before
	missing   = "missing"     // what it needs is not there
	notThere  = "unreachable" // the server or the database
)

func (s *Server) unread(t *task, reason string, times int) {
	if times > 0 {
		s.metrics.unread.WithLabelValues(s.cfg.Name, t.family.Name, reason).Add(float64(times))
	}
}

func (s *Server) unreached(tasks []*task) {
	for _, t := range tasks {
		s.unread(t, notThere, 1)
	}
}

// Forget ends the series of a server that is no longer configured.
func (m *Metrics) Forget(server string) {
	labels := prometheus.Labels{"server": server}
	for _, c := range []*prometheus.CounterVec{m.rows, m.unsent, m.queryErrors, m.connectErrors, m.fixed, m.cut, m.unread} {
		c.DeletePartialMatch(labels)
	}
	m.up.DeletePartialMatch(labels)
}

func (m *Metrics) query(start time.Time, err error) {
	outcome := "ok"
	if err != nil {
		outcome = "error"
	}
	m.queries.WithLabelValues(outcome).Observe(time.Since(start).Seconds())
}
