package batch

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"pganalytics/pkg/catalogue"
)

// ErrTuples means that a section's tuples are not what it says they are.
var ErrTuples = errors.New("malformed tuples")

// EachRow calls f with the fields of every row, time and server_id first; nil
// is NULL. The fields are f's only until it returns. It ends with f's first
// error, or with ErrTuples and the row, from 0, where the tuples end to make
// sense. The section must have been expanded.
func (s *Section) EachRow(f func(row int, fields [][]byte) error) error {
	fields := make([][]byte, LeadFields+len(s.Columns))
	rest := s.Tuples
	for row := range s.Rows {
		var err error
		if rest, err = readTuple(rest, fields); err != nil {
			return fmt.Errorf("row %d: %w: %w", row, ErrTuples, err)
		}
		if err := f(row, fields); err != nil {
			return err
		}
	}
	if len(rest) > 0 {
		return fmt.Errorf("row %d: %w: %d bytes after the last row", s.Rows, ErrTuples, len(rest))
	}
	return nil
}

// readTuple fills fields from the first tuple of data and returns what follows.
func readTuple(data []byte, fields [][]byte) ([]byte, error) {
	if len(data) < 2 {
		return nil, errors.New("ends early")
	}
	if n := int(int16(binary.BigEndian.Uint16(data))); n != len(fields) {
		return nil, fmt.Errorf("has %d fields, not %d", n, len(fields))
	}
	data = data[2:]
	for i := range fields {
		if len(data) < 4 {
			return nil, fmt.Errorf("ends in field %d", i)
		}
		size := int32(binary.BigEndian.Uint32(data))
		data = data[4:]
		switch {
		case size == -1:
			fields[i] = nil
			continue
		case size < 0 || int(size) > len(data):
			return nil, fmt.Errorf("field %d claims %d bytes of %d", i, size, len(data))
		}
		fields[i], data = data[:size:size], data[size:]
	}
	return data, nil
}

// The times that PostgreSQL can store, in its microseconds; infinity lies
// outside.
const (
	minTimestamp = -211_813_488_000_000_000
	maxTimestamp = 9_223_371_331_200_000_000 // itself not included
)

// ValueFault tells why the database refuses a value of that type, or why this
// system does; empty if neither.
func ValueFault(t catalogue.Type, v []byte) string {
	if size := t.Size(); size >= 0 && len(v) != size {
		return fmt.Sprintf("has %d bytes, not %d", len(v), size)
	}
	switch t {
	case catalogue.Boolean:
		if v[0] > 1 {
			return fmt.Sprintf("is neither 0 nor 1 but %d", v[0])
		}
	case catalogue.Real, catalogue.DoublePrecision:
		if f := float(v); math.IsNaN(f) || math.IsInf(f, 0) {
			return "is no finite number"
		}
	case catalogue.Text:
		if i := bytes.IndexByte(v, 0); i >= 0 {
			return fmt.Sprintf("has a NUL at byte %d", i)
		}
		if i := invalidUTF8(v); i >= 0 {
			return fmt.Sprintf("is not UTF-8 at byte %d", i)
		}
	case catalogue.TimestampTZ:
		if us := int64(binary.BigEndian.Uint64(v)); us < minTimestamp || us >= maxTimestamp {
			return "is no time that can be stored"
		}
	}
	return ""
}

// invalidUTF8 returns the first byte that is not UTF-8, -1 if all is.
func invalidUTF8(v []byte) int {
	for i := 0; i < len(v); {
		r, n := utf8.DecodeRune(v[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return -1
}

// ValueText returns a value for people: numbers, times and ids as PostgreSQL
// prints them, texts as they are if every character can be printed and else
// quoted. A value that has a fault of its length is shown in hexadecimal.
func ValueText(t catalogue.Type, v []byte) string {
	if size := t.Size(); size >= 0 && len(v) != size {
		return `\x` + hex.EncodeToString(v)
	}
	switch t {
	case catalogue.Boolean:
		return strconv.FormatBool(v[0] != 0)
	case catalogue.SmallInt:
		return strconv.Itoa(int(int16(binary.BigEndian.Uint16(v))))
	case catalogue.Integer:
		return strconv.Itoa(int(int32(binary.BigEndian.Uint32(v))))
	case catalogue.BigInt:
		return strconv.FormatInt(int64(binary.BigEndian.Uint64(v)), 10)
	case catalogue.Real:
		return strconv.FormatFloat(float(v), 'g', -1, 32)
	case catalogue.DoublePrecision:
		return strconv.FormatFloat(float(v), 'g', -1, 64)
	case catalogue.UUID:
		return uuid.UUID(v).String()
	case catalogue.TimestampTZ:
		us := int64(binary.BigEndian.Uint64(v))
		if us >= math.MaxInt64-postgresEpoch { // "infinity" is the largest
			return "infinity"
		}
		return time.UnixMicro(us + postgresEpoch).UTC().Format(time.RFC3339Nano)
	default:
		if quoted := strconv.Quote(string(v)); len(quoted) != len(v)+2 {
			return quoted
		}
		return string(v)
	}
}

// float reads a float of either size.
func float(v []byte) float64 {
	if len(v) == 4 {
		return float64(math.Float32frombits(binary.BigEndian.Uint32(v)))
	}
	return math.Float64frombits(binary.BigEndian.Uint64(v))
}
