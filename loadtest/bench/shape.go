package main

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing/fstest"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
)

// shape is one kind of load: how many value columns a row has and how many
// rows a batch.
type shape struct {
	name         string // of the ratio printed at the end
	family       string
	native       bool // pushed as our collector does, else as JSON
	values       int  // value columns, double precision when one, else bigint
	rows         int  // per batch
	batches      int  // per measured run
	gate, target float64
}

var (
	narrow = shape{name: "json_narrow", family: "bench_narrow", values: 1, rows: 1000, batches: 1600, gate: 0.65, target: 0.9}
	tuples = shape{name: "native", family: "bench_native", native: true, values: 1, rows: 1000, batches: 1600, gate: 0.8, target: 1}
	large  = shape{name: "native_large", family: "bench_native_large", native: true, values: 1, rows: 5000, batches: 320, gate: 0.8, target: 1}
	wide   = shape{name: "json_wide", family: "bench_wide", values: 20, rows: 1000, batches: 400, gate: 0.45, target: 0.65}
	shapes = []shape{tuples, large, narrow, wide}
)

// servers is how many servers the rows come from. A batch is the rows of one
// of them at one moment, and the servers take turns.
const servers = 50

// withRows returns the shape with other batches.
func (sh shape) withRows(rows int) shape { sh.rows = rows; return sh }

func (sh shape) columnType() catalogue.Type {
	if sh.values == 1 {
		return catalogue.DoublePrecision
	}
	return catalogue.BigInt
}

// catalogueFiles returns the families as catalogue files.
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
	cols := []batch.Column{{Name: "series", Type: catalogue.Integer}}
	for i := range sh.values {
		cols = append(cols, batch.Column{Name: fmt.Sprintf("v%d", i), Type: sh.columnType()})
	}
	return cols
}

func (sh shape) copyStatement() string {
	names := []string{"time", "server_id"}
	for _, c := range sh.columns() {
		names = append(names, c.Name)
	}
	return fmt.Sprintf("copy metrics.%s (%s) from stdin (format binary)", sh.family, strings.Join(names, ","))
}

// payload is the rows of one batch in both forms: the JSON array that stands
// in a push's `rows`, and the tuples that the same rows become.
type payload struct {
	server string
	after  time.Duration // from the time of the first batch's rows
	json   []byte
	tuples func(at time.Time, server uuid.UUID) []byte
}

// payloads makes n batches of rows.
func (sh shape) payloads(n int, rnd *rand.Rand) []payload {
	out := make([]payload, n)
	for i := range out {
		out[i] = sh.payload(i, rnd)
	}
	return out
}

// payload makes the i-th batch. Values look like counters and gauges of a live
// server: a handful of digits, few repeats.
func (sh shape) payload(i int, rnd *rand.Rand) payload {
	ints := make([]int64, sh.rows*sh.values)
	floats := make([]float64, sh.rows*sh.values)
	text := []byte{'['}
	for r := range sh.rows {
		if r > 0 {
			text = append(text, ',')
		}
		text = strconv.AppendInt(append(text, '['), int64(r), 10)
		for k := r * sh.values; k < (r+1)*sh.values; k++ {
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
	return payload{
		server: fmt.Sprintf("db%02d", i%servers), after: time.Duration(i/servers) * time.Second,
		json: append(text, ']'), tuples: sh.encoder(ints, floats),
	}
}

// encoder encodes rows with the keys 0, 1, 2 and so on.
func (sh shape) encoder(ints []int64, floats []float64) func(time.Time, uuid.UUID) []byte {
	return func(at time.Time, server uuid.UUID) []byte {
		var b []byte
		for r := range sh.rows {
			b = batch.AppendTuple(b, batch.LeadFields+1+sh.values, at, server)
			b = batch.AppendInt32(b, int32(r))
			for k := r * sh.values; k < (r+1)*sh.values; k++ {
				if sh.values == 1 {
					b = batch.AppendFloat64(b, floats[k])
				} else {
					b = batch.AppendInt64(b, ints[k])
				}
			}
		}
		return b
	}
}
