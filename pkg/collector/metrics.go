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
	servers  prometheus.Gauge
	configOK prometheus.Gauge
	reloads  *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	m := &metrics{
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
		servers: f.NewGauge(prometheus.GaugeOpts{
			Name: "pganalytics_collector_servers", Help: "Servers that are configured.",
		}),
		configOK: f.NewGauge(prometheus.GaugeOpts{
			Name: "pganalytics_collector_config_ok", Help: "0 while the configuration that was read last is faulty and a former one is in force.",
		}),
		reloads: f.NewCounterVec(prometheus.CounterOpts{
			Name: "pganalytics_collector_config_reloads_total", Help: "Readings of the configuration after the start.",
		}, []string{"outcome"}),
	}
	m.configOK.Set(1)
	for _, outcome := range []string{"ok", "refused"} {
		m.reloads.WithLabelValues(outcome)
	}
	return m
}

// reload notes that the configuration was read again.
func (m *metrics) reload(err error) {
	if err != nil {
		m.configOK.Set(0)
		m.reloads.WithLabelValues("refused").Inc()
		return
	}
	m.configOK.Set(1)
	m.reloads.WithLabelValues("ok").Inc()
}
