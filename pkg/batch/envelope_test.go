package batch_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/batchpb"
	"pganalytics/pkg/fault"
)

// envelope returns the sample's envelope after a change.
func envelope(tb testing.TB, change func(*batchpb.Batch)) []byte {
	tb.Helper()
	data, err := sample().Marshal()
	require.NoError(tb, err)
	m := &batchpb.Batch{}
	require.NoError(tb, proto.Unmarshal(data, m))
	change(m)
	data, err = proto.Marshal(m)
	require.NoError(tb, err)
	return data
}

func TestAnEnvelopeOfTheWrongShapeIsRefused(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(*batchpb.Batch)
		names  string // in the error
	}{
		"version":        {func(m *batchpb.Batch) { m.Version = 3 }, "version 3 is newer"},
		"no version":     {func(m *batchpb.Batch) { m.Version = 0 }, "unknown version 0"},
		"collector":      {func(m *batchpb.Batch) { m.CollectorId = m.CollectorId[1:] }, "collector_id: has 15 bytes"},
		"no id":          {func(m *batchpb.Batch) { m.BatchId = nil }, "batch_id: has 0 bytes"},
		"epoch":          {func(m *batchpb.Batch) { m.Epoch = []byte{1} }, "epoch: has 1 bytes"},
		"previous":       {func(m *batchpb.Batch) { m.Previous.Epoch = nil }, "previous.epoch: has 0 bytes"},
		"short digest":   {func(m *batchpb.Batch) { m.Digest = m.Digest[1:] }, "digest: has 31 bytes"},
		"long digest":    {func(m *batchpb.Batch) { m.Digest = append(m.Digest, 0) }, "digest: has 33 bytes"},
		"server":         {func(m *batchpb.Batch) { m.Sections[0].ServerId = nil }, "sections[0].server_id"},
		"type":           {func(m *batchpb.Batch) { m.Sections[0].Columns[1].Type = 10 }, "sections[0].columns: column 1"},
		"no type":        {func(m *batchpb.Batch) { m.Sections[0].Columns[1].Type = 0 }, "sections[0].columns: column 1"},
		"type over byte": {func(m *batchpb.Batch) { m.Sections[0].Columns[1].Type = 256 + 1 }, "sections[0].columns: column 1"},
		"negative type":  {func(m *batchpb.Batch) { m.Sections[0].Columns[1].Type = -255 }, "sections[0].columns: column 1"},
		"rows":           {func(m *batchpb.Batch) { m.Sections[0].Rows = 1 << 63 }, "sections[0].rows"},
	} {
		_, err := batch.Unmarshal(envelope(t, test.change))
		require.ErrorContains(t, err, test.names, name)
	}
	_, err := batch.Unmarshal(envelope(t, func(m *batchpb.Batch) { m.BatchId, m.Digest = nil, nil }))
	require.ErrorContains(t, err, "batch_id")
	require.ErrorContains(t, err, "digest", "all faults are told at once")
}

func TestADamagedEnvelopeIsNotIntact(t *testing.T) {
	t.Parallel()
	b, err := batch.Unmarshal(envelope(t, func(m *batchpb.Batch) { m.Sections[0].Tuples[40] ^= 1 }))
	require.NoError(t, err)
	require.False(t, b.Intact())
}

func TestUnknownFieldsAreIgnored(t *testing.T) {
	t.Parallel()
	data, err := sample().Marshal()
	require.NoError(t, err)
	b, err := batch.Unmarshal(append(data, 0xfa, 0x3f, 2, 'n', 'o')) // field 1023
	require.NoError(t, err)
	require.Equal(t, sample(), b)
}

// FuzzUnmarshal requires that the generated code reads and writes the same, and
// that what is accepted survives Marshal and Unmarshal as it is.
func FuzzUnmarshal(f *testing.F) {
	f.Add(envelope(f, func(*batchpb.Batch) {}))
	f.Add(envelope(f, func(m *batchpb.Batch) { m.Epoch, m.Previous, m.Refused, m.Labels, m.Sections = nil, nil, nil, nil, nil }))
	f.Add(envelope(f, func(m *batchpb.Batch) { m.SentAtUs = -1 << 63; m.Epoch = make([]byte, 16) }))
	f.Add(envelope(f, func(m *batchpb.Batch) { m.Sections = append(m.Sections, m.Sections[0], &batchpb.Section{}) }))
	f.Add([]byte{8, 1})
	valid := envelope(f, func(*batchpb.Batch) {})
	for _, more := range [][]byte{
		protowire.AppendVarint(protowire.AppendVarint(nil, uint64(protowire.MaxValidNumber+1)<<3), 0), // a number too large
		protowire.AppendFixed32(protowire.AppendTag(nil, 1, protowire.Fixed32Type), 7),                // version of another type
		protowire.AppendVarint(protowire.AppendTag(nil, 8, protowire.VarintType), 3),                  // a list not packed
		protowire.AppendBytes(protowire.AppendTag(nil, 7, protowire.BytesType), []byte{16, 5}),        // the rest of previous
		protowire.AppendGroup(protowire.AppendTag(nil, 100, protowire.StartGroupType), 100, nil),
		protowire.AppendTag(nil, 100, protowire.EndGroupType),
	} {
		f.Add(append(bytes.Clone(valid), more...))
	}
	packed, err := wide(20, 2).Marshal()
	require.NoError(f, err)
	f.Add(packed)
	f.Fuzz(func(t *testing.T, data []byte) {
		want, wantErr := oracle(data)
		b, err := batch.Unmarshal(data)
		if fault.ClassOf(err) == fault.Behind {
			// What is in its labels and sections is for the newer one to say.
			require.Error(t, wantErr)
			return
		}
		require.Equal(t, wantErr == nil, err == nil, "%v, where the generated code says %v", err, wantErr)
		if err != nil {
			require.Nil(t, b)
			return
		}
		expanded, err := b.Expand()
		require.Equal(t, want.expandErr == nil, err == nil, "%v, where the generated code says %v", err, want.expandErr)
		if err == nil {
			require.Equal(t, want.batch, expanded)
		}
		require.Equal(t, time.UTC, b.SentAt.Location())

		again, err := b.Marshal()
		require.NoError(t, err)
		requireCanonical(t, again)
		back, err := batch.Unmarshal(again)
		require.NoError(t, err)
		if want.expandErr == nil {
			requireExpands(t, expanded, back)
		}
		third, err := back.Marshal()
		require.NoError(t, err)
		require.True(t, bytes.Equal(again, third))
	})
}
