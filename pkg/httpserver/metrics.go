package httpserver

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics counts the requests of all listeners of a process.
type Metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	inFlight *prometheus.GaugeVec
	panics   *prometheus.CounterVec
}

// NewMetrics registers the metrics. Call it once per registry and share the
// result between the listeners.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	factory := promauto.With(reg)
	return &Metrics{
		requests: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "pganalytics_httpserver_requests_total",
			Help: "Requests answered. status is the class of the status code, or client_gone when nobody was left to read it.",
		}, []string{"listener", "route", "method", "status"}),
		duration: factory.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pganalytics_httpserver_request_duration_seconds",
			Help: "Time from the end of the header to the end of the answer, failures included.",
			// A push is one fsync on the stream: 1 to 10 ms on a good disk, 100
			// on a bad one. A password hash takes 250 ms. 5 s and more is a
			// deadline at work.
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"listener", "route", "status"}),
		inFlight: factory.NewGaugeVec(prometheus.GaugeOpts{
			Name: "pganalytics_httpserver_requests_in_flight",
			Help: "Requests that are being answered.",
		}, []string{"listener"}),
		panics: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "pganalytics_httpserver_panics_total",
			Help: "Handlers that panicked.",
		}, []string{"listener"}),
	}
}

func (m *Metrics) answered(listener, pattern, method string, rec *record, took time.Duration) {
	status := strconv.Itoa(rec.status/100) + "xx"
	if rec.clientGone && rec.status >= 500 {
		status = "client_gone"
	}
	m.requests.WithLabelValues(listener, pattern, methodLabel(method), status).Inc()
	m.duration.WithLabelValues(listener, pattern, status).Observe(took.Seconds())
}

// methodLabel keeps what a stranger writes in the request line out of the
// labels.
func methodLabel(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
		http.MethodDelete, http.MethodOptions:
		return method
	default:
		return "other"
	}
}
