package jsonpush_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/jsonpush"
	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/fault"
)

func TestABodyBecomesASealedBatch(t *testing.T) {
	t.Parallel()
	epoch, before := v7(now, 2), v7(now, 3)
	b, report, err := decode(t, body(
		[]string{
			`{"type": "narrow", "columns": ["v"], "rows": [[1], [null]]}`,
			`{"type": "narrow", "server": "db2", "timestamp": "2026-03-04T05:05:00+01:00", "columns": ["v"], "rows": [["3"]]}`,
			`{"type": "narrow", "columns": ["v"], "rows": []}`,
			`{"type": "texts", "columns": ["time", "id", "query"], "rows": [["2026-03-04T05:05:59.9999999Z", 7, "é\n"], ["2026-03-04T05:05:58Z", 8, null]]}`,
		},
		batchID(now.Add(-time.Second)),
		`"epoch": "`+epoch.String()+`"`, `"sequence": 1`, `"previous": {"epoch": "`+before.String()+`", "sequence": "41"}`,
		`"refused": []`, `"labels": {"zone": "a", "env": "prod"}`,
	))
	require.NoError(t, err)

	db1, db2 := batch.ServerID(collector, "db1"), batch.ServerID(collector, "db2")
	stamped := time.Date(2026, 3, 4, 5, 6, 0, 0, time.UTC)
	itemTime := time.Date(2026, 3, 4, 4, 5, 0, 0, time.UTC)
	first, second := stamped.Add(-time.Microsecond), stamped.Add(-2*time.Second)
	v := []batch.Column{{Name: "v", Type: catalogue.BigInt}}
	want := &batch.Batch{
		CollectorID: collector,
		ID:          v7(now.Add(-time.Second), 1),
		SentAt:      now.Add(-time.Second).Truncate(time.Millisecond),
		Epoch:       epoch,
		Sequence:    1,
		Previous:    batch.Mark{Epoch: before, Sequence: 41},
		Labels:      []batch.Label{{Name: "env", Value: "prod"}, {Name: "zone", Value: "a"}},
		ReceivedAt:  now.Truncate(time.Microsecond),
		Sections: []batch.Section{
			{
				Family: "narrow", Server: "db1", ServerID: db1, Columns: v, Rows: 2, MinTime: stamped, MaxTime: stamped,
				Tuples: batch.AppendNull(batch.AppendTuple(batch.AppendInt64(batch.AppendTuple(nil, 3, stamped, db1), 1), 3, stamped, db1)),
			},
			{
				Family: "narrow", Server: "db2", ServerID: db2, Columns: v, Rows: 1, MinTime: itemTime, MaxTime: itemTime,
				Tuples: batch.AppendInt64(batch.AppendTuple(nil, 3, itemTime, db2), 3),
			},
			{
				Family: "texts", Server: "db1", ServerID: db1, Rows: 2, MinTime: second, MaxTime: first,
				Columns: []batch.Column{{Name: "id", Type: catalogue.BigInt}, {Name: "query", Type: catalogue.Text}},
				Tuples: batch.AppendNull(batch.AppendInt64(batch.AppendTuple(
					batch.AppendText(batch.AppendInt64(batch.AppendTuple(nil, 4, first, db1), 7), "é\n"),
					4, second, db1), 8)),
			},
		},
	}
	want.Seal()
	require.Equal(t, want, b)
	require.Equal(t, &push.Report{ItemsAccepted: 4, RowsAccepted: 5, ItemCount: 4, Hostname: "db1", Version: "1.0", Rejected: []push.Rejection{}}, report)
}

func TestEachValueIsEncodedExactly(t *testing.T) {
	t.Parallel()
	const us = 1_772_600_767_000_000 // 2026-03-04T05:06:07Z
	at := func(us int64) []byte { return batch.AppendTime(nil, time.UnixMicro(us)) }
	for _, test := range []struct {
		column, value string
		want          []byte
	}{
		{"b", "true", batch.AppendBool(nil, true)},
		{"b", "false", batch.AppendBool(nil, false)},
		{"b", "null", batch.AppendNull(nil)},
		{"i2", "-32768", batch.AppendInt16(nil, -32768)},
		{"i2", "32767", batch.AppendInt16(nil, 32767)},
		{"i2", "3e2", batch.AppendInt16(nil, 300)},
		{"i4", "-2147483648", batch.AppendInt32(nil, -2147483648)},
		{"i4", "2147483647", batch.AppendInt32(nil, 2147483647)},
		{"i8", "9223372036854775807", batch.AppendInt64(nil, 9223372036854775807)},
		{"i8", "-9223372036854775808", batch.AppendInt64(nil, -9223372036854775808)},
		{"i8", `"9223372036854775807"`, batch.AppendInt64(nil, 9223372036854775807)},
		{"i8", `"-9223372036854775808"`, batch.AppendInt64(nil, -9223372036854775808)},
		{"i8", `"\u0031\u0032"`, batch.AppendInt64(nil, 12)},
		{"i8", `"007"`, batch.AppendInt64(nil, 7)},
		{"i8", "-0", batch.AppendInt64(nil, 0)},
		{"i8", "1e3", batch.AppendInt64(nil, 1000)},
		{"i8", "12.340e2", batch.AppendInt64(nil, 1234)},
		{"i8", "1.0", batch.AppendInt64(nil, 1)},
		{"i8", "100E-2", batch.AppendInt64(nil, 1)},
		{"i8", "0e-99999999999999999999", batch.AppendInt64(nil, 0)},
		{"i8", "9.223372036854775807e18", batch.AppendInt64(nil, 9223372036854775807)},
		{"i8", "9007199254740993", batch.AppendInt64(nil, 9007199254740993)}, // no float64 in between
		{"f4", "1.5", batch.AppendFloat32(nil, 1.5)},
		{"f4", "9007199791611905", batch.AppendFloat32(nil, 9007200328482816)}, // by way of a float64 it were 9007199254740992
		{"f4", "16777217", batch.AppendFloat32(nil, 16777216)},
		{"f4", "3.4028235e38", batch.AppendFloat32(nil, 3.4028235e38)},
		{"f4", "0.00000002157", batch.AppendFloat32(nil, 0.00000002157)}, // divided as float32 it were another
		{"f4", "1e-60", batch.AppendFloat32(nil, 0)},
		{"f8", "0.1", batch.AppendFloat64(nil, 0.1)},
		{"f8", "123456789012345", batch.AppendFloat64(nil, 123456789012345)},
		{"f8", "-1.7976931348623157e308", batch.AppendFloat64(nil, -1.7976931348623157e308)},
		{"s", `""`, batch.AppendText(nil, "")},
		{"s", `"a\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00"`, batch.AppendText(nil, "a\"\\/\b\f\n\r\té😀")},
		{"s", `"\\"`, batch.AppendText(nil, `\`)},
		{"s", `"[{]},:"`, batch.AppendText(nil, "[{]},:")},
		{"s", `"` + strings.Repeat("x", 1<<20) + `"`, batch.AppendText(nil, strings.Repeat("x", 1<<20))},
		{"u", `"6F1C2A34-0b1d-4c5e-8f70-112233445566"`, batch.AppendUUID(nil, collector)},
		{"ts", `"2026-03-04T05:06:07Z"`, at(us)},
		{"ts", `"2026-03-04t05:06:07z"`, at(us)},
		{"ts", `"2026-03-04T05:06:07.1Z"`, at(us + 100_000)},
		{"ts", `"2026-03-04T05:06:07.123456789Z"`, at(us + 123_456)},
		{"ts", `"2026-03-04T06:36:07+01:30"`, at(us)},
		{"ts", `"2026-03-03T23:06:07-06:00"`, at(us)},
		{"ts", `"2026-03-04T05:06:07-00:00"`, at(us)},
		{"ts", `"0000-01-01T00:00:00Z"`, at(-62167219200_000_000)},
		{"ts", `"9999-12-31T23:59:59.999999-23:59"`, at(253402300799_999_999 + 86_340_000_000)},
	} {
		for _, behind := range []string{"", readAhead} {
			b, _, err := decode(t, body([]string{all(test.column, test.value)})+behind)
			require.NoError(t, err, test.value)
			tuples := b.Sections[0].Tuples
			require.Equal(t, test.want, tuples[len(tuples)-len(test.want):], test.value)
		}
	}
}

func TestRowsMayBeObjects(t *testing.T) {
	t.Parallel()
	b, _, err := decode(t, body([]string{
		`{"type": "texts", "rows": [{"id": 1}, {"query": "x", "id": 2}, {"\u0069d": 3, "query": null}]}`,
		`{"type": "texts", "columns": ["id", "query"], "rows": [[1, null], [2, "x"], [3, null]]}`,
		`{"type": "texts", "rows": [{"id": 1, "time": "2026-03-04T05:05:00Z"}]}`,
		`{"type": "texts", "columns": ["id", "query"], "timestamp": "2026-03-04T05:05:00Z", "rows": [[1, null]]}`,
	}))
	require.NoError(t, err)
	require.Equal(t, b.Sections[1], b.Sections[0], "a missing name is NULL; all columns of the family are there")
	require.Equal(t, b.Sections[3], b.Sections[2])
}

func TestWithoutAnIDTheBodyIsTheID(t *testing.T) {
	t.Parallel()
	sent := body([]string{good}) + "\n"
	for _, large := range []string{strings.Repeat(" ", 100_000), ""} {
		sum := sha256.Sum256(append(collector[:], large+sent...))
		b, _, err := decode(t, large+sent)
		require.NoError(t, err)
		require.Equal(t, hex.EncodeToString(sum[:16]), hex.EncodeToString(b.ID[:]), "white space around it counts")
	}
	b, _, err := decode(t, sent)
	require.NoError(t, err)
	require.Equal(t, time.Date(2026, 3, 4, 5, 6, 0, 0, time.UTC), b.SentAt)

	again, _, err := jsonpush.Decode(strings.NewReader(sent), collector, families(t), push.DefaultLimits(), now.Add(time.Minute))
	require.NoError(t, err)
	require.Equal(t, b.MessageID(), again.MessageID(), "whenever it is sent")
	longer, _, err := decode(t, sent+" ")
	require.NoError(t, err)
	require.NotEqual(t, b.ID, longer.ID)
}

func TestOnlyTheBatchsTimeMeetsTheClock(t *testing.T) {
	t.Parallel()
	// Sent again 29 days later the same rows are still accepted: they are
	// judged by the batch's own time.
	sent := body([]string{`{"type": "narrow", "timestamp": "2026-03-02T05:06:07.890Z", "columns": ["v"], "rows": [[1]]}`}, batchID(now))
	for _, at := range []time.Time{now.Add(-10 * time.Minute), now, now.Add(29 * 24 * time.Hour)} {
		_, _, err := jsonpush.Decode(strings.NewReader(sent), collector, families(t), push.DefaultLimits(), at)
		require.NoError(t, err, at)
	}
}

func TestAnEmptyBatchNeedsANumber(t *testing.T) {
	t.Parallel()
	b, report, err := decode(t, body(nil, batchID(now), `"epoch": `+other, `"sequence": 7`, `"refused": [3, "6"]`))
	require.NoError(t, err)
	require.Empty(t, b.Sections)
	require.Equal(t, []uint64{3, 6}, b.Refused)
	require.Zero(t, report.ItemsAccepted)

	b, report, err = decode(t, body([]string{`{"type": "narrow", "rows": []}`}))
	require.NoError(t, err, "an item without rows is an item")
	require.Empty(t, b.Sections)
	require.Equal(t, 1, report.ItemsAccepted)
}

func TestNullStandsForAnAbsentOptionalMember(t *testing.T) {
	t.Parallel()
	b, _, err := decode(t, body(
		[]string{`{"type": "narrow", "server": null, "timestamp": null, "columns": ["v"], "rows": [[1]]}`},
		`"batch_id": null`, `"epoch": null`, `"sequence": null`, `"previous": null`, `"refused": null`, `"labels": null`))
	require.NoError(t, err)
	require.Equal(t, "db1", b.Sections[0].Server)
	require.Equal(t, uuid.Nil, b.Epoch)
}

func TestAReadersErrorPassesThrough(t *testing.T) {
	t.Parallel()
	sent := body([]string{good})
	own := fault.New(fault.TooLarge, "body_too_large", "as the reader says")
	broken := errors.New("connection reset")
	inflater := &fault.Error{Class: fault.Invalid, Code: "encoding_invalid", Err: io.EOF}
	for cut := 0; cut < len(sent); cut += 7 {
		for _, cause := range []error{own, broken, inflater, io.ErrUnexpectedEOF} {
			r := io.MultiReader(strings.NewReader(sent[:cut]), iotest.ErrReader(cause))
			_, _, err := jsonpush.Decode(r, collector, families(t), push.DefaultLimits(), now)
			require.ErrorIs(t, err, cause, fmt.Sprint(cut))
			require.Equal(t, fault.ClassOf(cause), fault.ClassOf(err), "a body that did not arrive is not an invalid one")
		}
	}
}

func TestANumberMayGoOnWhereReadingFailed(t *testing.T) {
	t.Parallel()
	broken := errors.New("connection reset")
	_, _, err := jsonpush.Decode(io.MultiReader(strings.NewReader("12"), iotest.ErrReader(broken)), collector, families(t), push.DefaultLimits(), now)
	require.ErrorIs(t, err, broken)
}

func TestAllOfTheBodyIsRead(t *testing.T) {
	t.Parallel()
	r := bytes.NewReader([]byte(body([]string{good}, batchID(now)) + strings.Repeat(" ", 100_000)))
	_, _, err := jsonpush.Decode(r, collector, families(t), push.DefaultLimits(), now)
	require.NoError(t, err)
	require.Zero(t, r.Len())
}
