package native_test

import (
	"bytes"
	"encoding/json"
	"strconv"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/batchpb"
	"pganalytics/pkg/batch/native"
	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/catalogue"
)

var (
	collector = uuid.MustParse("6f1c2a34-0b1d-4c5e-8f70-112233445566")
	now       = time.Date(2026, 3, 4, 5, 6, 7, 890_123_456, time.UTC)
	sampled   = time.Date(2026, 3, 4, 5, 6, 0, 0, time.UTC)
)

const allTypes = `
name: all_types
description: One column of every type.
scope: instance
interval: 60s
retention: 30d
chunk: 1d
key: [k, n]
columns:
  - {name: k,    type: text,             kind: label, help: A key.}
  - {name: n,    type: integer,          kind: label, help: A key.}
  - {name: b,    type: boolean,          kind: gauge, help: A value.}
  - {name: i2,   type: smallint,         kind: gauge, help: A value.}
  - {name: i4,   type: integer,          kind: gauge, help: A value.}
  - {name: i8,   type: bigint,           kind: gauge, help: A value.}
  - {name: f4,   type: real,             kind: gauge, help: A value.}
  - {name: f8,   type: double precision, kind: gauge, help: A value.}
  - {name: s,    type: text,             kind: info,  help: A value.}
  - {name: u,    type: uuid,             kind: info,  help: A value.}
  - {name: ts,   type: timestamptz,      kind: info,  help: A value.}
queries:
  - {min_version: 13, sql: "select 1"}
`

func families(tb testing.TB) *catalogue.Catalogue {
	tb.Helper()
	c, err := catalogue.Load(fstest.MapFS{"all_types.yaml": {Data: []byte(allTypes)}, "narrow.yaml": {Data: []byte(native.NarrowFamily)}})
	require.NoError(tb, err)
	return c
}

// decode decodes a body as the collector of these tests sends it.
func decode(tb testing.TB, body []byte) (*batch.Batch, *push.Report, error) {
	tb.Helper()
	return native.Decode(bytes.NewReader(body), collector, families(tb), push.DefaultLimits(), now)
}

// v7 returns a UUIDv7 of that time.
func v7(at time.Time, tail byte) uuid.UUID {
	ms := at.UnixMilli()
	id := uuid.UUID{6: 0x70, 8: 0x80, 15: tail}
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i))
	}
	return id
}

// section returns a section of the tuples that rows append, each given the
// beginning of its own.
func section(tb testing.TB, family, server string, names []string, rows ...func(dst []byte) []byte) batch.Section {
	tb.Helper()
	s := batch.Section{
		Family: family, Server: server, ServerID: batch.ServerID(collector, server), Columns: columnsOf(families(tb), family, names...),
		Rows: len(rows), MinTime: sampled, MaxTime: sampled,
	}
	for _, row := range rows {
		s.Tuples = row(batch.AppendTuple(s.Tuples, batch.LeadFields+len(names), sampled, s.ServerID))
	}
	return s
}

// narrowRows returns a section of n rows of the narrow family.
func narrowRows(tb testing.TB, n int) batch.Section {
	tb.Helper()
	rows := make([]func([]byte) []byte, n)
	for i := range rows {
		rows[i] = func(dst []byte) []byte { return batch.AppendFloat64(batch.AppendInt32(dst, int32(i)), float64(i)/8) }
	}
	return section(tb, "narrow", "db1", []string{"series", "v"}, rows...)
}

// everyName is the columns of all_types.
var everyName = []string{"k", "n", "b", "i2", "i4", "i8", "f4", "f8", "s", "u", "ts"}

// everyType appends a row with a value in every column of all_types, that of
// the named one appended by other.
func everyType(name string, other func(dst []byte) []byte) func(dst []byte) []byte {
	return func(dst []byte) []byte {
		for _, column := range everyName {
			if column == name {
				dst = other(dst)
				continue
			}
			switch column {
			case "k", "s":
				dst = batch.AppendText(dst, "plain text of é and more")
			case "n", "i4":
				dst = batch.AppendInt32(dst, -7)
			case "b":
				dst = batch.AppendBool(dst, true)
			case "i2":
				dst = batch.AppendInt16(dst, 7)
			case "i8":
				dst = batch.AppendInt64(dst, 1<<40)
			case "f4":
				dst = batch.AppendFloat32(dst, 1.5)
			case "f8":
				dst = batch.AppendFloat64(dst, -2.5)
			case "u":
				dst = batch.AppendUUID(dst, collector)
			case "ts":
				dst = batch.AppendTime(dst, sampled)
			}
		}
		return dst
	}
}

// sample returns a push with these sections.
func sample(sections ...batch.Section) *native.Push {
	return &native.Push{
		CollectorID: collector, Hostname: "db1", Version: "1.0", BatchID: v7(now.Add(-time.Second), 1), Sections: sections,
	}
}

// changed returns a body of a good section after a change of its message.
func changed(tb testing.TB, change func(m *batchpb.PushRequest)) []byte {
	tb.Helper()
	m := &batchpb.PushRequest{}
	require.NoError(tb, proto.Unmarshal(sample(narrowRows(tb, 2)).Append(nil), m))
	change(m)
	body, err := proto.Marshal(m)
	require.NoError(tb, err)
	return body
}

// columnsOf returns columns of the family.
func columnsOf(cat *catalogue.Catalogue, family string, names ...string) []batch.Column {
	f, _ := cat.Family(family)
	list := make([]batch.Column, len(names))
	for i, name := range names {
		at, _ := f.Column(name)
		list[i] = batch.Column{Name: name, Type: f.Columns[at].Type}
	}
	return list
}

// quoted returns a text in JSON.
func quoted(s string) string {
	data, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(data)
}

// number returns a float in JSON.
func number(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }
