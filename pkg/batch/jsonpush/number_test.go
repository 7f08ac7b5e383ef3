package jsonpush

import (
	"math/big"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestAShortNumberIsTheWholeNumber(t *testing.T) {
	t.Parallel()
	taken := 0
	rapid.Check(t, func(t *rapid.T) {
		number := rapid.OneOf(
			rapid.StringMatching(`-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?`),
			rapid.StringMatching(`[-+.eE0-9]{1,24}`),
		).Draw(t, "number")
		behind := rapid.SampledFrom([]string{",", "]", "}", " ", "\n", "x", "\""}).Draw(t, "behind")
		given := []byte(number + behind + strings.Repeat(" ", shortest))
		n, scale, end := shortNumber((*[shortest]byte)(given), false)
		if end == 0 {
			return
		}
		taken++
		length, is := numberEnd(given)
		require.Equal(t, complete, is)
		require.Equal(t, length, end)
		want, ok := new(big.Rat).SetString(number[:end])
		require.True(t, ok)
		require.Zero(t, want.Cmp(new(big.Rat).Quo(big.NewRat(n, 1), new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(scale)), nil)))))
	})
	require.Positive(t, taken)
}

func TestUsualNumbersAreReadInTheShortWay(t *testing.T) {
	t.Parallel()
	for number, want := range map[string]struct {
		n     int64
		scale int
	}{
		"0": {0, 0}, "7": {7, 0}, "-1": {-1, 0}, "12345678": {12345678, 0}, "123456789": {123456789, 0},
		"123456789012345": {123456789012345, 0}, "0.0": {0, 1}, "1234.567": {1234567, 3}, "-0.000001": {-1, 6},
	} {
		for _, before := range []string{"", ",", ", "} {
			given := []byte(before + number + strings.Repeat("]", shortest))
			n, scale, end := shortNumber((*[shortest]byte)(given), before != "")
			require.Equal(t, want.n, n, number)
			require.Equal(t, want.scale, scale, number)
			require.Equal(t, len(before)+len(number), end, number)
		}
	}
}

func TestEightDigitsAreThoseInFront(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		digits := rapid.StringMatching(`[0-9]{0,16}`).Draw(t, "digits")
		rest := rapid.SliceOfN(rapid.Byte().Filter(func(c byte) bool { return c < '0' || c > '9' }), 16, 16).Draw(t, "rest")
		n, count := leadingDigits(append([]byte(digits), rest...)[:16])
		require.Equal(t, len(digits), count)
		if count > 0 {
			want, err := strconv.ParseInt(digits, 10, 64)
			require.NoError(t, err)
			require.Equal(t, want, n)
		}
	})
}
