package jsonpush_test

import (
	"bytes"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"pganalytics/pkg/batch/jsonpush"
	"pganalytics/pkg/batch/push"
)

// BenchmarkDecode reports the CPU time that one row costs from body to sealed batch.
func BenchmarkDecode(b *testing.B) {
	cat := families(b)
	base := now.Add(-time.Minute).UTC()
	for name, bench := range map[string]struct {
		rows int
		body string
	}{
		"narrow":         {1000, body([]string{rowsOf("narrow", []string{"v"}, 1000, false, base)})},
		"narrow_with_id": {1000, body([]string{rowsOf("narrow", []string{"v"}, 1000, false, base)}, batchID(now))},
		"few":            {10, body([]string{rowsOf("wide", wideColumns()[:8], 10, false, base)}, batchID(now))},
		"narrow_timed":   {1000, body([]string{rowsOf("narrow", []string{"v"}, 1000, true, base)}, batchID(now))},
		"wide":           {250, body([]string{rowsOf("wide", wideColumns(), 250, false, base)})},
		"wide_with_id":   {250, body([]string{rowsOf("wide", wideColumns(), 250, false, base)}, batchID(now))},
		"wide_objects":   {250, body([]string{objectsOf("wide", wideColumns(), 250)})},
	} {
		b.Run(name, func(b *testing.B) {
			data := []byte(bench.body)
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			began := cpuTime(b)
			for b.Loop() {
				if _, _, err := jsonpush.Decode(bytes.NewReader(data), collector, cat, push.DefaultLimits(), now); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(cpuTime(b)-began)/float64(b.N)/float64(bench.rows), "cpu-ns/row")
		})
	}
}

// cpuTime returns the CPU time that this process has used, which other
// processes disturb less than the time that passed.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func rowsOf(family string, columns []string, rows int, timed bool, base time.Time) string {
	var b strings.Builder
	if timed {
		columns = append([]string{"time"}, columns...)
	}
	fmt.Fprintf(&b, `{"type": %q, "columns": %s, "rows": [`, family, encode(columns))
	for i := range rows {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('[')
		for j := range columns {
			if j > 0 {
				b.WriteByte(',')
			}
			if timed && j == 0 {
				fmt.Fprintf(&b, "%q", base.Add(time.Duration(i)*time.Millisecond).Format(time.RFC3339Nano))
			} else {
				fmt.Fprintf(&b, "%d", 1_000_000+i*7919+j*104729)
			}
		}
		b.WriteByte(']')
	}
	b.WriteString("]}")
	return b.String()
}

func objectsOf(family string, columns []string, rows int) string {
	list := make([]string, rows)
	for i := range list {
		values := make([]string, len(columns))
		for j, c := range columns {
			values[j] = fmt.Sprintf("%q:%d", c, 1_000_000+i*7919+j*104729)
		}
		list[i] = "{" + strings.Join(values, ",") + "}"
	}
	return fmt.Sprintf(`{"type": %q, "rows": [%s]}`, family, strings.Join(list, ","))
}
