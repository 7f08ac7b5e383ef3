package jsonpush

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"unicode/utf16"
	"unicode/utf8"
)

// stringEnd is tokenEnd for strings.
func stringEnd(b []byte) (int, extent) {
	for i := 1; ; {
		i = plainEnd(b, i)
		if i == len(b) {
			return i, cut
		}
		n, is := 0, wrong
		switch c := b[i]; {
		case c == '"':
			return i + 1, complete
		case c == '\\':
			n, is = escapeEnd(b[i:])
		case c >= utf8.RuneSelf:
			n, is = runeEnd(b[i:])
		}
		if is != complete {
			return i, is
		}
		i += n
	}
}

// Every byte of eight is 1, or has its top bit set.
const ones, tops = 0x0101010101010101, 0x8080808080808080

// plainEnd returns the place of the first byte from i on that is not a plain
// character of a string: ASCII but quote, backslash and controls. It looks at
// eight bytes at once: such a byte, and no other before it, leaves its highest
// bit set.
func plainEnd(b []byte, i int) int {
	for ; i+8 <= len(b); i += 8 {
		x := binary.LittleEndian.Uint64(b[i:])
		quotes, escapes := x^ones*'"', x^ones*'\\'
		if found := (x | (x - ones*' ') | (quotes - ones) | (escapes - ones)) & tops; found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	for ; i < len(b); i++ {
		if c := b[i]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			break
		}
	}
	return i
}

// escapeEnd returns the length of an escape sequence, both halves of a
// surrogate pair taken together.
func escapeEnd(b []byte) (int, extent) {
	if len(b) < 2 {
		return 0, cut
	}
	switch b[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2, complete
	case 'u':
	default:
		return 0, wrong
	}
	r, is := unit(b)
	if is != complete || !utf16.IsSurrogate(r) {
		return 6, is
	}
	half, is := unit(b[6:])
	if is == complete && utf16.DecodeRune(r, half) == utf8.RuneError {
		is = wrong
	}
	return 12, is
}

// unit returns the UTF-16 code unit of a \u escape.
func unit(b []byte) (rune, extent) {
	if len(b) < 6 {
		return 0, cut
	}
	if b[0] != '\\' || b[1] != 'u' {
		return 0, wrong
	}
	r := rune(0)
	for _, c := range b[2:6] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return 0, wrong
		}
		r = r<<4 | rune(c)
	}
	return r, complete
}

func runeEnd(b []byte) (int, extent) {
	_, n := utf8.DecodeRune(b)
	switch {
	case n > 1:
		return n, complete
	case !utf8.FullRune(b):
		return 0, cut
	}
	return 0, wrong
}

// text returns the text of a raw string, in place where it can.
func text(raw []byte) []byte {
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1]
	}
	return appendUnquoted(nil, raw)
}

// appendUnquoted appends the text of a raw string, which was validated when it
// was read.
func appendUnquoted(dst, raw []byte) []byte {
	for b := raw[1 : len(raw)-1]; ; {
		i := bytes.IndexByte(b, '\\')
		if i < 0 {
			return append(dst, b...)
		}
		dst = append(dst, b[:i]...)
		n, _ := escapeEnd(b[i:])
		dst = appendEscaped(dst, b[i:i+n])
		b = b[i+n:]
	}
}

// appendEscaped appends the character of an escape sequence.
func appendEscaped(dst, escape []byte) []byte {
	switch len(escape) {
	case 6:
		r, _ := unit(escape)
		return utf8.AppendRune(dst, r)
	case 12:
		high, _ := unit(escape)
		low, _ := unit(escape[6:])
		return utf8.AppendRune(dst, utf16.DecodeRune(high, low))
	}
	switch c := escape[1]; c {
	case 'b':
		return append(dst, '\b')
	case 'f':
		return append(dst, '\f')
	case 'n':
		return append(dst, '\n')
	case 'r':
		return append(dst, '\r')
	case 't':
		return append(dst, '\t')
	default:
		return append(dst, c)
	}
}
