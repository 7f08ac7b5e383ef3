package native_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/batchpb"
	"pganalytics/pkg/batch/jsonpush"
	"pganalytics/pkg/batch/native"
	"pganalytics/pkg/batch/push"
)

func TestABodyBecomesASealedBatch(t *testing.T) {
	t.Parallel()
	p := sample(narrowRows(t, 3), section(t, "all_types", "db2", everyName, everyType("", nil),
		everyType("s", batch.AppendNull), everyType("k", func(dst []byte) []byte { return batch.AppendText(dst, "") })))
	p.Epoch, p.Sequence = v7(now, 2), 1
	p.Previous = batch.Mark{Epoch: v7(now, 3), Sequence: 41}
	p.Labels = []batch.Label{{Name: "zone", Value: "a"}, {Name: "env", Value: "prod"}}
	p.Sections = append(p.Sections, section(t, "narrow", "db3", []string{"series"})) // without rows
	p.Sections[0].MinTime, p.Sections[0].MaxTime = time.Unix(0, 0), now.Add(999*time.Hour)

	b, report, err := decode(t, p.Append(nil))
	require.NoError(t, err)
	want := &batch.Batch{
		CollectorID: collector, ID: p.BatchID, SentAt: now.Add(-time.Second).Truncate(time.Millisecond),
		Epoch: p.Epoch, Sequence: 1, Previous: p.Previous, Labels: []batch.Label{{Name: "env", Value: "prod"}, {Name: "zone", Value: "a"}},
		Sections: p.Sections[:2:2], ReceivedAt: now.Truncate(time.Microsecond),
	}
	want.Sections[0].MinTime, want.Sections[0].MaxTime = sampled, sampled // what is there, not what was said
	want.Seal()
	require.Equal(t, want, b)
	require.Equal(t, &push.Report{
		ItemsAccepted: 3, RowsAccepted: 6, Rejected: []push.Rejection{}, ItemCount: 3, Hostname: "db1", Version: "1.0",
	}, report)
}

func TestTimesOfRowsAreFoundByTheirTuples(t *testing.T) {
	t.Parallel()
	s := section(t, "narrow", "db1", []string{"series"})
	times := []time.Time{sampled.Add(-time.Hour), sampled.Add(-2 * time.Hour), sampled}
	for _, at := range times {
		s.Tuples = batch.AppendInt32(batch.AppendTuple(s.Tuples, 3, at, s.ServerID), 1)
		s.Rows++
	}
	b, _, err := decode(t, sample(s).Append(nil))
	require.NoError(t, err)
	require.Equal(t, times[1], b.Sections[0].MinTime)
	require.Equal(t, times[2], b.Sections[0].MaxTime)
}

func TestColumnsMayBeSomeOfTheFamilysInAnyOrder(t *testing.T) {
	t.Parallel()
	s := section(t, "all_types", "db1", []string{"i8", "n", "k"}, func(dst []byte) []byte {
		return batch.AppendText(batch.AppendInt32(batch.AppendNull(dst), 3), "key")
	})
	b, _, err := decode(t, sample(s).Append(nil))
	require.NoError(t, err)
	require.Equal(t, []batch.Section{s}, b.Sections)
}

func TestNumbersThatWereRefusedComePackedOrNot(t *testing.T) {
	t.Parallel()
	p := sample()
	p.Epoch, p.Sequence, p.Refused = v7(now, 2), 9, []uint64{3, 8}
	packed := p.Append(nil)
	p.Refused = nil
	unpacked := append(p.Append(nil), 8<<3, 3, 8<<3, 8) // field 8 as a varint, twice
	for _, body := range [][]byte{packed, unpacked} {
		b, report, err := decode(t, body)
		require.NoError(t, err, "a numbered batch may be empty")
		require.Equal(t, []uint64{3, 8}, b.Refused)
		require.Zero(t, report.ItemsAccepted)
	}
}

func TestTheOrderOfFieldsDoesNotMatter(t *testing.T) {
	t.Parallel()
	p := sample(narrowRows(t, 2))
	want, _, err := decode(t, p.Append(nil))
	require.NoError(t, err)
	head := sample()
	sections, err := proto.Marshal(&batchpb.PushRequest{SectionCount: 1, Sections: message(p).Sections})
	require.NoError(t, err)
	got, _, err := decode(t, append(sections, head.Append(nil)...))
	require.NoError(t, err)
	require.Equal(t, want, got)
}

// What both forms can say means the same in both: the same batch under the same
// id has the same digest, so a sender may change from one to the other.
func TestBothFormsMakeTheSameBatch(t *testing.T) {
	t.Parallel()
	cat := families(t)
	text := rapid.StringOf(rapid.RuneFrom([]rune("ab\"\\é€𝄞 \n")))
	rapid.Check(t, func(t *rapid.T) {
		s := batch.Section{
			Family: "all_types", Server: "db1", ServerID: batch.ServerID(collector, "db1"),
			Columns: columnsOf(cat, "all_types", "s", "k", "i8", "n", "f8"), Rows: rapid.IntRange(1, 20).Draw(t, "rows"),
		}
		var rows []string
		for range s.Rows {
			at := sampled.Add(time.Duration(rapid.IntRange(-1e9, 1e6).Draw(t, "at")) * time.Microsecond)
			content, key := text.Draw(t, "s"), text.Draw(t, "k")
			big, small := rapid.Int64().Draw(t, "i8"), rapid.Int32().Draw(t, "n")
			float := rapid.Float64Range(-1e300, 1e300).Draw(t, "f8")
			s.Tuples = batch.AppendText(batch.AppendTuple(s.Tuples, 7, at, s.ServerID), content)
			s.Tuples = batch.AppendInt64(batch.AppendText(s.Tuples, key), big)
			s.Tuples = batch.AppendFloat64(batch.AppendInt32(s.Tuples, small), float)
			rows = append(rows, fmt.Sprintf("[%q,%s,%s,%d,%d,%s]", at.Format(time.RFC3339Nano), quoted(content), quoted(key), big, small, number(float)))
		}
		p := sample(s)
		got, _, err := native.Decode(bytes.NewReader(p.Append(nil)), collector, cat, push.DefaultLimits(), now)
		require.NoError(t, err)
		body := fmt.Sprintf(`{"collector_id":%q,"hostname":"db1","timestamp":"2026-03-04T05:06:00Z","version":"1.0","batch_id":%q,"metrics_count":1,`+
			`"metrics":[{"type":"all_types","server":"db1","columns":["time","s","k","i8","n","f8"],"rows":[%s]}]}`,
			collector, p.BatchID, strings.Join(rows, ","))
		want, _, err := jsonpush.Decode(strings.NewReader(body), collector, cat, push.DefaultLimits(), now)
		require.NoError(t, err)
		require.Equal(t, want, got)
	})
}

// The batch has one copy of its body, of just the body's size, and its tuples
// lie in it.
func TestTheTuplesArePartsOfTheBody(t *testing.T) {
	t.Parallel()
	for _, rows := range []int{100, 20_000} {
		sent := sample(narrowRows(t, rows), narrowRows(t, 1)).Append(nil)
		body, size := &heldBody{r: bytes.NewReader(sent)}, len(sent)
		b, _, err := native.Decode(body, collector, families(t), push.DefaultLimits(), now)
		require.NoError(t, err)
		first, second := b.Sections[0].Tuples, b.Sections[1].Tuples
		require.Equal(t, len(first), cap(first), "nobody appends into the next one")
		apart := bytes.LastIndex(sent, second) - bytes.Index(sent, first)
		require.EqualValues(t, apart, uintptr(unsafe.Pointer(&second[0]))-uintptr(unsafe.Pointer(&first[0])))
		if rows == 100 {
			require.Zero(t, body.held, "a usual body is booked as it comes, and what is used again with its request")
		} else {
			require.InDelta(t, size, body.held, 64<<10, "of a large body the copy is told as well")
		}
	}
}

// The memory that bodies are read into is used again; a batch has its own.
func TestABatchDoesNotChangeWithTheNextBody(t *testing.T) { // not parallel: others would take the memory
	first, _, err := decode(t, sample(narrowRows(t, 100)).Append(nil))
	require.NoError(t, err)
	for range 10 {
		_, _, err := decode(t, sample(section(t, "all_types", "db2", everyName, everyType("", nil))).Append(nil))
		require.NoError(t, err)
	}
	require.True(t, first.Intact())
}

func TestABodyThatMayNotGrowIsGivenUp(t *testing.T) {
	t.Parallel()
	full := errors.New("full")
	body := &heldBody{r: bytes.NewReader(sample(narrowRows(t, 20_000)).Append(nil)), refuse: full}
	_, _, err := native.Decode(body, collector, families(t), push.DefaultLimits(), now)
	require.ErrorIs(t, err, full)
	require.Positive(t, body.r.Len(), "it was not read on")
}

// heldBody is a push.Holder.
type heldBody struct {
	r      *bytes.Reader
	held   int
	refuse error
}

func (b *heldBody) Read(p []byte) (int, error) { return b.r.Read(p) }
func (b *heldBody) Hold(n int) error           { b.held += n; return b.refuse }

func TestFiniteExtremesAreAccepted(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]func([]byte) []byte{
		"f8": func(dst []byte) []byte { return batch.AppendFloat64(dst, math.MaxFloat64) },
		"f4": func(dst []byte) []byte { return batch.AppendFloat32(dst, -math.MaxFloat32) },
		"i8": func(dst []byte) []byte { return batch.AppendInt64(dst, math.MinInt64) },
		"k":  func(dst []byte) []byte { return batch.AppendText(dst, strings.Repeat("é", 1000)) },
		"s":  func(dst []byte) []byte { return batch.AppendText(dst, strings.Repeat("x", 1<<20)) },
		"ts": func(dst []byte) []byte { return batch.AppendTime(dst, time.Date(-4712, 1, 1, 0, 0, 0, 0, time.UTC)) },
	} {
		_, _, err := decode(t, sample(section(t, "all_types", "db1", everyName, everyType(name, f))).Append(nil))
		require.NoError(t, err, name)
	}
}
