package pgread

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"pganalytics/pkg/catalogue"
)

// TimeLayout is RFC 3339 with the microseconds that PostgreSQL stores. Times
// are in UTC.
const TimeLayout = "2006-01-02T15:04:05.000000Z07:00"

// postgresEpoch is the zero of PostgreSQL's timestamps in microseconds since
// 1970.
const postgresEpoch = 946_684_800_000_000

// maxExactInt is the largest integer that every JSON reader takes exactly.
const maxExactInt = 1 << 53

// Times outside these years have no RFC 3339 form.
var (
	minTimeUS = time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
	maxTimeUS = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro() - 1
)

// repair is what had to be done to a value to make it acceptable.
type repair uint8

const (
	asIs     repair = iota
	nulled          // NaN, infinite, or outside of what JSON can say: sent as null
	repaired        // text that was not valid UTF-8 or held a NUL
)

// appendValue appends a value in PostgreSQL's binary format, nil for NULL, as
// JSON.
func appendValue(dst []byte, t catalogue.Type, v []byte) ([]byte, repair, error) {
	if v == nil {
		return append(dst, "null"...), asIs, nil
	}
	if size := t.Size(); size >= 0 && len(v) != size {
		return dst, asIs, fmt.Errorf("value of type %s has %d bytes, not %d", t, len(v), size)
	}
	switch t {
	case catalogue.Boolean:
		return strconv.AppendBool(dst, v[0] != 0), asIs, nil
	case catalogue.SmallInt:
		return strconv.AppendInt(dst, int64(int16(binary.BigEndian.Uint16(v))), 10), asIs, nil
	case catalogue.Integer:
		return strconv.AppendInt(dst, int64(int32(binary.BigEndian.Uint32(v))), 10), asIs, nil
	case catalogue.BigInt:
		return appendInt64(dst, int64(binary.BigEndian.Uint64(v))), asIs, nil
	case catalogue.Real:
		dst, r := appendFloat(dst, float64(math.Float32frombits(binary.BigEndian.Uint32(v))), 32)
		return dst, r, nil
	case catalogue.DoublePrecision:
		dst, r := appendFloat(dst, math.Float64frombits(binary.BigEndian.Uint64(v)), 64)
		return dst, r, nil
	case catalogue.Text:
		return appendText(dst, string(v))
	case catalogue.UUID:
		dst = append(dst, '"')
		dst = append(dst, uuid.UUID(v).String()...)
		return append(dst, '"'), asIs, nil
	case catalogue.TimestampTZ:
		dst, r := appendTime(dst, int64(binary.BigEndian.Uint64(v)))
		return dst, r, nil
	}
	return dst, asIs, errors.New("unknown type " + t.String())
}

func appendInt64(dst []byte, v int64) []byte {
	if v > maxExactInt || v < -maxExactInt {
		dst = append(dst, '"')
		dst = strconv.AppendInt(dst, v, 10)
		return append(dst, '"')
	}
	return strconv.AppendInt(dst, v, 10)
}

func appendFloat(dst []byte, v float64, bits int) ([]byte, repair) {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return append(dst, "null"...), nulled
	}
	return strconv.AppendFloat(dst, v, 'g', -1, bits), asIs
}

func appendText(dst []byte, s string) ([]byte, repair, error) {
	r := asIs
	clean := strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "")
	if clean != s {
		r = repaired
	}
	dst, err := jsontext.AppendQuote(dst, clean)
	return dst, r, err
}

// appendTime appends microseconds since PostgreSQL's epoch. Its infinities are
// the ends of the range.
func appendTime(dst []byte, us int64) ([]byte, repair) {
	if us > maxTimeUS-postgresEpoch || us < minTimeUS-postgresEpoch {
		return append(dst, "null"...), nulled
	}
	dst = append(dst, '"')
	dst = time.UnixMicro(us+postgresEpoch).UTC().AppendFormat(dst, TimeLayout)
	return append(dst, '"'), asIs
}
