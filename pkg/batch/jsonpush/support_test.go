package jsonpush_test

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/jsonpush"
	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/catalogue"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	collector = uuid.MustParse("6f1c2a34-0b1d-4c5e-8f70-112233445566")
	now       = time.Date(2026, 3, 4, 5, 6, 7, 890_123_456, time.UTC)
)

// The families of these tests: one with every type, one of the narrowest, one
// with twenty counters, and a dimension.
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

const narrow = `
name: narrow
description: One value.
scope: instance
interval: 60s
retention: 2d
chunk: 1d
columns:
  - {name: v, type: bigint, kind: gauge, help: A value.}
queries:
  - {min_version: 13, sql: "select 1"}
`

const dimension = `
name: texts
description: Texts by id.
kind: dimension
scope: instance
interval: 60s
retention: 30d
key: [id]
columns:
  - {name: id,    type: bigint, kind: label, help: A key.}
  - {name: query, type: text,   kind: info,  help: A text.}
queries:
  - {min_version: 13, sql: "select 1"}
`

func wide() string {
	var b strings.Builder
	b.WriteString(strings.Replace(narrow[:strings.Index(narrow, "columns:")], "name: narrow", "name: wide", 1))
	b.WriteString("columns:\n")
	for _, c := range wideColumns() {
		b.WriteString("  - {name: " + c + ", type: bigint, kind: counter, help: A value.}\n")
	}
	b.WriteString("queries:\n  - {min_version: 13, sql: \"select 1\"}\n")
	return b.String()
}

func wideColumns() []string {
	names := make([]string, 20)
	for i := range names {
		names[i] = "counter_" + string(rune('a'+i))
	}
	return names
}

func families(tb testing.TB) *catalogue.Catalogue {
	tb.Helper()
	c, err := catalogue.Load(fstest.MapFS{
		"all_types.yaml": {Data: []byte(allTypes)},
		"narrow.yaml":    {Data: []byte(narrow)},
		"wide.yaml":      {Data: []byte(wide())},
		"texts.yaml":     {Data: []byte(dimension)},
	})
	require.NoError(tb, err)
	return c
}

// decode decodes a body as the collector of these tests sends it.
func decode(tb testing.TB, body string) (*batch.Batch, *push.Report, error) {
	tb.Helper()
	return jsonpush.Decode(strings.NewReader(body), collector, families(tb), push.DefaultLimits(), now)
}

// body returns a body with these items and members; a member "-name" leaves
// that one out.
func body(items []string, members ...string) string {
	all := []string{
		`"collector_id": "` + collector.String() + `"`,
		`"hostname": "db1"`,
		`"timestamp": "2026-03-04T05:06:00Z"`,
		`"version": "1.0"`,
		`"metrics_count": ` + encode(len(items)),
	}
	for _, m := range members {
		name, _, _ := strings.Cut(strings.TrimPrefix(m, "-"), ":")
		for i := range all {
			if strings.HasPrefix(all[i], `"`+strings.Trim(name, `"`)+`"`) {
				all = append(all[:i], all[i+1:]...)
				break
			}
		}
		if !strings.HasPrefix(m, "-") {
			all = append(all, m)
		}
	}
	return "{" + strings.Join(all, ", ") + `, "metrics": [` + strings.Join(items, ", ") + "]}"
}

func encode(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(data)
}

// good is an item that is accepted.
const good = `{"type": "narrow", "columns": ["v"], "rows": [[1], [2]]}`

// v7 returns a UUIDv7 of that time.
func v7(at time.Time, tail byte) uuid.UUID {
	ms := at.UnixMilli()
	id := uuid.UUID{6: 0x70, 8: 0x80, 15: tail}
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i))
	}
	return id
}

// batchID is the member batch_id of a batch of that time.
func batchID(at time.Time) string { return `"batch_id": "` + v7(at, 1).String() + `"` }
