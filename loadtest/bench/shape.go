package main

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing/fstest"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
)

// shape is one kind of load: how many value columns a row has and how many
// rows a batch.
type shape struct {
	name    string // of the ratio printed at the end
	family  string
	values  int // value columns, double precision when one, else bigint
	rows    int // per batch
	batches int // per measured run
}

// series is how many different keys the rows of a shape have.
const series = 5000

var shapes = []shape{
	{name: "json_narrow", family: "bench_narrow", values: 1, rows: 1000, batches: 400},
	{name: "json_wide", family: "bench_wide", values: 20, rows: 250, batches: 400},
}

func (sh shape) columnType() string {
	if sh.values == 1 {
		return "double precision"
	}
	return "bigint"
}

// catalogueFiles returns the two families as catalogue files.
func catalogueFiles() fstest.MapFS {
	files := fstest.MapFS{}
	for _, s := range shapes {
		text := fmt.Sprintf("name: %s\ndescription: Rows of the benchmark.\nscope: instance\ninterval: 60s\nretention: 30d\nchunk: 1d\nkey: [series]\ncolumns:\n"+
			"  - {name: series, type: integer, kind: label, help: Which series.}\n", s.family)
		for i := range s.values {
			text += fmt.Sprintf("  - {name: v%d, type: %s, kind: gauge, help: A value.}\n", i, s.columnType())
		}
		text += "queries:\n  - {min_version: 13, sql: \"select 1\"}\n"
		files["metrics/"+s.family+".yaml"] = &fstest.MapFile{Data: []byte(text)}
	}
	return files
}

// columns returns the columns of the shape's tuples after time and server_id.
func (sh shape) columns() []batch.Column {
	t, err := catalogue.ParseType(sh.columnType())
	if err != nil {
		panic(err)
	}
	cols := []batch.Column{{Name: "series", Type: catalogue.Integer}}
	for i := range sh.values {
		cols = append(cols, batch.Column{Name: fmt.Sprintf("v%d", i), Type: t})
	}
	return cols
}

// payload is the rows of one batch in both forms: the JSON array that stands
// in a push's `rows`, and the tuples that the same rows become.
type payload struct {
	json   []byte
	tuples func(at time.Time, server uuid.UUID) []byte
}

// payloads makes n batches of rows. Values look like counters and gauges of a
// live server: a handful of digits, few repeats.
func (sh shape) payloads(n int, rnd *rand.Rand) []payload {
	out := make([]payload, n)
	next := 0
	for i := range out {
		keys := make([]int32, sh.rows)
		ints := make([]int64, sh.rows*sh.values)
		floats := make([]float64, sh.rows*sh.values)
		text := []byte{'['}
		for r := range keys {
			keys[r] = int32(next % series)
			next++
			if r > 0 {
				text = append(text, ',')
			}
			text = strconv.AppendInt(append(text, '['), int64(keys[r]), 10)
			for v := range sh.values {
				k := r*sh.values + v
				text = append(text, ',')
				if sh.values == 1 {
					floats[k] = float64(rnd.IntN(1_000_000)) / 100
					text = strconv.AppendFloat(text, floats[k], 'f', -1, 64)
				} else {
					ints[k] = rnd.Int64N(1 << rnd.IntN(40))
					text = strconv.AppendInt(text, ints[k], 10)
				}
			}
			text = append(text, ']')
		}
		out[i] = payload{json: append(text, ']'), tuples: sh.encoder(keys, ints, floats)}
	}
	return out
}

func (sh shape) encoder(keys []int32, ints []int64, floats []float64) func(time.Time, uuid.UUID) []byte {
	return func(at time.Time, server uuid.UUID) []byte {
		var b []byte
		for r, key := range keys {
			b = batch.AppendTuple(b, batch.LeadFields+1+sh.values, at, server)
			b = batch.AppendInt32(b, key)
			for v := range sh.values {
				if k := r*sh.values + v; sh.values == 1 {
					b = batch.AppendFloat64(b, floats[k])
				} else {
					b = batch.AppendInt64(b, ints[k])
				}
			}
		}
		return b
	}
}
