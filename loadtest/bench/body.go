package main

import (
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/klauspost/compress/zstd"

	"pganalytics/pkg/batch/native"
)

// bodies returns the bodies of all pushes as our collector has them when it
// sends them: made and compressed before, for it does that while it collects.
func (sh shape) bodies(collector uuid.UUID, loads []payload, base time.Time) ([][]byte, error) {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	all := make([][]byte, len(loads))
	for i, p := range loads {
		b, err := sh.batch(collector, p, base.Add(p.after))
		if err != nil {
			return nil, err
		}
		push := native.Push{CollectorID: collector, Hostname: "bench", Version: "bench", BatchID: b.ID, Sections: b.Sections}
		all[i] = z.EncodeAll(push.Append(nil), nil)
	}
	return all, z.Close()
}

// pushBody appends one push in JSON of a batch whose rows are of the time at.
func pushBody(buf []byte, collector uuid.UUID, sh shape, p payload, at time.Time) ([]byte, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return buf, err
	}
	const rfc3339 = "2006-01-02T15:04:05.000000Z"
	buf = append(append(buf, `{"collector_id":"`...), collector.String()...)
	buf = append(buf, `","hostname":"bench","version":"bench","timestamp":"`...)
	buf = time.Now().UTC().AppendFormat(buf, rfc3339)
	buf = append(append(buf, `","batch_id":"`...), id.String()...)
	buf = append(append(buf, `","metrics_count":1,"metrics":[{"type":"`...), sh.family...)
	buf = append(append(buf, `","server":"`...), p.server...)
	buf = append(buf, `","timestamp":"`...)
	buf = at.UTC().AppendFormat(buf, rfc3339)
	buf = append(buf, `","columns":["series"`...)
	for i := range sh.values {
		buf = strconv.AppendInt(append(buf, `,"v`...), int64(i), 10)
		buf = append(buf, '"')
	}
	buf = append(append(buf, `],"rows":`...), p.json...)
	return append(buf, "}]}"...), nil
}
