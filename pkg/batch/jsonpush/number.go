package jsonpush

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/bits"
	"strconv"

	"pganalytics/pkg/batch/push"
)

// numberEnd is tokenEnd for numbers, whose end only what follows can show.
func numberEnd(b []byte) (int, extent) {
	i := 0
	if b[0] == '-' {
		i++
	}
	digits := digitsEnd(b, i)
	switch {
	case digits == i:
		return noDigit(b, i)
	case b[i] == '0':
		i++ // a digit behind it begins no delimiter, and so is refused
	default:
		i = digits
	}
	if i < len(b) && b[i] == '.' {
		i++
		if digits = digitsEnd(b, i); digits == i {
			return noDigit(b, i)
		}
		i = digits
	}
	if i < len(b) && b[i]|0x20 == 'e' {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		if digits = digitsEnd(b, i); digits == i {
			return noDigit(b, i)
		}
		i = digits
	}
	if i == len(b) {
		return i, openEnded
	}
	return i, complete
}

func digitsEnd(b []byte, i int) int {
	for i < len(b) && b[i]-'0' <= 9 {
		i++
	}
	return i
}

// shortDigits is how many digits always fit into an int64.
const shortDigits = 18

// shortest is how much of the body must be there for shortNumber to look at:
// comma, blank, minus, 16 digits, point, 16 digits, and what follows.
const shortest = 40

// shortNumber looks at the next value, with the comma before it if one is due.
// Most values of rows are numbers with at most 15 digits before the point and
// 18 in all, without exponent, and without white space but for one blank after
// the comma. Such a one is n divided by ten to the power of scale and ends at
// the place end. An end of 0 means something else, which is for numberEnd to
// judge; so is minus zero, for n cannot tell.
func shortNumber(b *[shortest]byte, comma bool) (n int64, scale, end int) {
	i := 0
	if comma {
		if b[0] != ',' {
			return 0, 0, 0
		}
		i++
	}
	if b[i] == ' ' {
		i++
	}
	negative := b[i] == '-'
	if negative {
		i++
	}
	n, whole := eightDigits(binary.LittleEndian.Uint64(b[i:]))
	if whole == 8 {
		more, count := eightDigits(binary.LittleEndian.Uint64(b[i+8:]))
		if count == 8 {
			return 0, 0, 0
		}
		n = n*integerPowers[count] + more
		whole += count
	}
	if whole == 0 || whole > 1 && b[i] == '0' {
		return 0, 0, 0
	}
	i += whole
	switch b[i] {
	case ',', ']', '}':
	case '.':
		var fraction int64
		fraction, scale = leadingDigits(b[i+1 : i+17])
		if scale == 0 || scale == 16 || whole+scale > shortDigits {
			return 0, 0, 0
		}
		n = n*integerPowers[scale] + fraction
		i += 1 + scale
		if b[i]|0x20 == 'e' {
			return 0, 0, 0
		}
	case 'e', 'E':
		return 0, 0, 0
	}
	if negative {
		if n = -n; n == 0 {
			return 0, 0, 0
		}
	}
	return n, scale, i
}

// leadingDigits returns the number that the digits at the front of 16 bytes
// make, and how many there are.
func leadingDigits(b []byte) (int64, int) {
	n, count := eightDigits(binary.LittleEndian.Uint64(b))
	if count == 8 {
		var more int64
		more, count = eightDigits(binary.LittleEndian.Uint64(b[8:]))
		n = n*integerPowers[count] + more
		count += 8
	}
	return n, count
}

// eightDigits is leadingDigits for eight bytes. It adds up neighbours, then
// pairs, then fours, instead of going from digit to digit, and so has nothing
// to guess about how many there are.
func eightDigits(b uint64) (int64, int) {
	b ^= ones * '0'
	count := bits.TrailingZeros64((b|(b+ones*(0x80-10)))&tops) / 8 // the top bit of all but 0 to 9
	b <<= 64 - 8*count                                             // zeros to the front
	b = b * (1 + 10<<8) >> 8 & 0x00ff00ff00ff00ff
	b = b * (1 + 100<<16) >> 16 & 0x0000ffff0000ffff
	b = b * (1 + 10_000<<32) >> 32
	return int64(b), count
}

// powers are those powers of ten that a float64 holds exactly, as far as short
// numbers need them; a float32 holds the first 11. The quotient of two exact
// numbers is rounded once, as strconv rounds.
var powers = [...]float64{
	1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18,
}

const powers32 = 11

var integerPowers = [...]int64{
	1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16,
}

func noDigit(b []byte, i int) (int, extent) {
	if i == len(b) {
		return i, cut
	}
	return i, wrong
}

// parseInt returns the value of a raw JSON number that is a whole number. An
// exponent or a fraction of zeros is allowed (1e3, 10.0), since some senders
// know only floating point; the value is taken exactly, never rounded.
func parseInt(raw []byte) (int64, *push.Problem) {
	digits := raw
	if raw[0] == '-' {
		digits = raw[1:]
	}
	if len(digits) > shortDigits {
		return parseDecimal(raw)
	}
	n := int64(0)
	for _, c := range digits {
		if c < '0' || c > '9' {
			return parseDecimal(raw)
		}
		n = n*10 + int64(c-'0')
	}
	if len(digits) < len(raw) {
		n = -n
	}
	return n, nil
}

// parseDecimal is parseInt for numbers with a fraction, an exponent or many
// digits: the digits without their trailing zeros, times a power of ten.
func parseDecimal(raw []byte) (int64, *push.Problem) {
	negative := raw[0] == '-'
	if negative {
		raw = raw[1:]
	}
	exponent := int64(0)
	if i := bytes.IndexAny(raw, "eE"); i >= 0 {
		exponent = parseExponent(raw[i+1:])
		raw = raw[:i]
	}
	whole, fraction, _ := bytes.Cut(raw, []byte("."))
	exponent -= int64(len(fraction))
	digits := append(append(make([]byte, 0, 32), whole...), fraction...)
	digits = bytes.TrimLeft(digits, "0")
	significant := bytes.TrimRight(digits, "0")
	exponent += int64(len(digits) - len(significant))
	switch {
	case len(significant) == 0:
		return 0, nil
	case exponent < 0:
		return 0, valueNotIntegral
	case int64(len(significant))+exponent > 19:
		return 0, push.ValueRange
	}
	n := uint64(0) // 19 digits fit
	for _, c := range significant {
		n = n*10 + uint64(c-'0')
	}
	for range exponent {
		n *= 10
	}
	switch {
	case negative && n <= -math.MinInt64:
		return -int64(n), nil
	case !negative && n <= math.MaxInt64:
		return int64(n), nil
	}
	return 0, push.ValueRange
}

// parseExponent stops counting far beyond any exponent that a body has room to
// make up for with zeros.
func parseExponent(raw []byte) int64 {
	n := int64(0)
	for _, c := range raw {
		if '0' <= c && c <= '9' && n < math.MaxInt64/100 {
			n = n*10 + int64(c-'0')
		}
	}
	if raw[0] == '-' {
		return -n
	}
	return n
}

// parseIntText returns the value of an integer sent as a string: an optional
// minus and decimal digits, nothing else.
func parseIntText(s []byte) (int64, *push.Problem) {
	digits := bytes.TrimPrefix(s, []byte("-"))
	if len(digits) == 0 || len(digits) > 19 {
		return 0, valueNotIntegral
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, valueNotIntegral
		}
	}
	return parseInt(s)
}

// parseFloat returns the value of a raw JSON number, rounded to bits.
func parseFloat(raw []byte, bits int) (float64, *push.Problem) {
	if len(raw) <= 15 && raw[0] != '-' { // 15 digits are exact in a float64
		n := int64(0)
		for i, c := range raw {
			if c < '0' || c > '9' {
				break
			}
			n = n*10 + int64(c-'0')
			if i == len(raw)-1 {
				return float64(n), nil
			}
		}
	}
	v, err := strconv.ParseFloat(string(raw), bits)
	if err != nil { // the grammar is right, so it can only be too large
		return 0, push.ValueRange
	}
	return v, nil
}
