package gateway

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/push"
)

type metrics struct {
	batches  *prometheus.CounterVec
	rows     *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	rejected *prometheus.CounterVec
	decode   *prometheus.HistogramVec
	publish  *prometheus.HistogramVec
	configs  *prometheus.CounterVec
	reports  *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, b *budget) *metrics {
	factory := promauto.With(reg)
	factory.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "pganalytics_gateway_in_flight_bytes",
		Help: "Bytes that pushes have booked of max-in-flight-bytes.",
	}, func() float64 { return float64(b.used.Load()) })
	return &metrics{
		batches: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "pganalytics_gateway_batches_total",
			Help: "Pushes by result: accepted, duplicate, or the class of the error.",
		}, []string{"result"}),
		rows: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "pganalytics_gateway_rows_total",
			Help: "Rows in accepted batches by the form of the body, duplicates not counted.",
		}, []string{"form"}),
		bytes: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "pganalytics_gateway_received_bytes_total",
			Help: "Bytes of bodies as sent (wire) and inflated, refused ones included, and of accepted batches as tuples, by the body's form.",
		}, []string{"form", "stage"}),
		rejected: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "pganalytics_gateway_items_rejected_total",
			Help: "Refused items of a batch by the code in the answer, as far as the answer lists them; the rest as not_listed.",
		}, []string{"code"}),
		decode: factory.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pganalytics_gateway_decode_seconds",
			Help: "Time from the request's header to the decoded batch, the sender's network included, by the body's form.",
			// A batch of 1,000 rows takes 1 ms; the largest on a slow link, two minutes.
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5, 15, 60, 120},
		}, []string{"form", "outcome"}),
		publish: factory.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pganalytics_gateway_publish_seconds",
			Help: "Time until the stream confirmed a batch, or did not.",
			// One fsync is 1 to 10 ms on a good disk; 10 s is the default deadline.
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"outcome"}),
		configs: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "pganalytics_gateway_configs_total",
			Help: "Configurations asked for by result: sent, unchanged, or the class of the error.",
		}, []string{"result"}),
		reports: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "pganalytics_gateway_config_reports_total",
			Help: "What collectors said of their configuration, by whether it could be kept. What could not they say again.",
		}, []string{"outcome"}),
	}
}

// decoded counts a body that was read, whole or in part. The codes of refused
// items are a closed set: the constants of push and its forms.
func (m *metrics) decoded(in *intake, f form, report *push.Report, took time.Duration, err error) {
	m.decode.WithLabelValues(f.name, outcome(err)).Observe(took.Seconds())
	m.bytes.WithLabelValues(f.name, "wire").Add(float64(in.wire.read))
	m.bytes.WithLabelValues(f.name, "inflated").Add(float64(in.inflated))
	if report == nil {
		return
	}
	for _, r := range report.Rejected {
		m.rejected.WithLabelValues(r.Code).Inc()
	}
	if report.RejectedMore > 0 {
		m.rejected.WithLabelValues("not_listed").Add(float64(report.RejectedMore))
	}
}

func (m *metrics) published(took time.Duration, err error) {
	m.publish.WithLabelValues(outcome(err)).Observe(took.Seconds())
}

func (m *metrics) accepted(b *batch.Batch, f form, duplicate bool) {
	if duplicate {
		m.batches.WithLabelValues("duplicate").Inc()
		return
	}
	m.batches.WithLabelValues("accepted").Inc()
	m.rows.WithLabelValues(f.name).Add(float64(b.Rows()))
	m.bytes.WithLabelValues(f.name, "tuples").Add(float64(b.TupleBytes()))
}

func outcome(err error) string {
	if err != nil {
		return "failed"
	}
	return "ok"
}
