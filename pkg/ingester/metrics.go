package ingester

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
)

type metrics struct {
	loads        *prometheus.HistogramVec
	batches      *prometheus.CounterVec
	rows         prometheus.Counter
	age          prometheus.Histogram
	letters      *prometheus.CounterVec
	aside        prometheus.Counter
	splits       prometheus.Counter
	paused       prometheus.Gauge
	probes       *prometheus.CounterVec
	fetchErrors  prometheus.Counter
	extendErrors prometheus.Counter
	ackErrors    prometheus.Counter
	buryErrors   prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: "pganalytics_ingester_" + name, Help: help})
	}
	vec := func(name, help, label string) *prometheus.CounterVec {
		return f.NewCounterVec(prometheus.CounterOpts{Name: "pganalytics_ingester_" + name, Help: help}, []string{label})
	}
	return &metrics{
		// A load of one small batch takes a few milliseconds, a full one some
		// hundred; beyond 60 s it has failed.
		loads: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pganalytics_ingester_load_seconds", Help: "Duration of loads by result.",
			Buckets: []float64{.002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60},
		}, []string{"result"}),
		batches: vec("batches_total", "Batches by what a committed load did with them.", "outcome"),
		rows:    counter("rows_stored_total", "Rows committed."),
		// The target is one second from the push to the row.
		age: f.NewHistogram(prometheus.HistogramOpts{
			Name: "pganalytics_ingester_age_seconds", Help: "Age of a batch when it was committed, from its arrival at the gateway.",
			Buckets: []float64{.05, .1, .25, .5, 1, 2.5, 5, 15, 60, 300, 3600},
		}),
		letters:      vec("dead_letters_total", "Batches laid into the dead letters by reason.", "reason"),
		aside:        counter("set_aside_total", "Batches left on the stream to be tried again."),
		splits:       counter("splits_total", "Loads divided to find the batch at fault."),
		paused:       f.NewGauge(prometheus.GaugeOpts{Name: "pganalytics_ingester_paused_loaders", Help: "Loaders that wait for the store."}),
		probes:       vec("probes_total", "Probes of the store by result.", "result"),
		fetchErrors:  counter("fetch_errors_total", "Failed fetches from the stream."),
		extendErrors: counter("extend_errors_total", "Messages whose wait could not be extended."),
		ackErrors:    counter("ack_errors_total", "Acknowledgements that failed after a commit; each costs a redelivery."),
		buryErrors:   counter("bury_errors_total", "Dead letters that were not taken; the batch stays on the stream."),
	}
}

func (m *metrics) load(start time.Time, err error) {
	result := "committed"
	if err != nil {
		result = fault.ClassOf(err).String()
	}
	m.loads.WithLabelValues(result).Observe(time.Since(start).Seconds())
}

func (m *metrics) outcome(msg *message, o batch.Outcome) {
	m.batches.WithLabelValues(o.String()).Inc()
	if o == batch.Stored {
		m.rows.Add(float64(msg.batch.Rows()))
		if msg.replayed {
			return
		}
		m.age.Observe(time.Since(msg.batch.ReceivedAt).Seconds())
	}
}

func (m *metrics) probe(err error) {
	result := "ok"
	if err != nil {
		result = "failed"
	}
	m.probes.WithLabelValues(result).Inc()
}

type recoveryMetrics struct {
	rewinds  prometheus.Counter
	replayed prometheus.Counter
	gap      prometheus.Gauge
}

func newRecoveryMetrics(reg prometheus.Registerer) *recoveryMetrics {
	f := promauto.With(reg)
	return &recoveryMetrics{
		rewinds: f.NewCounter(prometheus.CounterOpts{
			Name: "pganalytics_ingester_rewinds_total", Help: "Times that the database was found behind the stream.",
		}),
		replayed: f.NewCounter(prometheus.CounterOpts{
			Name: "pganalytics_ingester_replayed_batches_total", Help: "Batches read again to fill a gap, stored already or not.",
		}),
		gap: f.NewGauge(prometheus.GaugeOpts{
			Name: "pganalytics_ingester_gap_sequences", Help: "Sequences of the stream that the database may lack; above 0 a replay is under way or needed.",
		}),
	}
}

func (m *recoveryMetrics) held(gap Gap, held bool) {
	if !held {
		m.gap.Set(0)
		return
	}
	m.gap.Set(float64(gap.To) - float64(gap.From) + 1)
}
