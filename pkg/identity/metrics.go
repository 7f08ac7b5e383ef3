package identity

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	refused *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, s *Snapshot) *metrics {
	f := promauto.With(reg)
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "pganalytics_identity_confirmed_timestamp_seconds",
		Help: "When the identity snapshot was last confirmed to be the bucket's newest; 0 before the first time.",
	}, func() float64 {
		s.mu.RLock()
		defer s.mu.RUnlock()
		if s.confirmed.IsZero() {
			return 0
		}
		return float64(s.confirmed.UnixMilli()) / 1000
	})
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "pganalytics_identity_collectors",
		Help: "Collectors in the identity snapshot that is served.",
	}, func() float64 {
		s.mu.RLock()
		defer s.mu.RUnlock()
		if s.live == nil {
			return 0
		}
		return float64(len(s.live.collectors))
	})
	m := &metrics{refused: f.NewCounterVec(prometheus.CounterOpts{
		Name: "pganalytics_identity_records_refused_total",
		Help: "Records of the identity bucket that were spoilt or, for kind key, lacked the root's signature.",
	}, []string{"kind"})}
	for _, kind := range []string{"meta", "key", "collector", "revocation", "user", "session", "apitoken"} {
		m.refused.WithLabelValues(kind) // present at zero, so that an alarm can be written on the increase
	}
	return m
}
