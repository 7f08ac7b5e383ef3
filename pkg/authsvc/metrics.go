package authsvc

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"pganalytics/pkg/fault"
)

// What became of a request. Locked stands out, for it is the alarm that a
// collector's key may have been copied.
const (
	resultDone    = "done"
	resultRefused = "refused" // the sender's fault
	resultFailed  = "failed"  // ours, or a neighbour's
	resultLocked  = "locked"
)

type metrics struct {
	enrolments      *prometheus.CounterVec
	renewals        *prometheus.CounterVec
	tokens          *prometheus.CounterVec
	logins          *prometheus.CounterVec
	refreshes       *prometheus.CounterVec
	reuses          prometheus.Counter
	publishFailures prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	counter := func(name, help string, results ...string) *prometheus.CounterVec {
		v := f.NewCounterVec(prometheus.CounterOpts{Name: "pganalytics_authsvc_" + name, Help: help}, []string{"result"})
		for _, r := range results {
			v.WithLabelValues(r) // present at zero, so that an alarm can be written on the increase
		}
		return v
	}
	return &metrics{
		enrolments: counter("enrolments_total", "Enrolments by result.", resultDone, resultRefused, resultFailed),
		renewals: counter("renewals_total", "Certificate renewals by result; locked means that a key may have been copied.",
			resultDone, resultRefused, resultFailed, resultLocked),
		tokens:    counter("collector_tokens_total", "Requests for collector access tokens by result.", resultDone, resultRefused, resultFailed),
		logins:    counter("logins_total", "Logins by result.", resultDone, resultRefused, resultFailed),
		refreshes: counter("refreshes_total", "Exchanges of refresh tokens by result.", resultDone, resultRefused, resultFailed),
		reuses: f.NewCounter(prometheus.CounterOpts{
			Name: "pganalytics_authsvc_refresh_reuses_total",
			Help: "Refresh tokens that were used twice; each means that one may have been copied, and ended its session.",
		}),
		publishFailures: f.NewCounter(prometheus.CounterOpts{
			Name: "pganalytics_authsvc_publish_failures_total",
			Help: "Records that could not be written to the identity bucket; each is tried again.",
		}),
	}
}

// outcome classes an error for the result label.
func outcome(err error) string {
	switch {
	case err == nil:
		return resultDone
	case fault.ClassOf(err).HTTPStatus() < 500:
		return resultRefused
	default:
		return resultFailed
	}
}
