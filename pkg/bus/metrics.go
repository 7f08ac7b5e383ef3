package bus

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// result is how a publish ended: the closed set of a metric's label.
type result string

const (
	resultStored       result = "stored"
	resultDuplicate    result = "duplicate"
	resultFull         result = "full"
	resultInProcess    result = "in_process"
	resultRefused      result = "refused"
	resultTooLarge     result = "too_large"
	resultNoStream     result = "no_stream"
	resultUnknown      result = "unknown"
	resultDisconnected result = "disconnected"
)

type metrics struct {
	connected  prometheus.Gauge
	reconnects prometheus.Counter

	publish *prometheus.HistogramVec // by result

	fetched      prometheus.Counter
	fetchedBytes prometheus.Counter
	redelivered  prometheus.Counter
	reread       prometheus.Counter
	acks         *prometheus.CounterVec // by result
	buried       *prometheus.CounterVec // by result

	quarantined        prometheus.Gauge
	trims              *prometheus.CounterVec // by result
	purged             *prometheus.CounterVec // by reason
	aboveHighWater     prometheus.Gauge
	heldAboveHighWater prometheus.Gauge

	// As of the trimmer's last round.
	streamBytes        prometheus.Gauge
	replayWindow       prometheus.Gauge
	unstored           prometheus.Gauge
	ackPending         prometheus.Gauge
	redeliveredPending prometheus.Gauge
	holds              prometheus.Gauge
	holdFrom           prometheus.Gauge

	bucketConfirmed *prometheus.GaugeVec   // by bucket
	bucketRestarts  *prometheus.CounterVec // by bucket
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	name := func(s string) string { return "pganalytics_bus_" + s }
	counter := func(s, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: name(s), Help: help})
	}
	counters := func(s, help string, labels ...string) *prometheus.CounterVec {
		return f.NewCounterVec(prometheus.CounterOpts{Name: name(s), Help: help}, labels)
	}
	gauge := func(s, help string) prometheus.Gauge {
		return f.NewGauge(prometheus.GaugeOpts{Name: name(s), Help: help})
	}
	return &metrics{
		connected:  gauge("connected", "1 while the connection to NATS is up."),
		reconnects: counter("reconnects_total", "Connections restored after a loss."),
		publish: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: name("publish_seconds"),
			Help: "Time from publish to the stream's answer.",
			// A synced write takes 0.1 to 10 ms on the disks in use; the
			// publish timeout ends the range.
			Buckets: []float64{.00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5},
		}, []string{"result"}),
		fetched:            counter("fetched_messages_total", "Messages handed to the ingester."),
		fetchedBytes:       counter("fetched_bytes_total", "Payload bytes of the messages handed to the ingester."),
		redelivered:        counter("redelivered_messages_total", "Of the messages fetched, those handed out before."),
		reread:             counter("reread_messages_total", "Messages read again, beside the consumer."),
		acks:               counters("acks_total", "Acknowledgements sent, by result.", "result"),
		buried:             counters("buried_total", "Dead letters written, by result.", "result"),
		quarantined:        gauge("quarantined_collectors", "Collectors whose batches are refused because of their dead letters."),
		trims:              counters("trims_total", "Rounds of the trimmer, by result.", "result"),
		purged:             counters("purged_sequences_total", "Stored messages purged from the stream, by reason.", "reason"),
		aboveHighWater:     gauge("stream_above_high_water", "1 while the stream of batches is above its high water: the replay window shrinks."),
		heldAboveHighWater: gauge("stream_held_above_high_water", "1 while only a hold keeps the stream of batches above its high water: it fills up until the hold ends."),
		streamBytes:        gauge("stream_bytes", "Bytes on the stream of batches at the trimmer's last round."),
		replayWindow:       gauge("replay_window_seconds", "Age of the oldest batch on the stream: how far back a replay can go."),
		unstored:           gauge("oldest_unstored_seconds", "Age of the oldest batch on the stream that is not known to be stored, 0 if all are."),
		ackPending:         gauge("ack_pending_messages", "Batches that ingesters have and have not acknowledged."),
		redeliveredPending: gauge("redelivered_pending_messages", "Of those, the ones handed out more than once."),
		holds:              gauge("holds", "Holds on the stream of batches."),
		holdFrom:           gauge("hold_from_sequence", "Least sequence of the stream that a hold keeps; 0 without a hold, or if one keeps everything."),
		bucketConfirmed:    f.NewGaugeVec(prometheus.GaugeOpts{Name: name("bucket_confirmed_timestamp_seconds"), Help: "When the follower last confirmed that it is up to date, Unix time."}, []string{"bucket"}),
		bucketRestarts:     counters("bucket_restarts_total", "Times a follower had to read its bucket from the start again.", "bucket"),
	}
}
