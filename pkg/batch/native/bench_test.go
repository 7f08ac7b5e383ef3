package native_test

import (
	"bytes"
	"fmt"
	"strconv"
	"testing"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/jsonpush"
	"pganalytics/pkg/batch/native"
	"pganalytics/pkg/batch/push"
)

// BenchmarkDecode reports the CPU time that one row costs from body to sealed
// batch, the same rows in both forms, and of it what is not sealing.
func BenchmarkDecode(b *testing.B) {
	cat := families(b)
	const rows = 1000
	body := sample(narrowRows(b, rows)).Append(nil)
	texts := make([]func([]byte) []byte, rows)
	for i := range texts {
		texts[i] = everyType("", nil)
	}
	every := sample(section(b, "all_types", "db1", everyName, texts...)).Append(nil)
	json := fmt.Appendf(nil, `{"collector_id":%q,"hostname":"db1","timestamp":"2026-03-04T05:06:00Z","version":"1.0","batch_id":%q,"metrics_count":1,`+
		`"metrics":[{"type":"narrow","server":"db1","columns":["series","v"],"rows":[[0,0]`, collector, v7(now, 1))
	for i := 1; i < rows; i++ {
		json = append(strconv.AppendFloat(append(strconv.AppendInt(append(json, ",["...), int64(i), 10), ','), float64(i)/8, 'f', -1, 64), ']')
	}
	json = append(json, "]}]}"...)
	for _, bench := range []struct {
		name   string
		body   []byte
		decode func(body []byte) (*batch.Batch, error)
	}{
		{"native_narrow", body, func(body []byte) (*batch.Batch, error) {
			decoded, _, err := native.Decode(bytes.NewReader(body), collector, cat, push.DefaultLimits(), now)
			return decoded, err
		}},
		{"json_narrow", json, func(body []byte) (*batch.Batch, error) {
			decoded, _, err := jsonpush.Decode(bytes.NewReader(body), collector, cat, push.DefaultLimits(), now)
			return decoded, err
		}},
		{"native_every_type", every, func(body []byte) (*batch.Batch, error) {
			decoded, _, err := native.Decode(bytes.NewReader(body), collector, cat, push.DefaultLimits(), now)
			return decoded, err
		}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.SetBytes(int64(len(bench.body)))
			b.ReportAllocs()
			var decoded *batch.Batch
			began := native.CPUTime(b)
			for b.Loop() {
				var err error
				if decoded, err = bench.decode(bench.body); err != nil {
					b.Fatal(err)
				}
			}
			all := float64(native.CPUTime(b)-began) / float64(b.N) / rows
			began = native.CPUTime(b)
			for range b.N {
				decoded.Seal()
			}
			seal := float64(native.CPUTime(b)-began) / float64(b.N) / rows
			b.ReportMetric(all, "cpu-ns/row")
			b.ReportMetric(all-seal, "unsealed-ns/row")
		})
	}
}
