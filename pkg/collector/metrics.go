package collector

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	batches  prometheus.Counter
	paused   prometheus.Gauge
	lostRows prometheus.Counter
	heldBack prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	return &metrics{
		batches: f.NewCounter(prometheus.CounterOpts{
			Name: "pganalytics_collector_batches_total", Help: "Batches that the spool has taken.",
		}),
		paused: f.NewGauge(prometheus.GaugeOpts{
			Name: "pganalytics_collector_paused", Help: "1 while nothing is collected because the spool takes nothing.",
		}),
		lostRows: f.NewCounter(prometheus.CounterOpts{
			Name: "pganalytics_collector_lost_rows_total",
			Help: "Rows collected and lost because the collector was stopped while the spool took nothing.",
		}),
		heldBack: f.NewGauge(prometheus.GaugeOpts{
			Name: "pganalytics_collector_held_back_presets",
			Help: "Presets whose own families are not read because the spool fills: 1 is exhaustive, 2 also standard.",
		}),
	}
}
