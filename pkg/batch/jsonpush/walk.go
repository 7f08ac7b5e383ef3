package jsonpush

import "bytes"

// walker steps through the values of one raw array, or the names and values of
// one raw object. It relies on the scanner having validated the bytes and
// therefore checks nothing.
type walker struct {
	raw []byte
	pos int
}

func walk(raw []byte) walker { return walker{raw: raw, pos: 1} }

// next returns the next raw value, or false at the end. Of a nested array or
// object it returns the first byte only and cannot go on: no column holds
// nested values, so whoever meets one refuses it and stops.
func (w *walker) next() ([]byte, bool) {
	// In valid JSON what stands between two values needs no telling apart.
	i := w.pos
	for ; ; i++ {
		switch w.raw[i] {
		case ' ', '\t', '\n', '\r', ',', ':':
			continue
		}
		break
	}
	start := i
	switch w.raw[i] {
	case ']', '}':
		return nil, false
	case '[', '{':
		i++
	case '"':
		i = endOfString(w.raw, i)
	default:
		for ; ; i++ {
			switch w.raw[i] {
			case ' ', '\t', '\n', '\r', ',', ']', '}':
				w.pos = i
				return w.raw[start:i], true
			}
		}
	}
	w.pos = i
	return w.raw[start:i], true
}

// endOfString returns the position behind the string that begins at start.
func endOfString(raw []byte, start int) int {
	i := start + 1
	quote := i + bytes.IndexByte(raw[i:], '"')
	for {
		escape := bytes.IndexByte(raw[i:quote], '\\')
		if escape < 0 {
			return quote + 1
		}
		i += escape + 2
		if i > quote {
			quote = i + bytes.IndexByte(raw[i:], '"')
		}
	}
}

// kindOf returns the kind of a raw value.
func kindOf(raw []byte) kind {
	if c := raw[0]; c == '-' || '0' <= c && c <= '9' {
		return kindNumber
	}
	return kind(raw[0])
}
