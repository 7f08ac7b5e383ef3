package collector

import (
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/collector/pgread"
	"pganalytics/pkg/collector/spool"
)

// sender is what every body says about who sends it.
type sender struct {
	collectorID uuid.UUID
	hostname    string
	version     string
	labels      []batch.Label // sorted by name
}

// appendBody appends the JSON form of a push, as the contract has it.
func (s *sender) appendBody(dst []byte, stamp spool.Stamp, at time.Time, items []pgread.Item) ([]byte, error) {
	w := writer{dst: dst}
	w.raw(`{"collector_id":"`).raw(s.collectorID.String())
	w.raw(`","hostname":`).quote(s.hostname)
	w.raw(`,"timestamp":"`).time(at)
	w.raw(`","version":`).quote(s.version)
	w.raw(`,"batch_id":"`).raw(stamp.BatchID.String())
	w.raw(`","epoch":"`).raw(stamp.Epoch.String())
	w.raw(`","sequence":`).number(stamp.Sequence)
	if stamp.Previous != (batch.Mark{}) {
		w.raw(`,"previous":{"epoch":"`).raw(stamp.Previous.Epoch.String())
		w.raw(`","sequence":`).number(stamp.Previous.Sequence).raw(`}`)
	}
	if len(stamp.Refused) > 0 {
		w.raw(`,"refused":[`)
		for i, n := range stamp.Refused {
			w.comma(i).number(n)
		}
		w.raw(`]`)
	}
	if len(s.labels) > 0 {
		w.raw(`,"labels":{`)
		for i, l := range s.labels {
			w.comma(i).quote(l.Name).raw(`:`).quote(l.Value)
		}
		w.raw(`}`)
	}
	w.raw(`,"metrics_count":`).number(uint64(len(items))).raw(`,"metrics":[`)
	for i := range items {
		w.comma(i).item(&items[i])
	}
	w.raw(`]}`)
	return w.dst, w.err
}

// writer appends JSON and keeps the first error.
type writer struct {
	dst []byte
	err error
}

func (w *writer) item(it *pgread.Item) *writer {
	w.raw(`{"type":`).quote(it.Family).raw(`,"server":`).quote(it.Server)
	w.raw(`,"timestamp":"`).time(it.At).raw(`","columns":[`)
	for i, c := range it.Columns {
		w.comma(i).quote(c)
	}
	w.raw(`],"rows":[`)
	for i, row := range it.Rows {
		w.comma(i)
		w.dst = append(w.dst, row...)
	}
	return w.raw(`]}`)
}

func (w *writer) raw(s string) *writer {
	w.dst = append(w.dst, s...)
	return w
}

func (w *writer) quote(s string) *writer {
	var err error
	if w.dst, err = jsontext.AppendQuote(w.dst, s); err != nil && w.err == nil {
		w.err = err
	}
	return w
}

func (w *writer) number(n uint64) *writer {
	w.dst = strconv.AppendUint(w.dst, n, 10)
	return w
}

func (w *writer) time(t time.Time) *writer {
	w.dst = t.UTC().AppendFormat(w.dst, pgread.TimeLayout)
	return w
}

func (w *writer) comma(i int) *writer {
	if i > 0 {
		w.dst = append(w.dst, ',')
	}
	return w
}
