package native

import (
	"bytes"
	"math/rand/v2"
	"syscall"
	"testing"
	"testing/fstest"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/catalogue"
)

// NarrowFamily is what narrow rows are of, here and in the tests from outside.
const NarrowFamily = `
name: narrow
description: One value.
scope: instance
interval: 60s
retention: 2d
chunk: 1d
key: [series]
columns:
  - {name: series, type: integer, kind: label, help: A key.}
  - {name: v, type: double precision, kind: gauge, help: A value.}
queries:
  - {min_version: 13, sql: "select 1"}
`

// BenchmarkWalk reports what one narrow row costs to check.
func BenchmarkWalk(b *testing.B) {
	cat, err := catalogue.Load(fstest.MapFS{"narrow.yaml": {Data: []byte(NarrowFamily)}})
	require.NoError(b, err)
	family, _ := cat.Family("narrow")
	lim, now := push.DefaultLimits(), time.Now()
	s := section{decoder: &decoder{limits: &lim}, sentAt: now, server: push.Server{ID: uuid.New()}, columns: push.ColumnsOf(family)}
	for _, c := range family.Columns {
		require.Nil(b, s.columns.Add([]byte(c.Name), &lim))
	}
	const rows = 1000
	for i := range rows {
		s.tuples = batch.AppendInt32(batch.AppendTuple(s.tuples, 4, now, s.server.ID), int32(i))
		s.tuples = batch.AppendFloat64(s.tuples, float64(i))
	}
	b.SetBytes(int64(len(s.tuples)))
	b.ReportAllocs()
	began := CPUTime(b)
	for b.Loop() {
		s.found = found{}
		if s.walk() != nil {
			b.Fatal("a good row is refused")
		}
	}
	b.ReportMetric(float64(CPUTime(b)-began)/float64(b.N)/rows, "cpu-ns/row")
}

// CPUTime returns the CPU time that this process has used, which other
// processes disturb less than the time that passed.
func CPUTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestPlainTextIsASCIIWithoutNUL(t *testing.T) {
	t.Parallel()
	for range 100_000 {
		v := make([]byte, rand.IntN(20))
		for i := range v {
			v[i] = byte(rand.IntN(128))
			if rand.IntN(40) == 0 {
				v[i] = byte(rand.IntN(256))
			}
		}
		want := bytes.IndexByte(v, 0) < 0
		for _, c := range v {
			want = want && c < utf8.RuneSelf
		}
		require.Equal(t, want, plain(v), "%q", v)
	}
}
