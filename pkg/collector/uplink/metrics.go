package uplink

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	pushes            *prometheus.CounterVec
	pushSeconds       *prometheus.HistogramVec
	rows              prometheus.Counter
	rejected          prometheus.Counter
	resent            *prometheus.CounterVec
	renewals          *prometheus.CounterVec
	certificateExpiry prometheus.Gauge
	holding           prometheus.Gauge
	configs           *prometheus.CounterVec
	configVersion     prometheus.Gauge
	resends           *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	m := &metrics{
		pushes: f.NewCounterVec(prometheus.CounterOpts{
			Name: "pganalytics_collector_pushes_total",
			Help: "Attempts to push a batch, by result: accepted, duplicate, refused, unauthenticated, forbidden, throttled, clock_skew, unavailable, unexpected, network.",
		}, []string{"result"}),
		pushSeconds: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pganalytics_collector_push_seconds",
			Help: "Time that an attempt to push took.",
			// From a disk's fsync to the client's own timeout.
			Buckets: []float64{.002, .005, .01, .025, .05, .1, .25, 1, 5, 30},
		}, []string{"outcome"}),
		rows: f.NewCounter(prometheus.CounterOpts{
			Name: "pganalytics_collector_accepted_rows_total", Help: "Rows that the gateway accepted.",
		}),
		rejected: f.NewCounter(prometheus.CounterOpts{
			Name: "pganalytics_collector_rejected_items_total", Help: "Items of accepted batches that the gateway did not accept.",
		}),
		resent: f.NewCounterVec(prometheus.CounterOpts{
			Name: "pganalytics_collector_resent_batches_total",
			Help: "Batches and dead letters that were sent again because somebody asked, by result: accepted, duplicate, refused.",
		}, []string{"result"}),
		renewals: f.NewCounterVec(prometheus.CounterOpts{
			Name: "pganalytics_collector_renewals_total", Help: "Attempts to renew the certificate.",
		}, []string{"outcome"}),
		certificateExpiry: f.NewGauge(prometheus.GaugeOpts{
			Name: "pganalytics_collector_certificate_expiry_timestamp_seconds", Help: "When the certificate ends.",
		}),
		holding: f.NewGauge(prometheus.GaugeOpts{
			Name: "pganalytics_collector_holding", Help: "1 while batches wait because the last push failed.",
		}),
		configs: f.NewCounterVec(prometheus.CounterOpts{
			Name: "pganalytics_collector_configs_total",
			Help: "Looks at the pulled configuration, by result: applied, unchanged, none, stale, refused, failed.",
		}, []string{"result"}),
		configVersion: f.NewGauge(prometheus.GaugeOpts{
			Name: "pganalytics_collector_config_version", Help: "Version of the pulled configuration that is in force, 0 for none.",
		}),
		resends: f.NewCounterVec(prometheus.CounterOpts{
			Name: "pganalytics_collector_resends_total", Help: "Requests to send batches again.",
		}, []string{"outcome"}),
	}
	for _, result := range []result{accepted, duplicate, refused, unauthenticated, forbidden, throttled, clockSkew, unavailable, unexpected, network} {
		m.pushes.WithLabelValues(string(result))
	}
	for _, result := range []look{applied, unchanged, none, stale, spoilt, failed} {
		m.configs.WithLabelValues(string(result))
	}
	for _, result := range []result{accepted, duplicate, refused} {
		m.resent.WithLabelValues(string(result))
	}
	return m
}

func (m *metrics) push(r result, took time.Duration) {
	m.pushes.WithLabelValues(string(r)).Inc()
	outcome := "ok"
	if r != accepted && r != duplicate {
		outcome = "error"
	}
	m.pushSeconds.WithLabelValues(outcome).Observe(took.Seconds())
}

func (m *metrics) renewal(err error) { m.renewals.WithLabelValues(outcome(err)).Inc() }

func (m *metrics) resend(err error) { m.resends.WithLabelValues(outcome(err)).Inc() }

func outcome(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}
