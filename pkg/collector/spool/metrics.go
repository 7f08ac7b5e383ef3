package spool

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	bytes       prometheus.Gauge
	batches     prometheus.Gauge
	keptBytes   prometheus.Gauge
	deadBytes   prometheus.Gauge
	full        prometheus.Counter
	squeezed    prometheus.Counter
	failed      prometheus.Counter
	cutBytes    prometheus.Counter
	damaged     prometheus.Counter
	epochs      prometheus.Counter
	deadLetters prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, maxBytes int64) *metrics {
	f := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: "pganalytics_collector_spool_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return f.NewGauge(prometheus.GaugeOpts{Name: "pganalytics_collector_spool_" + name, Help: help})
	}
	gauge("max_bytes", "Bytes that unsent batches and dead letters may take.").Set(float64(maxBytes))
	return &metrics{
		bytes:       gauge("bytes", "Bytes of batches not yet sent."),
		batches:     gauge("batches", "Batches not yet sent."),
		keptBytes:   gauge("kept_bytes", "Bytes of batches that were answered and are kept to be sent again on request."),
		deadBytes:   gauge("dead_letter_bytes", "Bytes of dead letters."),
		full:        counter("full_total", "Appends refused because the spool was full."),
		squeezed:    counter("kept_dropped_total", "Kept segments that went early because the disk was full."),
		failed:      counter("append_errors_total", "Appends that the disk failed."),
		cutBytes:    counter("damaged_bytes_total", "Bytes that were not readable and were cut."),
		damaged:     counter("damaged_records_total", "Records found unreadable when their turn to be sent came."),
		epochs:      counter("epochs_total", "Epochs begun."),
		deadLetters: counter("dead_letters_total", "Batches laid aside because the gateway refused them, or items of them, for good."),
	}
}
