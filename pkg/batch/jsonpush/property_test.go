package jsonpush_test

import (
	"cmp"
	"fmt"
	"math"
	"math/big"
	"sort"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/jsonpush"
	"pganalytics/pkg/batch/push"
)

// member is a name and a raw value.
type member struct{ name, value string }

func object(members []member) string {
	parts := make([]string, len(members))
	for i, m := range members {
		parts[i] = fmt.Sprintf("%q: %s", m.name, m.value)
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

// drawItems draws items, good ones and faulty ones, as lists of members.
func drawItems(t *rapid.T) [][]member {
	clock := rapid.SampledFrom([]string{
		`"2026-03-04T05:06:00Z"`, `"2026-03-04T05:05:59.123456Z"`, `"2026-03-02T05:06:07+03:00"`, `"2026-03-04T05:30:00Z"`, `null`,
	})
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) []member {
		item := []member{{"type", rapid.SampledFrom([]string{`"narrow"`, `"narrow"`, `"narrow"`, `"none"`}).Draw(t, "type")}}
		if rapid.Bool().Draw(t, "has server") {
			item = append(item, member{"server", rapid.SampledFrom([]string{`"db1"`, `"db2"`, `"\u00e9"`, `""`}).Draw(t, "server")})
		}
		if rapid.Bool().Draw(t, "has time") {
			item = append(item, member{"timestamp", clock.Draw(t, "timestamp")})
		}
		value := rapid.SampledFrom([]string{"1", `"-5"`, "null", "1e2", "1", "2", "3", "true"})
		var rows []string
		switch form := rapid.IntRange(0, 3).Draw(t, "form"); form {
		case 0:
			item = append(item, member{"columns", `["v"]`})
			rows = rapid.SliceOfN(rapid.Map(value, func(v string) string { return "[" + v + "]" }), 0, 4).Draw(t, "rows")
		case 1:
			item = append(item, member{"columns", `["v", "time"]`})
			rows = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
				return "[" + value.Draw(t, "v") + ", " + clock.Draw(t, "t") + "]"
			}), 0, 4).Draw(t, "rows")
		default:
			timed := form == 3
			rows = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
				members := []member{{"v", value.Draw(t, "v")}}
				if timed {
					members = append(members, member{"time", clock.Draw(t, "t")})
				}
				return object(rapid.Permutation(members).Draw(t, "row"))
			}), 0, 4).Draw(t, "rows")
		}
		return append(item, member{"rows", "[" + strings.Join(rows, ", ") + "]"})
	}), 0, 5).Draw(t, "items")
}

func TestTheOrderOfMembersChangesNothing(t *testing.T) {
	t.Parallel()
	cat := families(t)
	accepted := 0
	rapid.Check(t, func(t *rapid.T) {
		items := drawItems(t)
		top := []member{
			{"collector_id", `"` + collector.String() + `"`},
			{"hostname", `"db1"`},
			{"timestamp", `"2026-03-04T05:06:00Z"`},
			{"version", `"1"`},
			{"metrics_count", fmt.Sprint(len(items))},
			{"labels", rapid.SampledFrom([]string{"{}", `{"b": "1", "a": "2"}`, "null"}).Draw(t, "labels")},
			{"batch_id", `"` + v7(now, 1).String() + `"`},
		}
		build := func(shuffle bool) string {
			list := make([]string, len(items))
			for i, item := range items {
				if shuffle {
					item = rapid.Permutation(item).Draw(t, "item's order")
				}
				list[i] = object(item)
			}
			members := append(top[:len(top):len(top)], member{"metrics", "[" + strings.Join(list, ", ") + "]"})
			if shuffle {
				members = rapid.Permutation(members).Draw(t, "order")
			}
			return object(members)
		}
		b, report, err := jsonpush.Decode(strings.NewReader(build(false)), collector, cat, push.DefaultLimits(), now)
		shuffled := build(true)
		b2, report2, err2 := jsonpush.Decode(iotest.OneByteReader(strings.NewReader(shuffled)), collector, cat, push.DefaultLimits(), now)
		require.Equal(t, b, b2, shuffled)
		require.Equal(t, err == nil, err2 == nil, shuffled)
		if err == nil {
			accepted++
			requireSound(t, b)
		}
		if report != nil {
			// Which of an item's faults is met first may depend on the order.
			require.Equal(t, indexes(report), indexes(report2))
			require.Equal(t, report.RowsAccepted, report2.RowsAccepted)
		}
	})
	require.Positive(t, accepted)
}

func TestNamesMayComeInAnyOrder(t *testing.T) {
	t.Parallel()
	cat := families(t)
	columns := wideColumns()
	rapid.Check(t, func(t *rapid.T) {
		var arrays, objects []string
		order := rapid.Permutation(columns)
		names := order.Draw(t, "order")
		for range rapid.IntRange(1, 5).Draw(t, "rows") {
			if rapid.Bool().Draw(t, "another order") {
				names = order.Draw(t, "order")
			}
			values := map[string]string{}
			given := rapid.IntRange(0, len(names)).Draw(t, "given")
			members := make([]member, given)
			for i, name := range names[:given] {
				values[name] = rapid.SampledFrom([]string{"1", "-20", `"3"`, "null", "4e1"}).Draw(t, "value")
				members[i] = member{name, values[name]}
			}
			space := rapid.SampledFrom([]string{": ", ":", " : "}).Draw(t, "space")
			objects = append(objects, strings.ReplaceAll(object(members), ": ", space))
			row := make([]string, len(columns))
			for i, name := range columns {
				row[i] = cmp.Or(values[name], "null")
			}
			arrays = append(arrays, "["+strings.Join(row, ",")+"]")
		}
		b, _, err := jsonpush.Decode(strings.NewReader(body([]string{
			`{"type": "wide", "rows": [` + strings.Join(objects, ",") + `]}`,
			`{"type": "wide", "columns": ` + encode(columns) + `, "rows": [` + strings.Join(arrays, ",") + `]}`,
		})), collector, cat, push.DefaultLimits(), now)
		require.NoError(t, err)
		require.Equal(t, b.Sections[1], b.Sections[0])
	})
}

func indexes(r *push.Report) []int {
	var list []int
	for _, rejection := range r.Rejected {
		list = append(list, rejection.Index)
	}
	return list
}

// requireSound requires what holds of every accepted batch.
func requireSound(tb require.TestingT, b *batch.Batch) {
	require.True(tb, b.Intact())
	for i := range b.Sections {
		s := &b.Sections[i]
		require.Equal(tb, batch.ServerID(b.CollectorID, s.Server), s.ServerID)
		require.Equal(tb, s.Rows, countTuples(tb, s), s.Family)
		require.False(tb, s.MaxTime.Before(s.MinTime))
	}
	data, err := b.Marshal()
	require.NoError(tb, err)
	back, err := batch.Unmarshal(data)
	require.NoError(tb, err)
	require.Equal(tb, b.Digest, back.Digest)
	expanded, err := back.Expand()
	require.NoError(tb, err)
	require.True(tb, expanded.Intact(), "what is stored survives the envelope")
}

// countTuples walks a section's tuples to their very end.
func countTuples(tb require.TestingT, s *batch.Section) int {
	n := 0
	for data := s.Tuples; len(data) > 0; n++ {
		require.GreaterOrEqual(tb, len(data), 2)
		fields := int(data[0])<<8 | int(data[1])
		require.Equal(tb, batch.LeadFields+len(s.Columns), fields)
		data = data[2:]
		for i := range fields {
			require.GreaterOrEqual(tb, len(data), 4)
			size := int(int32(uint32(data[0])<<24 | uint32(data[1])<<16 | uint32(data[2])<<8 | uint32(data[3])))
			data = data[4:]
			if i < batch.LeadFields || size >= 0 {
				require.LessOrEqual(tb, uint(size), uint(len(data)))
			}
			if i == 1 {
				require.Equal(tb, s.ServerID, uuid.UUID(data[:16]))
			}
			data = data[max(size, 0):]
		}
	}
	return n
}

func TestTheMeasuredSizeIsNeverBelowTheMarshalled(t *testing.T) {
	t.Parallel()
	cat := families(t)
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 60).Draw(t, "items")
		items := make([]string, n)
		for i := range items {
			server := strings.Repeat("s", rapid.IntRange(1, 255).Draw(t, "server"))
			items[i] = fmt.Sprintf(`{"type": "wide", "server": %q, "columns": %s, "rows": [%s]}`, server,
				encode(wideColumns()), "["+strings.TrimSuffix(strings.Repeat("0,", 20), ",")+"]")
		}
		labels := make([]string, rapid.IntRange(0, 64).Draw(t, "labels"))
		for i := range labels {
			labels[i] = fmt.Sprintf(`"%s%d": %q`, strings.Repeat("l", 60), i, strings.Repeat("x", 255))
		}
		refused := strings.TrimSuffix(strings.Repeat("9223372036854775806,", rapid.IntRange(0, 1000).Draw(t, "refused")), ",")
		sent := body(items, batchID(now), `"labels": {`+strings.Join(labels, ",")+`}`, `"epoch": `+other,
			`"sequence": 9223372036854775807`, `"refused": [`+refused+`]`)
		lim := push.DefaultLimits()
		b, _, err := jsonpush.Decode(strings.NewReader(sent), collector, cat, lim, now)
		require.NoError(t, err)
		b.TraceParent = strings.Repeat("0", 55)
		// The least that it takes, packed or not.
		least := sort.Search(lim.MaxEncodedBytes, func(limit int) bool {
			_, err := b.MarshalWithin(limit)
			return err == nil
		})
		lim.MaxEncodedBytes = least - 1
		_, _, err = jsonpush.Decode(strings.NewReader(sent), collector, cat, lim, now)
		require.Error(t, err, "a batch that may be published would not fit")
	})
}

// ahead is what follows a body: with it numbers are read in the short way, and
// without it in the long one.
var ahead = rapid.SampledFrom([]string{"", readAhead})

func TestIntegersAreTakenExactlyOrNotAtAll(t *testing.T) {
	t.Parallel()
	cat := families(t)
	rapid.Check(t, func(t *rapid.T) {
		number := rapid.StringMatching(`-?(0|[1-9][0-9]{0,21})(\.[0-9]{1,6}0{0,4})?([eE][+-]?[0-9]{1,2})?`).Draw(t, "number")
		b, _, err := jsonpush.Decode(strings.NewReader(body([]string{`{"type": "narrow", "columns": ["v"], "rows": [[` + number + `]]}`})+ahead.Draw(t, "ahead")),
			collector, cat, push.DefaultLimits(), now)
		exact, ok := new(big.Rat).SetString(number)
		require.True(t, ok)
		if exact.IsInt() && exact.Num().IsInt64() {
			require.NoError(t, err)
			tuples := b.Sections[0].Tuples
			require.Equal(t, batch.AppendInt64(nil, exact.Num().Int64()), tuples[len(tuples)-12:])
		} else {
			require.Error(t, err)
		}
	})
}

func TestFloatsAreRoundedOnce(t *testing.T) {
	t.Parallel()
	cat := families(t)
	finite64 := rapid.Float64().Filter(func(v float64) bool { return !math.IsInf(v, 0) && !math.IsNaN(v) })
	finite32 := rapid.Float32().Filter(func(v float32) bool { return !math.IsInf(float64(v), 0) && v == v })
	number := rapid.OneOf(
		rapid.StringMatching(`-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?`),
		rapid.StringMatching(`-?[0-9]\.[0-9]{1,3}`),
		rapid.StringMatching(`0\.0{4,14}[1-9][0-9]{0,5}`),
		rapid.StringMatching(`-?(900719925474099[0-9]|167772[01][0-9])(\.[05]{1,3})?`), // about the last that all fit
		rapid.Map(finite64, func(v float64) string { return encode(v) }),
		rapid.Map(finite32, func(v float32) string { return encode(v) }),
	)
	rapid.Check(t, func(t *rapid.T) {
		s := number.Draw(t, "number")
		for column, bits := range map[string]int{"f8": 64, "f4": 32} {
			b, report, err := jsonpush.Decode(strings.NewReader(body([]string{good, all(column, s)})+ahead.Draw(t, "ahead")),
				collector, cat, push.DefaultLimits(), now)
			require.NoError(t, err)
			v, err := strconv.ParseFloat(s, bits)
			if err != nil {
				require.Len(t, report.Rejected, 1, s)
				continue
			}
			require.Empty(t, report.Rejected, s)
			want := batch.AppendFloat64(nil, v)
			if bits == 32 {
				want = batch.AppendFloat32(nil, float32(v))
			}
			require.Equal(t, want, b.Sections[1].Tuples[len(b.Sections[1].Tuples)-len(want):], s)
		}
	})
}

func TestTimesAreThoseOfTheStandardLibrary(t *testing.T) {
	t.Parallel()
	cat := families(t)
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.StringMatching(`[0-9]{4}-(0[0-9]|1[0-3])-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9](\.[0-9]{1,9})?(Z|[+-][01][0-9]:[0-5][0-9])`).Draw(t, "time")
		b, _, err := jsonpush.Decode(strings.NewReader(body([]string{all("ts", `"`+s+`"`)})), collector, cat, push.DefaultLimits(), now)
		want, wantErr := time.Parse(time.RFC3339Nano, s)
		require.Equal(t, wantErr == nil, err == nil, s)
		if err == nil {
			tuples := b.Sections[0].Tuples
			require.Equal(t, batch.AppendTime(nil, want), tuples[len(tuples)-12:], s)
		}
	})
}
