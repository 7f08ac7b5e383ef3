package jsonpush

import (
	"bytes"
	"math"
	"strconv"
)

// parseInt returns the value of a raw JSON number that is a whole number. An
// exponent or a fraction of zeros is allowed (1e3, 10.0), since some senders
// know only floating point; the value is taken exactly, never rounded.
func parseInt(raw []byte) (int64, *problem) {
	digits := raw
	if raw[0] == '-' {
		digits = raw[1:]
	}
	if len(digits) > 18 { // 18 digits always fit
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
func parseDecimal(raw []byte) (int64, *problem) {
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
		return 0, valueRange
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
	return 0, valueRange
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
func parseIntText(s []byte) (int64, *problem) {
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
func parseFloat(raw []byte, bits int) (float64, *problem) {
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
		return 0, valueRange
	}
	return v, nil
}
