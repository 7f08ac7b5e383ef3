package batch_test

import (
	"encoding/hex"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
)

// The bytes are those that PostgreSQL 17 itself writes by COPY TO in binary
// format.
func TestFieldsAreThoseOfPostgreSQL(t *testing.T) {
	t.Parallel()
	id := uuid.MustParse("6f1c2a34-0b1d-4c5e-8f70-112233445566")
	for want, got := range map[string][]byte{
		"ffffffff":                 batch.AppendNull(nil),
		"0000000101":               batch.AppendBool(nil, true),
		"0000000100":               batch.AppendBool(nil, false),
		"000000028000":             batch.AppendInt16(nil, -32768),
		"00000004fffffffe":         batch.AppendInt32(nil, -2),
		"000000080000000100000000": batch.AppendInt64(nil, 1<<32),
		"000000043fc00000":         batch.AppendFloat32(nil, 1.5),
		"00000008bff8000000000000": batch.AppendFloat64(nil, -1.5),
		"00000003c3a961":           batch.AppendText(nil, "éa"),
		"00000000":                 batch.AppendText(nil, []byte{}),
		"000000106f1c2a340b1d4c5e8f70112233445566": batch.AppendUUID(nil, id),
		"000000080000000000000001":                 batch.AppendTime(nil, time.Date(2000, 1, 1, 0, 0, 0, 1999, time.UTC)),
		"00000008ffffffffffffffff":                 batch.AppendTime(nil, time.Date(1999, 12, 31, 23, 59, 59, 999_999_000, time.UTC)),
		"0003" + "000000080000000000000000" + "000000106f1c2a340b1d4c5e8f70112233445566": batch.AppendTuple(nil, 3,
			time.Date(2000, 1, 1, 2, 0, 0, 0, time.FixedZone("", 7200)), id),
	} {
		require.Equal(t, want, hex.EncodeToString(got))
	}
}

func TestAServersIDIsAUUIDv5InTheCollectorsSpace(t *testing.T) {
	t.Parallel()
	collector := uuid.MustParse("6f1c2a34-0b1d-4c5e-8f70-112233445566")
	id := batch.ServerID(collector, "db1")
	require.EqualValues(t, 5, id.Version())
	require.Equal(t, id, batch.ServerID(collector, "db1"))
	require.NotEqual(t, id, batch.ServerID(collector, "db2"))
	require.NotEqual(t, id, batch.ServerID(id, "db1"))
}

// A change of a number would make every message on a stream mean another type.
func TestTypeNumbersNeverChange(t *testing.T) {
	t.Parallel()
	for number, name := range []string{
		1: "boolean", 2: "smallint", 3: "integer", 4: "bigint", 5: "real", 6: "double precision", 7: "text", 8: "uuid", 9: "timestamptz",
	} {
		if number > 0 {
			require.Equal(t, name, catalogue.Type(number).String())
		}
	}
}
