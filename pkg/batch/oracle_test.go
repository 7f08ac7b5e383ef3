package batch_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/klauspost/compress/s2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/batchpb"
	"pganalytics/pkg/catalogue"
)

// known is what the generated code makes of an envelope.
type known struct {
	batch     *batch.Batch // expanded
	expandErr error
}

// oracle reads an envelope by the generated code, field by field.
func oracle(data []byte) (known, error) {
	m := &batchpb.Batch{}
	if err := proto.Unmarshal(data, m); err != nil {
		return known{}, err
	}
	if m.Version > 2 {
		return known{}, errors.New("version is newer")
	}
	ok := m.Version > 0 && len(m.CollectorId) == 16 && len(m.BatchId) == 16 && len(m.Digest) == 32 &&
		(len(m.Epoch) == 0 || len(m.Epoch) == 16) && (m.Previous == nil || len(m.Previous.Epoch) == 16)
	k := known{batch: &batch.Batch{
		SentAt: time.UnixMicro(m.SentAtUs).UTC(), ReceivedAt: time.UnixMicro(m.ReceivedAtUs).UTC(),
		Sequence: m.Sequence, Refused: m.Refused, TraceParent: m.Traceparent,
	}}
	b := k.batch
	copy(b.CollectorID[:], m.CollectorId)
	copy(b.ID[:], m.BatchId)
	copy(b.Digest[:], m.Digest)
	copy(b.Epoch[:], m.Epoch)
	if m.Previous != nil {
		b.Previous.Sequence = m.Previous.Sequence
		copy(b.Previous.Epoch[:], m.Previous.Epoch)
	}
	for _, l := range m.Labels {
		b.Labels = append(b.Labels, batch.Label{Name: l.Name, Value: l.Value})
	}
	sum := 0
	for i, s := range m.Sections {
		section := batch.Section{
			Family: s.Family, Server: s.Server, Rows: int(s.Rows), Columns: []batch.Column{},
			MinTime: time.UnixMicro(s.MinTimeUs).UTC(), MaxTime: time.UnixMicro(s.MaxTimeUs).UTC(),
		}
		id, err := uuid.FromBytes(s.ServerId)
		ok = ok && err == nil
		section.ServerID = id
		for _, c := range s.Columns {
			ok = ok && c.Type > 0 && c.Type < 256 && catalogue.Type(c.Type).Valid()
			section.Columns = append(section.Columns, batch.Column{Name: c.Name, Type: catalogue.Type(c.Type)})
		}
		size := len(s.Tuples)
		if size > 0 {
			section.Tuples = s.Tuples
		}
		if len(s.Packed) > 0 {
			n, err := s2.DecodedLen(s.Packed)
			sum += n
			ok = ok && err == nil && n > 0 && sum <= batch.MaxTupleBytes && m.Version == 2 && size == 0
			if size = n; ok {
				section.Tuples, err = s2.Decode(nil, s.Packed)
				if err != nil {
					k.expandErr = fmt.Errorf("section %d: %w", i, err)
				}
			}
		}
		ok = ok && s.Rows <= uint64(size)
		b.Sections = append(b.Sections, section)
	}
	if !ok {
		return known{}, errors.New("wrong shape")
	}
	return k, nil
}

// requireCanonical requires that the generated code writes the same bytes.
func requireCanonical(tb testing.TB, data []byte) {
	tb.Helper()
	m := &batchpb.Batch{}
	require.NoError(tb, proto.Unmarshal(data, m))
	again, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	require.NoError(tb, err)
	require.Equal(tb, again, data)
}

// requireExpands requires that packed holds what want holds.
func requireExpands(tb testing.TB, want, packed *batch.Batch) {
	tb.Helper()
	require.Equal(tb, want.Rows(), packed.Rows())
	require.Equal(tb, want.TupleBytes(), packed.TupleBytes())
	got, err := packed.Expand()
	require.NoError(tb, err)
	require.Equal(tb, want, got)
	require.Equal(tb, want.Intact(), got.Intact())
}
