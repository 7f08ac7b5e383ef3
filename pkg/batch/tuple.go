package batch

import (
	"encoding/binary"
	"math"
	"time"

	"github.com/google/uuid"
)

// CopyHeader begins a binary COPY stream: signature, flags, header extension.
// Source: PostgreSQL documentation, COPY, "Binary Format".
var CopyHeader = []byte("PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00")

// CopyTrailer ends a binary COPY stream.
var CopyTrailer = []byte{0xff, 0xff}

// LeadFields is the number of fields that lead every tuple: time, server_id.
const LeadFields = 2

// postgresEpoch is the zero of PostgreSQL's timestamps in microseconds since
// 1970.
const postgresEpoch = 946_684_800_000_000

// AppendTuple begins a tuple of fields fields, the two leading ones included,
// and appends those two.
func AppendTuple(dst []byte, fields int, t time.Time, serverID uuid.UUID) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(fields))
	dst = AppendTime(dst, t)
	return AppendUUID(dst, serverID)
}

// AppendNull appends a NULL field.
func AppendNull(dst []byte) []byte { return append(dst, 0xff, 0xff, 0xff, 0xff) }

// AppendBool appends a boolean field.
func AppendBool(dst []byte, v bool) []byte {
	if v {
		return append(dst, 0, 0, 0, 1, 1)
	}
	return append(dst, 0, 0, 0, 1, 0)
}

// AppendInt16 appends a smallint field.
func AppendInt16(dst []byte, v int16) []byte {
	return append(dst, 0, 0, 0, 2, byte(uint16(v)>>8), byte(v))
}

// AppendInt32 appends an integer field.
func AppendInt32(dst []byte, v int32) []byte {
	return binary.BigEndian.AppendUint32(append(dst, 0, 0, 0, 4), uint32(v))
}

// AppendInt64 appends a bigint field.
func AppendInt64(dst []byte, v int64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, 0, 0, 0, 8), uint64(v))
}

// AppendFloat32 appends a real field.
func AppendFloat32(dst []byte, v float32) []byte {
	return binary.BigEndian.AppendUint32(append(dst, 0, 0, 0, 4), math.Float32bits(v))
}

// AppendFloat64 appends a double precision field.
func AppendFloat64(dst []byte, v float64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, 0, 0, 0, 8), math.Float64bits(v))
}

// AppendText appends a text field.
func AppendText[T string | []byte](dst []byte, v T) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(v)))
	return append(dst, v...)
}

// AppendUUID appends a uuid field.
func AppendUUID(dst []byte, v uuid.UUID) []byte {
	return append(append(dst, 0, 0, 0, 16), v[:]...)
}

// AppendTime appends a timestamptz field with microsecond precision.
func AppendTime(dst []byte, v time.Time) []byte {
	return AppendInt64(dst, v.UnixMicro()-postgresEpoch)
}
