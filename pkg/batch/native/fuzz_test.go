package native_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/native"
	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/fault"
)

// seed returns a push with something in every field.
func seed(tb testing.TB) *native.Push {
	p := sample(narrowRows(tb, 2), section(tb, "all_types", "db2", everyName, everyType("", nil), everyType("s", batch.AppendNull)))
	p.Epoch, p.Sequence, p.Refused = v7(now, 2), 9, []uint64{3, 300}
	p.Labels = []batch.Label{{Name: "env", Value: "prod"}}
	return p
}

// FuzzDecode feeds anything: nothing panics, and what is accepted is a batch
// that can be stored.
func FuzzDecode(f *testing.F) {
	cat := families(f)
	f.Add(seed(f).Append(nil))
	first := seed(f)
	first.Sequence, first.Refused, first.Previous = 1, nil, batch.Mark{Epoch: v7(now, 3), Sequence: 41}
	f.Add(first.Append(nil))
	some := sample(narrowRows(f, 1), narrowRows(f, 1), section(f, "narrow", "db1", []string{"series"}))
	some.Sections[1].Rows++
	f.Add(some.Append(nil))
	f.Fuzz(func(t *testing.T, body []byte) {
		b, report, err := native.Decode(bytes.NewReader(body), collector, cat, push.DefaultLimits(), now)
		slow, _, slowErr := native.Decode(iotest.OneByteReader(bytes.NewReader(body)), collector, cat, push.DefaultLimits(), now)
		require.Equal(t, b, slow, "how the bytes arrive does not matter")
		require.Equal(t, err == nil, slowErr == nil)
		if err != nil {
			require.Nil(t, b)
			_, classified := errors.AsType[*fault.Error](err)
			require.True(t, classified, err)
			require.Contains(t, []fault.Class{fault.Invalid, fault.Forbidden, fault.Unprocessable}, fault.ClassOf(err))
			return
		}
		require.Equal(t, report.RowsAccepted, b.Rows())
		require.Equal(t, report.ItemCount, report.ItemsAccepted+len(report.Rejected)+report.RejectedMore)
		requireSound(t, cat, b)
	})
}

// FuzzTuples feeds anything as the rows of a section that is good otherwise.
func FuzzTuples(f *testing.F) {
	cat := families(f)
	for _, s := range seed(f).Sections {
		f.Add(s.Tuples, uint16(s.Rows), s.Family == "narrow")
		f.Add(s.Tuples[:len(s.Tuples)/2], uint16(s.Rows), s.Family == "narrow")
	}
	least := narrowRows(f, 1)
	binary.BigEndian.PutUint32(least.Tuples[34:], 1<<31)
	f.Add(least.Tuples, uint16(1), true)
	f.Fuzz(func(t *testing.T, tuples []byte, rows uint16, isNarrow bool) {
		s := section(t, "all_types", "db2", everyName)
		if isNarrow {
			s = section(t, "narrow", "db1", []string{"series", "v"})
		}
		s.Tuples, s.Rows = tuples, int(rows)
		b, _, err := native.Decode(bytes.NewReader(sample(s).Append(nil)), collector, cat, push.DefaultLimits(), now)
		if err != nil {
			require.Equal(t, fault.Invalid, fault.ClassOf(err))
			return
		}
		requireSound(t, cat, b)
		for i := range b.Sections {
			require.Equal(t, tuples, b.Sections[i].Tuples, "not a byte is changed")
		}
	})
}

// requireSound requires that a batch survives the stream, and that the database
// takes every value.
func requireSound(t *testing.T, cat *catalogue.Catalogue, b *batch.Batch) {
	t.Helper()
	require.True(t, b.Intact())
	data, err := b.Marshal()
	require.NoError(t, err)
	require.LessOrEqual(t, len(data), push.DefaultLimits().MaxEncodedBytes)
	again, err := batch.Unmarshal(data)
	require.NoError(t, err)
	again, err = again.Expand()
	require.NoError(t, err)
	require.Equal(t, b.Digest, again.Digest)
	require.True(t, again.Intact())
	for i := range again.Sections {
		requireSoundRows(t, cat, b.CollectorID, &again.Sections[i])
	}
}

func requireSoundRows(t *testing.T, cat *catalogue.Catalogue, collector uuid.UUID, s *batch.Section) {
	t.Helper()
	family, ok := cat.Family(s.Family)
	require.True(t, ok)
	require.Equal(t, batch.ServerID(collector, s.Server), s.ServerID)
	first, last := time.UnixMicro(math.MaxInt64), time.UnixMicro(math.MinInt64)
	require.NoError(t, s.EachRow(func(_ int, fields [][]byte) error {
		require.Empty(t, batch.ValueFault(catalogue.TimestampTZ, fields[0]))
		require.Equal(t, s.ServerID[:], fields[1])
		at := time.UnixMicro(int64(binary.BigEndian.Uint64(fields[0])) + postgresEpoch)
		if at.Before(first) {
			first = at
		}
		if at.After(last) {
			last = at
		}
		for i, c := range s.Columns {
			v := fields[batch.LeadFields+i]
			at, ok := family.Column(c.Name)
			require.True(t, ok)
			require.Equal(t, family.Columns[at].Type, c.Type)
			require.False(t, v == nil && family.Columns[at].NotNull, "a key is NULL")
			require.False(t, len(v) > 2000 && family.Columns[at].NotNull, "a key is too long")
			if v != nil {
				require.Empty(t, batch.ValueFault(c.Type, v))
			}
		}
		return nil
	}))
	require.True(t, first.Equal(s.MinTime) && last.Equal(s.MaxTime), "the section knows its times")
	require.True(t, now.Sub(first) <= family.Retention+time.Hour && last.Sub(now) <= time.Hour, "the times are kept")
}

// postgresEpoch is 2000-01-01 in microseconds since 1970.
const postgresEpoch = 946_684_800_000_000
