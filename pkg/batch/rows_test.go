package batch

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/catalogue"
)

// everyType is a section of one row that has a column of every type, and one
// that is null.
func everyType() (Section, []string) {
	id := uuid.MustParse("0190b7a4-4b1c-7c3e-8a7d-0123456789ab")
	at := time.Date(2026, 1, 2, 3, 4, 5, 678_000, time.UTC)
	s := Section{Rows: 1}
	for t := catalogue.Boolean; t <= catalogue.TimestampTZ; t++ {
		s.Columns = append(s.Columns, Column{t.String(), t})
	}
	s.Columns = append(s.Columns, Column{"null", catalogue.Text})
	d := AppendTuple(nil, LeadFields+len(s.Columns), at, id)
	d = AppendBool(d, true)
	d = AppendInt16(d, -2)
	d = AppendInt32(d, -3)
	d = AppendInt64(d, math.MinInt64)
	d = AppendFloat32(d, 1.5)
	d = AppendFloat64(d, -2.25)
	d = AppendText(d, "täxt")
	d = AppendUUID(d, id)
	d = AppendTime(d, at)
	s.Tuples = AppendNull(d)
	stamp := "2026-01-02T03:04:05.000678Z"
	return s, []string{stamp, id.String(), "true", "-2", "-3", "-9223372036854775808", "1.5", "-2.25", "täxt", id.String(), stamp, "NULL"}
}

func typesOf(s Section) []catalogue.Type {
	types := []catalogue.Type{catalogue.TimestampTZ, catalogue.UUID}
	for _, c := range s.Columns {
		types = append(types, c.Type)
	}
	return types
}

func TestEveryValueIsReadBackAsText(t *testing.T) {
	t.Parallel()
	s, want := everyType()
	var got []string
	require.NoError(t, s.EachRow(func(row int, fields [][]byte) error {
		require.Zero(t, row)
		for i, v := range fields {
			if v == nil {
				got = append(got, "NULL")
				continue
			}
			require.Empty(t, ValueFault(typesOf(s)[i], v))
			got = append(got, ValueText(typesOf(s)[i], v))
		}
		return nil
	}))
	require.Equal(t, want, got)
}

func TestAnyPartOfATupleIsNoTuple(t *testing.T) {
	t.Parallel()
	whole, _ := everyType()
	for n := range len(whole.Tuples) {
		s := whole
		s.Tuples = whole.Tuples[:n]
		require.ErrorIs(t, s.EachRow(func(int, [][]byte) error { return nil }), ErrTuples, n)
	}
	more := whole
	more.Tuples = append(slices.Clone(whole.Tuples), 0)
	require.ErrorIs(t, more.EachRow(func(int, [][]byte) error { return nil }), ErrTuples)
	stop := errors.New("enough")
	require.ErrorIs(t, whole.EachRow(func(int, [][]byte) error { return stop }), stop)
}

func TestAValueThatTheDatabaseRefusesIsTold(t *testing.T) {
	t.Parallel()
	int64s := func(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }
	for _, c := range []struct {
		typ  catalogue.Type
		v    []byte
		want string
	}{
		{catalogue.Boolean, []byte{2}, "is neither 0 nor 1 but 2"},
		{catalogue.Integer, []byte{1, 2}, "has 2 bytes, not 4"},
		{catalogue.Real, []byte{0x7f, 0x80, 0, 0}, "is no finite number"},
		{catalogue.DoublePrecision, int64s(math.Float64bits(math.NaN())), "is no finite number"},
		{catalogue.Text, []byte("a\x00b"), "has a NUL at byte 1"},
		{catalogue.Text, []byte("ä\xff"), "is not UTF-8 at byte 2"},
		{catalogue.Text, []byte("\ufffd"), ""},
		{catalogue.TimestampTZ, int64s(math.MaxInt64), "is no time that can be stored"},
		{catalogue.TimestampTZ, int64s(1 << 63), "is no time that can be stored"},
		{catalogue.TimestampTZ, int64s(0), ""},
		{catalogue.UUID, make([]byte, 15), "has 15 bytes, not 16"},
	} {
		require.Equal(t, c.want, ValueFault(c.typ, c.v), "%s %x", c.typ, c.v)
	}
	require.Equal(t, `"a\x00b"`, ValueText(catalogue.Text, []byte("a\x00b")))
	require.Equal(t, `\x0102`, ValueText(catalogue.Integer, []byte{1, 2}))
	require.Equal(t, "infinity", ValueText(catalogue.TimestampTZ, int64s(math.MaxInt64)))
}

// What is read as rows and written again is the same bytes.
func FuzzEachRow(f *testing.F) {
	s, _ := everyType()
	f.Add(s.Tuples, uint8(len(s.Columns)), uint8(1))
	f.Add(s.Tuples[:len(s.Tuples)-1], uint8(len(s.Columns)), uint8(1))
	f.Add([]byte(strings.Repeat("\xff", 40)), uint8(0), uint8(2))
	f.Fuzz(func(t *testing.T, tuples []byte, columns, rows uint8) {
		s := Section{Rows: int(rows), Tuples: tuples}
		for i := range columns {
			s.Columns = append(s.Columns, Column{"c", catalogue.Type(i%9 + 1)})
		}
		var again []byte
		err := s.EachRow(func(_ int, fields [][]byte) error {
			again = binary.BigEndian.AppendUint16(again, uint16(len(fields)))
			for i, v := range fields {
				if v == nil {
					again = AppendNull(again)
					continue
				}
				_, _ = ValueFault(typesOf(s)[i], v), ValueText(typesOf(s)[i], v)
				again = AppendText(again, v)
			}
			return nil
		})
		if err != nil {
			require.ErrorIs(t, err, ErrTuples)
			return
		}
		require.Equal(t, string(tuples), string(again))
	})
}
