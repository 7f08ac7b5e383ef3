package pgread

import (
	"encoding/binary"
	"math"
	"runtime"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
)

// fieldsOf describes a result with a family's columns.
func fieldsOf(f *catalogue.Family) (fields []pgconn.FieldDescription, places []int) {
	for i, c := range f.Columns {
		fields = append(fields, pgconn.FieldDescription{Name: c.Name, DataTypeOID: c.Type.OID()})
		places = append(places, i)
	}
	return fields, places
}

var at = time.Date(2024, 5, 6, 7, 8, 9, 1000, time.UTC)

// Whatever a server answers: what comes of it has nothing that a gateway
// refuses, and every row is there or counted.
func FuzzEncoder(f *testing.F) {
	f.Add([]byte("key"), []byte("te\xffxt\x00"), math.Float64bits(math.NaN()), uint32(0x7f800000), int64(math.MaxInt64))
	f.Add([]byte(nil), []byte("select 'pw'"), uint64(0), uint32(0), int64(math.MinInt64))
	f.Add(make([]byte, 2001), []byte(nil), uint64(1), uint32(1), int64(0))
	family, ok := load(f, fuzzed).Family("fuzzed")
	require.True(f, ok)
	fields, places := fieldsOf(family)
	f.Fuzz(func(t *testing.T, key, text []byte, double uint64, single uint32, us int64) {
		res := &result{}
		e, err := newEncoder(&question{family: family, places: places, at: at, server: collectorID}, fields, res)
		require.NoError(t, err)
		timestamp := binary.BigEndian.AppendUint64(nil, uint64(us))
		require.NoError(t, e.add([][]byte{key, text, text, binary.BigEndian.AppendUint64(nil, double), binary.BigEndian.AppendUint32(nil, single), timestamp, nil}))
		require.Equal(t, 1, len(res.ends)+res.fixed[keyless]+res.fixed[oversized])
		s := batch.Section{Rows: len(res.ends), Tuples: res.tuples, Columns: make([]batch.Column, len(places))}
		require.NoError(t, s.EachRow(func(_ int, values [][]byte) error {
			for i, v := range values[batch.LeadFields:] {
				if v != nil {
					require.Empty(t, batch.ValueFault(family.Columns[i].Type, v))
				}
			}
			require.NotNil(t, values[batch.LeadFields])
			require.LessOrEqual(t, len(values[batch.LeadFields]), maxKeyBytes)
			return nil
		}))
	})
}

const fuzzed = `
name: fuzzed
description: What values may be wrong with.
scope: instance
interval: 1s
retention: 30d
chunk: 1d
key: [k]
columns:
  - {name: k, type: text, help: x}
  - {name: t, type: text, kind: info, help: x}
  - {name: q, type: text, kind: info, help: x, query_text: true}
  - {name: f8, type: double precision, kind: gauge, help: x}
  - {name: f4, type: real, kind: gauge, help: x}
  - {name: ts, type: timestamptz, kind: info, help: x}
  - {name: n, type: uuid, kind: info, help: x}
queries:
  - {min_version: 13, sql: "select 1"}
`

func TestAResultThatIsNotItsFamilysIsTold(t *testing.T) {
	t.Parallel()
	f, _ := load(t, fuzzed).Family("fuzzed")
	right, places := fieldsOf(f)
	for name, change := range map[string]func([]pgconn.FieldDescription) []pgconn.FieldDescription{
		`column "x" is unknown`:                     func(f []pgconn.FieldDescription) []pgconn.FieldDescription { f[1].Name = "x"; return f },
		`column "k" stands twice`:                   func(f []pgconn.FieldDescription) []pgconn.FieldDescription { f[1].Name = "k"; return f },
		`column "f4" has type OID 701, real is 700`: func(f []pgconn.FieldDescription) []pgconn.FieldDescription { f[4].DataTypeOID = 701; return f },
		`no column "n"`:                             func(f []pgconn.FieldDescription) []pgconn.FieldDescription { return f[:6] },
		`column "rows_total" is unknown`: func(f []pgconn.FieldDescription) []pgconn.FieldDescription {
			return append(f, pgconn.FieldDescription{Name: catalogue.RowsTotal, DataTypeOID: 23})
		},
	} {
		_, err := newEncoder(&question{family: f, places: places, at: at, server: collectorID}, change(append([]pgconn.FieldDescription(nil), right...)), &result{})
		require.ErrorIs(t, err, errShape)
		require.ErrorContains(t, err, name)
	}
}

// Ten servers of 2,000 statements each, none of which was executed since the
// last sample: what is remembered of them leaves room in a process of 40 MiB.
func TestWhatIsRememberedOfStatementsIsSmall(t *testing.T) {
	cat, err := catalogue.Default()
	require.NoError(t, err)
	f, ok := cat.Family("pg_stat_statements")
	require.True(t, ok)
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	var filters []*filter
	for range 10 {
		keep := newFilter(f)
		for round := range 3 {
			_, _, err := keep.pass(statements(t, f, keep, 2000), at.Add(time.Duration(round)*time.Minute))
			require.NoError(t, err)
		}
		filters = append(filters, keep)
	}
	for len(scratch) > 0 {
		<-scratch // is shared by all
	}
	used := float64(heap()-before) / (1 << 20)
	t.Logf("%.1f MiB", used)
	require.Less(t, used, 5.0)
	runtime.KeepAlive(filters)
}

// statements makes a sample of statements with numbers that differ.
func statements(tb testing.TB, f *catalogue.Family, keep *filter, n int) *result {
	tb.Helper()
	fields, places := fieldsOf(f)
	res := &result{}
	e, err := newEncoder(&question{family: f, places: places, at: at, server: collectorID, known: keep.identify}, fields, res)
	require.NoError(tb, err)
	for row := range n {
		values := make([][]byte, len(f.Columns))
		for i, c := range f.Columns {
			number := uint64(row*7919+i*104729) * 2654435761 % 1e9
			switch {
			case c.Type == catalogue.Text:
				values[i] = []byte("app")
			case c.Type == catalogue.Boolean:
				values[i] = []byte{1}
			case i%3 > 0 && !c.NotNull: // blocks, jit and plans mostly are
				values[i] = make([]byte, 8)
			case c.Type == catalogue.DoublePrecision:
				values[i] = binary.BigEndian.AppendUint64(nil, math.Float64bits(float64(number)/1e6))
			default:
				values[i] = binary.BigEndian.AppendUint64(nil, number)
			}
		}
		require.NoError(tb, e.add(values))
	}
	return res
}
