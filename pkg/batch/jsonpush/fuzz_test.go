package jsonpush_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/jsonpush"
	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/fault"
	"pganalytics/pkg/internal/testdb"
)

// FuzzDecode decodes whole bodies. What is accepted, PostgreSQL accepts and
// returns unchanged, where there is one.
func FuzzDecode(f *testing.F) {
	items := []string{
		good,
		`{"type": "narrow", "rows": [{"v": 1, "time": "2026-03-04T05:06:00.5+00:30"}]}`,
		`{"rows": [[null, "a\ud83d\ude00", 7]], "columns": ["b", "k", "n"], "type": "all_types", "server": "\u00e9"}`,
		`{"type": "texts", "columns": ["query", "id", "time"], "rows": [["select\n1", "9", "2026-03-03T05:06:00Z"]]}`,
		`{"type": "none", "rows": []}`,
	}
	f.Add([]byte(body(items)))
	f.Add([]byte(body(items[:2], batchID(now), `"epoch": `+other, `"sequence": 2`, `"refused": [1]`, `"labels": {"a": "b"}`)))
	f.Add([]byte(body(nil)))
	f.Add([]byte("{}"))
	j := newJudge(f)
	f.Fuzz(func(t *testing.T, data []byte) { j.decide(t, data) })
}

// FuzzItem decodes one item of an otherwise good body.
func FuzzItem(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(`{"rows": [[null, "a", 7]], "columns": ["b", "k", "n"], "timestamp": null, "type": "all_types", "server": "s"}`))
	f.Add([]byte(`{"rows": [{"v": 1, "time": "2026-03-04T05:06:00Z"}], "type": "narrow", "timestamp": "2026-03-03T05:06:00Z"}`))
	f.Add([]byte(`{"type": "narrow", "columns": ["time", "v"], "rows": [], "server": null}`))
	j := newJudge(f)
	f.Fuzz(func(t *testing.T, item []byte) { j.decide(t, []byte(body([]string{good, string(item)}))) })
}

// FuzzRow decodes one row under all columns, where most of the values' rules
// are.
func FuzzRow(f *testing.F) {
	for _, row := range []string{
		`["k", 1, true, 2, 3, 4, 5.5, 6.25, "s", "6f1c2a34-0b1d-4c5e-8f70-112233445566", "2026-03-04T05:06:07.123456Z"]`,
		`["a", 1, null, null, null, null, null, null, "a\u0000", null, null]`,
		`["", -1, null, null, null, null, null, null, null, null, null]`,
		`["\u0000", 1e3, false, -32768, 2147483647, "-9223372036854775808", 1e-60, -0, "\\\"\ud83d\ude00", "", "infinity"]`,
		`["é", 12.0, false, 32768, 1e9, 9223372036854775807, 3.4028235e38, 1.7976931348623157e308, "\u0001", null, "0000-01-01T00:00:00Z"]`,
	} {
		f.Add([]byte(row))
	}
	j := newJudge(f)
	f.Fuzz(func(t *testing.T, row []byte) {
		j.decide(t, []byte(body([]string{
			`{"type": "all_types", "columns": ["k", "n", "b", "i2", "i4", "i8", "f4", "f8", "s", "u", "ts"], "rows": [` + string(row) + `]}`,
		})))
	})
}

// FuzzRowByName decodes one row that is an object.
func FuzzRowByName(f *testing.F) {
	f.Add([]byte(`{"k": "k", "n": 1, "u": "6f1c2a34-0b1d-4c5e-8f70-112233445566", "time": "2026-03-04T05:06:07Z"}`))
	f.Add([]byte(`{"n": 1, "k": "", "s": "\\", "b": null}`))
	f.Add([]byte(`{}`))
	j := newJudge(f)
	f.Fuzz(func(t *testing.T, row []byte) {
		j.decide(t, []byte(body([]string{`{"type": "all_types", "rows": [` + string(row) + `]}`})))
	})
}

// readAhead behind a body has its last numbers read in the short way, when it
// arrives at once.
var readAhead = strings.Repeat(" ", 64)

// judge decides whether what was decoded is right.
type judge struct {
	cat  *catalogue.Catalogue
	conn *pgconn.PgConn // nil without a server
}

// newJudge connects to PostgreSQL, where each family of these tests becomes a
// temporary table with the catalogue's types.
func newJudge(f *testing.F) *judge {
	f.Helper()
	j := &judge{cat: families(f)}
	if os.Getenv("TEST_DATABASE_URL") == "" && os.Getenv("CI") != "true" {
		f.Log("without TEST_DATABASE_URL PostgreSQL is not asked")
		return j
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgconn.Connect(ctx, testdb.Empty(f))
	require.NoError(f, err)
	f.Cleanup(func() { _ = conn.Close(context.Background()) })
	for _, family := range j.cat.Families() {
		columns := []string{"time timestamptz not null", "server_id uuid not null"}
		for _, c := range family.Columns {
			column := c.Name + " " + c.Type.String()
			if c.NotNull {
				column += " not null"
			}
			columns = append(columns, column)
		}
		_, err := conn.Exec(ctx, "create temp table "+family.Name+" ("+strings.Join(columns, ", ")+")").ReadAll()
		require.NoError(f, err)
	}
	j.conn = conn
	return j
}

func (j *judge) decide(t *testing.T, data []byte) {
	data = append(data[:len(data):len(data)], readAhead...)
	b, report, err := jsonpush.Decode(bytes.NewReader(data), collector, j.cat, push.DefaultLimits(), now)
	slow, _, slowErr := jsonpush.Decode(iotest.OneByteReader(bytes.NewReader(data)), collector, j.cat, push.DefaultLimits(), now)
	require.Equal(t, b, slow, "how the bytes arrive does not matter")
	require.Equal(t, err == nil, slowErr == nil)
	if err != nil {
		require.Nil(t, b)
		_, classified := errors.AsType[*fault.Error](err)
		require.True(t, classified, err)
		require.Contains(t, []fault.Class{fault.Invalid, fault.Forbidden, fault.Unprocessable}, fault.ClassOf(err))
		return
	}
	require.True(t, json.Valid(data), "the standard library accepts it too")
	require.Equal(t, report.RowsAccepted, b.Rows())
	require.Equal(t, report.ItemCount, report.ItemsAccepted+len(report.Rejected)+report.RejectedMore)
	requireSound(t, b)
	for i := range b.Sections {
		j.copy(t, &b.Sections[i])
	}
}

// copy loads a section and reads it back.
func (j *judge) copy(t *testing.T, s *batch.Section) {
	if j.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	columns := []string{"time", "server_id"}
	for _, c := range s.Columns {
		columns = append(columns, c.Name)
	}
	table := fmt.Sprintf("%s (%s)", s.Family, strings.Join(columns, ", "))
	_, err := j.conn.Exec(ctx, "begin").ReadAll()
	require.NoError(t, err)
	defer func() {
		_, err := j.conn.Exec(ctx, "rollback").ReadAll()
		require.NoError(t, err)
	}()
	stream := bytes.Join([][]byte{batch.CopyHeader, s.Tuples, batch.CopyTrailer}, nil)
	tag, err := j.conn.CopyFrom(ctx, bytes.NewReader(stream), "copy "+table+" from stdin (format binary)")
	require.NoError(t, err)
	require.EqualValues(t, s.Rows, tag.RowsAffected())
	var back bytes.Buffer
	_, err = j.conn.CopyTo(ctx, &back, "copy "+table+" to stdout (format binary)")
	require.NoError(t, err)
	require.Equal(t, stream, back.Bytes(), "PostgreSQL holds what was sent")
}
