package native_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/batchpb"
	"pganalytics/pkg/batch/native"
	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/fault"
)

func TestAFaultOfTheMessageRefusesTheBody(t *testing.T) {
	t.Parallel()
	id := func(u uuid.UUID) []byte { return u[:] }
	valid := sample(narrowRows(t, 2)).Append(nil)
	another := narrowRows(t, 1)
	labels := make([]*batchpb.Label, 65)
	for i := range labels {
		labels[i] = &batchpb.Label{Name: fmt.Sprint("l", i)}
	}
	numbered := func(m *batchpb.PushRequest) { m.Epoch, m.Sequence = id(v7(now, 2)), 3 }
	for name, test := range map[string]struct {
		body    []byte
		class   fault.Class
		code    string
		pointer string
	}{
		"empty":                 {nil, fault.Invalid, "member_missing", "/collector_id"},
		"JSON":                  {[]byte(`{"collector_id": 1}`), fault.Invalid, "protobuf_invalid", ""},
		"cut within a section":  {valid[:len(valid)-1], fault.Invalid, "protobuf_invalid", ""},
		"cut before sections":   {changed(t, func(m *batchpb.PushRequest) { m.Sections = nil }), fault.Invalid, "section_count_mismatch", "/section_count"},
		"a section too many":    {batch.AppendSection(slices.Clone(valid), 11, &another), fault.Invalid, "section_count_mismatch", "/section_count"},
		"no count":              {changed(t, func(m *batchpb.PushRequest) { m.SectionCount = 0 }), fault.Invalid, "section_count_mismatch", "/section_count"},
		"unknown field":         {protowire.AppendVarint(protowire.AppendTag(slices.Clone(valid), 12, protowire.VarintType), 1), fault.Invalid, "unknown_member", ""},
		"field of another type": {protowire.AppendVarint(protowire.AppendTag(slices.Clone(valid), 3, protowire.VarintType), 1), fault.Invalid, "unknown_member", ""},
		"field twice":           {protowire.AppendString(protowire.AppendTag(slices.Clone(valid), 3, protowire.BytesType), "2"), fault.Invalid, "duplicate_name", ""},
		"no collector":          {changed(t, func(m *batchpb.PushRequest) { m.CollectorId = nil }), fault.Invalid, "member_missing", "/collector_id"},
		"short collector":       {changed(t, func(m *batchpb.PushRequest) { m.CollectorId = m.CollectorId[1:] }), fault.Invalid, "collector_id_invalid", "/collector_id"},
		"another's collector":   {changed(t, func(m *batchpb.PushRequest) { m.CollectorId[0]++ }), fault.Forbidden, "collector_id_mismatch", "/collector_id"},
		"no hostname":           {changed(t, func(m *batchpb.PushRequest) { m.Hostname = "" }), fault.Invalid, "member_missing", "/hostname"},
		"hostname":              {changed(t, func(m *batchpb.PushRequest) { m.Hostname = "a\nb" }), fault.Invalid, "hostname_invalid", "/hostname"},
		"long version":          {changed(t, func(m *batchpb.PushRequest) { m.Version = strings.Repeat("1", 256) }), fault.Invalid, "version_invalid", "/version"},
		"no id":                 {changed(t, func(m *batchpb.PushRequest) { m.BatchId = nil }), fault.Invalid, "member_missing", "/batch_id"},
		"long id":               {changed(t, func(m *batchpb.PushRequest) { m.BatchId = append(m.BatchId, 0) }), fault.Invalid, "batch_id_invalid", "/batch_id"},
		"id of version 4":       {changed(t, func(m *batchpb.PushRequest) { m.BatchId = id(uuid.New()) }), fault.Invalid, "batch_id_invalid", "/batch_id"},
		"too old":               {changed(t, func(m *batchpb.PushRequest) { m.BatchId = id(v7(now.Add(-31*24*time.Hour), 1)) }), fault.Invalid, "batch_too_old", ""},
		"ahead":                 {changed(t, func(m *batchpb.PushRequest) { m.BatchId = id(v7(now.Add(11*time.Minute), 1)) }), fault.Unprocessable, "clock_skew", ""},
		"epoch alone":           {changed(t, func(m *batchpb.PushRequest) { m.Epoch = id(v7(now, 2)) }), fault.Invalid, "numbering_invalid", "/sequence"},
		"sequence alone":        {changed(t, func(m *batchpb.PushRequest) { m.Sequence = 1 }), fault.Invalid, "numbering_invalid", "/sequence"},
		"sequence over bigint":  {changed(t, func(m *batchpb.PushRequest) { numbered(m); m.Sequence = 1 << 63 }), fault.Invalid, "numbering_invalid", "/sequence"},
		"short epoch":           {changed(t, func(m *batchpb.PushRequest) { numbered(m); m.Epoch = m.Epoch[1:] }), fault.Invalid, "numbering_invalid", "/epoch"},
		"previous late": {changed(t, func(m *batchpb.PushRequest) {
			numbered(m)
			m.Previous = &batchpb.Mark{Epoch: id(v7(now, 9)), Sequence: 7}
		}), fault.Invalid, "numbering_invalid", "/previous"},
		"previous without epoch": {changed(t, func(m *batchpb.PushRequest) {
			numbered(m)
			m.Sequence, m.Previous = 1, &batchpb.Mark{Sequence: 7}
		}), fault.Invalid, "numbering_invalid", "/previous"},
		"refused alone":     {changed(t, func(m *batchpb.PushRequest) { m.Refused = []uint64{1} }), fault.Invalid, "numbering_invalid", "/epoch"},
		"refused not below": {changed(t, func(m *batchpb.PushRequest) { numbered(m); m.Refused = []uint64{3} }), fault.Invalid, "numbering_invalid", "/refused"},
		"refused cut":       {append(slices.Clone(valid), 8<<3|2, 1, 0x80), fault.Invalid, "protobuf_invalid", "/refused"},
		"refused too many":  {changed(t, func(m *batchpb.PushRequest) { numbered(m); m.Refused = slices.Repeat([]uint64{1}, 1001) }), fault.Invalid, "numbering_invalid", "/refused"},
		"too many labels":   {changed(t, func(m *batchpb.PushRequest) { m.Labels = labels }), fault.Invalid, "labels_invalid", "/labels"},
		"label's name":      {changed(t, func(m *batchpb.PushRequest) { m.Labels = []*batchpb.Label{{Name: "a-b"}} }), fault.Invalid, "labels_invalid", "/labels"},
		"label's value":     {changed(t, func(m *batchpb.PushRequest) { m.Labels = []*batchpb.Label{{Name: "a", Value: "\x00"}} }), fault.Invalid, "labels_invalid", "/labels"},
		"label twice":       {changed(t, func(m *batchpb.PushRequest) { m.Labels = []*batchpb.Label{{Name: "a"}, {Name: "a"}} }), fault.Invalid, "duplicate_name", "/labels"},
		"label not UTF-8":   {append(slices.Clone(valid), "\x4a\x06\x0a\x01a\x12\x01\xff"...), fault.Invalid, "labels_invalid", "/labels"},
		"label of more":     {append(slices.Clone(valid), "\x4a\x05\x0a\x01a\x18\x01"...), fault.Invalid, "unknown_member", "/labels"},
		"nothing":           {sample().Append(nil), fault.Invalid, "metrics_empty", "/sections"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, report, err := decode(t, test.body)
			require.Nil(t, b)
			require.Nil(t, report)
			requireFault(t, err, test.class, test.code, test.pointer)
		})
	}
}

func requireFault(t *testing.T, err error, class fault.Class, code, pointer string) {
	t.Helper()
	e, ok := errors.AsType[*fault.Error](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, class, fault.ClassOf(err), "%v", err)
	require.Equal(t, code, e.Code)
	if pointer != "" {
		require.Equal(t, pointer, e.Fields[0].Pointer)
	}
}

func TestLimitsRefuseTheBody(t *testing.T) {
	t.Parallel()
	body := sample(narrowRows(t, 60), narrowRows(t, 40)).Append(nil)
	for _, test := range map[string]struct {
		limit func(l *push.Limits)
		code  string
	}{
		"body":          {func(l *push.Limits) { l.MaxBodyBytes = int64(len(body)) - 1 }, "body_too_large"},
		"batch":         {func(l *push.Limits) { l.MaxEncodedBytes = len(body) - 1 }, "batch_too_large"},
		"batch by far":  {func(l *push.Limits) { l.MaxEncodedBytes = 100 }, "batch_too_large"},
		"sections":      {func(l *push.Limits) { l.MaxItems = 1 }, "too_many_items"},
		"rows":          {func(l *push.Limits) { l.MaxRows = 99 }, "too_many_rows"},
		"none of these": {func(*push.Limits) {}, ""},
	} {
		lim := push.DefaultLimits()
		test.limit(&lim)
		_, _, err := native.Decode(bytes.NewReader(body), collector, families(t), lim, now)
		if test.code == "" {
			require.NoError(t, err)
			continue
		}
		requireFault(t, err, fault.TooLarge, test.code, "")
	}
}

// What no batch has room for is not read to its end, wherever in the body it is.
func TestABodyThatHoldsMoreThanABatchIsNotHeld(t *testing.T) {
	t.Parallel()
	lim := push.DefaultLimits()
	lim.MaxEncodedBytes = 512 << 10
	unknown := narrowRows(t, 100_000)
	unknown.Family = "unknown"
	body := &heldBody{r: bytes.NewReader(sample(narrowRows(t, 1), unknown).Append(nil))}
	_, _, err := native.Decode(body, collector, families(t), lim, now)
	requireFault(t, err, fault.TooLarge, "batch_too_large", "/sections")
	require.Greater(t, body.r.Len(), 4<<20, "the rest is not read")
	require.Less(t, body.held, 1<<20)
}

// A body that did not arrive must not be refused for good.
func TestAFailedReadIsNoFaultOfTheBody(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	valid := sample(narrowRows(t, 2)).Append(nil)
	for _, body := range [][]byte{nil, valid[:100], valid} {
		r := iotest.DataErrReader(bytes.NewReader(body))
		_, _, err := native.Decode(&brokenEnd{r, broken}, collector, families(t), push.DefaultLimits(), now)
		require.ErrorIs(t, err, broken)
	}
}

func TestAReaderThatGivesNothingIsGivenUp(t *testing.T) {
	t.Parallel()
	_, _, err := native.Decode(idle{}, collector, families(t), push.DefaultLimits(), now)
	require.ErrorIs(t, err, io.ErrNoProgress)
}

type idle struct{}

func (idle) Read([]byte) (int, error) { return 0, nil }

// brokenEnd fails where its reader ends.
type brokenEnd struct {
	r   interface{ Read([]byte) (int, error) }
	err error
}

func (b *brokenEnd) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil {
		err = b.err
	}
	return n, err
}

// bad is a section that is refused beside good ones.
type bad struct {
	change        func(t *testing.T, s *batch.Section)
	code, pointer string
}

func requireRefused(t *testing.T, tests map[string]bad) {
	t.Helper()
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			faulty := section(t, "all_types", "db1", everyName, everyType("", nil), everyType("", nil))
			test.change(t, &faulty)
			before, behind := narrowRows(t, 2), narrowRows(t, 3)
			b, report, err := decode(t, sample(before, faulty, behind).Append(nil))
			require.NoError(t, err)
			require.Equal(t, []batch.Section{before, behind}, b.Sections, "nothing of the refused one is in the batch")
			require.True(t, b.Intact())
			require.Equal(t, 2, report.ItemsAccepted)
			require.Equal(t, 5, report.RowsAccepted)
			require.Len(t, report.Rejected, 1)
			got := report.Rejected[0]
			require.NotEmpty(t, got.Reason)
			require.Equal(t, 1, got.Index)
			require.Equal(t, []string{test.code, "/sections/1" + test.pointer}, []string{got.Code, got.Pointer})

			b, report, err = decode(t, sample(faulty).Append(nil))
			requireFault(t, err, fault.Invalid, "nothing_accepted", "/sections/0"+test.pointer)
			require.Nil(t, b)
			require.Len(t, report.Rejected, 1)
		})
	}
}

func TestASectionThatIsNotTheCataloguesIsRefusedAlone(t *testing.T) {
	t.Parallel()
	set := func(f func(s *batch.Section)) func(*testing.T, *batch.Section) {
		return func(_ *testing.T, s *batch.Section) { f(s) }
	}
	requireRefused(t, map[string]bad{
		"unknown family":    {set(func(s *batch.Section) { s.Family = "unknown" }), "unknown_family", "/family"},
		"no family":         {set(func(s *batch.Section) { s.Family = "" }), "unknown_family", "/family"},
		"no server":         {set(func(s *batch.Section) { s.Server = "" }), "server_invalid", "/server"},
		"server's name":     {set(func(s *batch.Section) { s.Server = "a\tb" }), "server_invalid", "/server"},
		"server not UTF-8":  {set(func(s *batch.Section) { s.Server = "a\xffb" }), "server_invalid", "/server"},
		"another's server":  {set(func(s *batch.Section) { s.ServerID = batch.ServerID(uuid.New(), "db1") }), "server_id_mismatch", "/server_id"},
		"another name":      {set(func(s *batch.Section) { s.Server = "db2" }), "server_id_mismatch", "/server_id"},
		"no columns":        {set(func(s *batch.Section) { s.Columns = nil }), "columns_invalid", "/columns"},
		"unknown column":    {set(func(s *batch.Section) { s.Columns[3].Name = "x" }), "unknown_column", "/columns/3/name"},
		"time as a column":  {set(func(s *batch.Section) { s.Columns[3].Name = "time" }), "unknown_column", "/columns/3/name"},
		"column twice":      {set(func(s *batch.Section) { s.Columns[3].Name = "k" }), "duplicate_column", "/columns/3/name"},
		"another type":      {set(func(s *batch.Section) { s.Columns[5].Type = s.Columns[7].Type }), "wrong_type", "/columns/5/type"},
		"no type":           {set(func(s *batch.Section) { s.Columns[5].Type = 0 }), "wrong_type", "/columns/5/type"},
		"key missing":       {set(func(s *batch.Section) { s.Columns = s.Columns[1:] }), "key_missing", "/columns"},
		"fewer columns":     {set(func(s *batch.Section) { s.Columns = s.Columns[:10] }), "wrong_arity", "/tuples/0"},
		"fewer rows":        {set(func(s *batch.Section) { s.Rows-- }), "rows_mismatch", "/rows"},
		"more rows":         {set(func(s *batch.Section) { s.Rows++ }), "rows_mismatch", "/rows"},
		"rows without end":  {set(func(s *batch.Section) { s.Rows = math.MaxInt }), "rows_mismatch", "/rows"},
		"rows but no tuple": {set(func(s *batch.Section) { s.Tuples = nil }), "rows_mismatch", "/rows"},
	})
}

func TestASectionThatIsMoreThanItselfIsRefusedAlone(t *testing.T) {
	t.Parallel()
	unknown := func(section []byte) []byte { return append(section, 10<<3, 1) }
	for name, test := range map[string]struct {
		code   string
		change func(section []byte) []byte
	}{
		"packed":         {"unknown_member", func(s []byte) []byte { return protowire.AppendBytes(append(s, 9<<3|2), []byte{1, 0, 0}) }},
		"unknown field":  {"unknown_member", unknown},
		"tuples twice":   {"duplicate_name", func(s []byte) []byte { return append(s, 8<<3|2, 0) }},
		"not a message":  {"protobuf_invalid", func([]byte) []byte { return []byte{0xff} }},
		"column of more": {"unknown_member", func(s []byte) []byte { return protowire.AppendBytes(append(s, 4<<3|2), unknown(nil)) }},
	} {
		good := narrowRows(t, 2)
		whole := batch.AppendSection(nil, 11, &good)
		content, n := protowire.ConsumeBytes(whole[1:])
		require.Equal(t, len(whole)-1, n)
		p := sample(good)
		body := p.Append(nil)
		body[len(body)-len(whole)-1] = 2 // section_count
		b, report, err := decode(t, protowire.AppendBytes(append(body, 11<<3|2), test.change(slices.Clone(content))))
		require.NoError(t, err, name)
		require.Equal(t, []batch.Section{good}, b.Sections, name)
		require.Equal(t, test.code, report.Rejected[0].Code, name)
		require.Equal(t, 1, report.Rejected[0].Index, name)
	}
}

// second returns where the second of two equal tuples begins.
func second(s *batch.Section) []byte { return s.Tuples[len(s.Tuples)/2:] }

// withValue makes the named field of the second row what f appends.
func withValue(name string, f func(dst []byte) []byte) func(*testing.T, *batch.Section) {
	return func(t *testing.T, s *batch.Section) {
		*s = section(t, "all_types", "db1", everyName, everyType("", nil), everyType(name, f))
	}
}

func raw(size int32, v string) func([]byte) []byte {
	return func(dst []byte) []byte { return append(binary.BigEndian.AppendUint32(dst, uint32(size)), v...) }
}

func TestASectionWithABrokenTupleIsRefusedAlone(t *testing.T) {
	t.Parallel()
	patch := func(at int, with ...byte) func(*testing.T, *batch.Section) {
		return func(_ *testing.T, s *batch.Section) { copy(second(s)[at:], with) }
	}
	cut := func(n int) func(*testing.T, *batch.Section) {
		return func(_ *testing.T, s *batch.Section) { s.Tuples = s.Tuples[:len(s.Tuples)/2+n] }
	}
	foreign := batch.ServerID(uuid.New(), "db1")
	requireRefused(t, map[string]bad{
		"too many fields":             {patch(0, 0, 14), "wrong_arity", "/tuples/1"},
		"too few fields":              {patch(0, 0, 12), "wrong_arity", "/tuples/1"},
		"COPY's trailer":              {func(_ *testing.T, s *batch.Section) { s.Tuples = append(s.Tuples, batch.CopyTrailer...) }, "wrong_arity", "/tuples/2"},
		"a byte behind":               {func(_ *testing.T, s *batch.Section) { s.Tuples = append(s.Tuples, 0) }, "tuples_malformed", "/tuples/2"},
		"cut in its time":             {cut(10), "tuples_malformed", "/tuples/1"},
		"cut in its server":           {cut(33), "tuples_malformed", "/tuples/1"},
		"cut behind its server":       {cut(34), "tuples_malformed", "/tuples/1/2"},
		"cut in a length":             {cut(37), "tuples_malformed", "/tuples/1/2"},
		"cut in a text":               {cut(40), "tuples_malformed", "/tuples/1/2"},
		"cut in a number":             {cut(34 + 4 + 25 + 4 + 3), "tuples_malformed", "/tuples/1/3"},
		"time NULL":                   {patch(2, 0xff, 0xff, 0xff, 0xff), "wrong_type", "/tuples/1/0"},
		"time of 4 bytes":             {patch(2, 0, 0, 0, 4), "wrong_type", "/tuples/1/0"},
		"time infinite":               {patch(6, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), "time_out_of_range", "/tuples/1/0"},
		"time minus infinite":         {patch(6, 0x80, 0, 0, 0, 0, 0, 0, 0), "time_out_of_range", "/tuples/1/0"},
		"time before retention":       {patch(6, batch.AppendTime(nil, now.Add(-30*24*time.Hour-2*time.Second))[4:]...), "time_out_of_range", "/tuples/1/0"},
		"time ahead":                  {patch(6, batch.AppendTime(nil, now.Add(10*time.Minute))[4:]...), "time_out_of_range", "/tuples/1/0"},
		"server of another collector": {patch(18, foreign[:]...), "server_id_mismatch", "/tuples/1/1"},
		"server of another name":      {patch(18, id16(batch.ServerID(collector, "db2"))...), "server_id_mismatch", "/tuples/1/1"},
		"server NULL":                 {patch(14, 0xff, 0xff, 0xff, 0xff), "server_id_mismatch", "/tuples/1/1"},
	})
}

func id16(u uuid.UUID) []byte { return u[:] }

func TestASectionWithABadValueIsRefusedAlone(t *testing.T) {
	t.Parallel()
	float64s := func(f float64) func([]byte) []byte {
		return func(dst []byte) []byte { return batch.AppendFloat64(dst, f) }
	}
	float32s := func(f float64) func([]byte) []byte {
		return func(dst []byte) []byte { return batch.AppendFloat32(dst, float32(f)) }
	}
	requireRefused(t, map[string]bad{
		"key NULL":              {withValue("k", batch.AppendNull), "null_not_allowed", "/tuples/1/2"},
		"second key NULL":       {withValue("n", batch.AppendNull), "null_not_allowed", "/tuples/1/3"},
		"key long":              {withValue("k", raw(2001, strings.Repeat("x", 2001))), "key_too_long", "/tuples/1/2"},
		"text long":             {withValue("s", raw(1<<20+1, strings.Repeat("x", 1<<20+1))), "text_too_long", "/tuples/1/10"},
		"NUL":                   {withValue("s", raw(3, "a\x00b")), "nul_character", "/tuples/1/10"},
		"NUL in eight":          {withValue("s", raw(16, "0123456789a\x00cdef")), "nul_character", "/tuples/1/10"},
		"NUL behind UTF-8":      {withValue("s", raw(3, "é\x00")), "nul_character", "/tuples/1/10"},
		"NUL in a key":          {withValue("k", raw(1, "\x00")), "nul_character", "/tuples/1/2"},
		"not UTF-8":             {withValue("s", raw(2, "a\xff")), "invalid_utf8", "/tuples/1/10"},
		"not UTF-8 in eight":    {withValue("s", raw(9, "abcdefg\x80i")), "invalid_utf8", "/tuples/1/10"},
		"surrogate":             {withValue("s", raw(3, "\xed\xa0\x80")), "invalid_utf8", "/tuples/1/10"},
		"cut UTF-8":             {withValue("s", raw(1, "\xc3")), "invalid_utf8", "/tuples/1/10"},
		"overlong UTF-8":        {withValue("s", raw(2, "\xc0\xaf")), "invalid_utf8", "/tuples/1/10"},
		"boolean of 2":          {withValue("b", raw(1, "\x02")), "wrong_type", "/tuples/1/4"},
		"boolean of two bytes":  {withValue("b", raw(2, "\x00\x01")), "wrong_type", "/tuples/1/4"},
		"boolean of none":       {withValue("b", raw(0, "")), "wrong_type", "/tuples/1/4"},
		"smallint of 4 bytes":   {withValue("i2", raw(4, "\x00\x00\x00\x01")), "wrong_type", "/tuples/1/5"},
		"integer of 8 bytes":    {withValue("i4", raw(8, "\x00\x00\x00\x00\x00\x00\x00\x01")), "wrong_type", "/tuples/1/6"},
		"bigint of 4 bytes":     {withValue("i8", raw(4, "\x00\x00\x00\x01")), "wrong_type", "/tuples/1/7"},
		"real of 8 bytes":       {withValue("f4", float64s(1)), "wrong_type", "/tuples/1/8"},
		"real no number":        {withValue("f4", float32s(math.NaN())), "number_out_of_range", "/tuples/1/8"},
		"real infinite":         {withValue("f4", float32s(math.Inf(-1))), "number_out_of_range", "/tuples/1/8"},
		"double of 4 bytes":     {withValue("f8", float32s(1)), "wrong_type", "/tuples/1/9"},
		"double no number":      {withValue("f8", float64s(math.NaN())), "number_out_of_range", "/tuples/1/9"},
		"double infinite":       {withValue("f8", float64s(math.Inf(1))), "number_out_of_range", "/tuples/1/9"},
		"uuid of 15 bytes":      {withValue("u", raw(15, "0123456789abcde")), "wrong_type", "/tuples/1/11"},
		"time infinite":         {withValue("ts", raw(8, "\x7f\xff\xff\xff\xff\xff\xff\xff")), "invalid_time", "/tuples/1/12"},
		"time minus infinite":   {withValue("ts", raw(8, "\x80\x00\x00\x00\x00\x00\x00\x00")), "invalid_time", "/tuples/1/12"},
		"length of minus two":   {withValue("s", raw(-2, "")), "tuples_malformed", "/tuples/1/10"},
		"least length":          {withValue("s", raw(math.MinInt32, "")), "tuples_malformed", "/tuples/1/10"},
		"length without end":    {withValue("i8", raw(math.MaxInt32, "")), "tuples_malformed", "/tuples/1/7"},
		"length beyond the end": {withValue("ts", raw(8, "\x00\x00\x00")), "tuples_malformed", "/tuples/1/12"},
	})
}
