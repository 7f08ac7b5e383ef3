package pgread

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/catalogue"
)

func TestValuesThatJSONCannotSayAreSentAsNull(t *testing.T) {
	t.Parallel()
	f8 := func(v float64) []byte { return binary.BigEndian.AppendUint64(nil, math.Float64bits(v)) }
	i8 := func(v int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(v)) }
	for _, c := range []struct {
		t    catalogue.Type
		v    []byte
		want string
		what repair
	}{
		{catalogue.DoublePrecision, f8(math.NaN()), "null", nulled},
		{catalogue.DoublePrecision, f8(math.Inf(-1)), "null", nulled},
		{catalogue.DoublePrecision, f8(1e300), "1e+300", asIs},
		{catalogue.Real, binary.BigEndian.AppendUint32(nil, math.Float32bits(0.1)), "0.1", asIs},
		{catalogue.TimestampTZ, i8(math.MaxInt64), "null", nulled},
		{catalogue.TimestampTZ, i8(math.MinInt64), "null", nulled},
		{catalogue.TimestampTZ, i8(0), `"2000-01-01T00:00:00.000000Z"`, asIs},
		{catalogue.BigInt, i8(1 << 53), "9007199254740992", asIs},
		{catalogue.BigInt, i8(1<<53 + 1), `"9007199254740993"`, asIs},
		{catalogue.BigInt, i8(math.MinInt64), `"-9223372036854775808"`, asIs},
		{catalogue.Text, []byte("a\xffb\x00c"), `"a` + "\uFFFD" + `bc"`, repaired},
		{catalogue.Text, []byte{}, `""`, asIs},
		{catalogue.Text, nil, "null", asIs},
	} {
		got, what, err := appendValue(nil, c.t, c.v)
		require.NoError(t, err)
		require.Equal(t, c.want, string(got))
		require.Equal(t, c.what, what)
	}
	_, _, err := appendValue(nil, catalogue.Integer, []byte{1})
	require.Error(t, err)
}

// FuzzValue promises: no bytes make appendValue panic, and what it accepts is
// valid JSON.
func FuzzValue(f *testing.F) {
	for t := catalogue.Boolean; t <= catalogue.TimestampTZ; t++ {
		f.Add(uint8(t), []byte{0, 0, 0, 0, 0, 0, 0, 1})
	}
	f.Add(uint8(catalogue.Text), []byte("a\xff\x00\"\u2028"))
	f.Fuzz(func(t *testing.T, kind uint8, v []byte) {
		out, _, err := appendValue(nil, catalogue.Type(kind%10), v)
		if err != nil {
			return
		}
		require.True(t, json.Valid(out), "%s", out)
		require.True(t, utf8.Valid(out))
	})
}

func TestMajorVersion(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{"17.4 (Debian 17.4-1)": 17, "18beta1": 18, "13.0": 13, "19devel": 19, "x": 0, "": 0} {
		got, err := majorVersion(text)
		require.Equal(t, want, got)
		require.Equal(t, want == 0, err != nil)
	}
}
