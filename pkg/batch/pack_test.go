package batch_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/batchpb"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/fault"
)

// wide returns a batch of sections with rows rows of 20 counters each.
func wide(rows, sections int) *batch.Batch {
	b := sample()
	random := rand.New(rand.NewPCG(uint64(rows), uint64(sections)))
	s := b.Sections[0]
	s.Columns = nil
	for i := range 20 {
		s.Columns = append(s.Columns, batch.Column{Name: string(rune('a' + i)), Type: catalogue.BigInt})
	}
	b.Sections = nil
	for range sections {
		s.Rows, s.Tuples = rows, nil
		for range rows {
			s.Tuples = batch.AppendTuple(s.Tuples, batch.LeadFields+20, s.MaxTime, s.ServerID)
			for range 20 {
				s.Tuples = batch.AppendInt64(s.Tuples, random.Int64N(1<<random.IntN(40)))
			}
		}
		b.Sections = append(b.Sections, s)
	}
	b.Seal()
	return b
}

func versionOf(t *testing.T, data []byte) uint32 {
	t.Helper()
	m := &batchpb.Batch{}
	require.NoError(t, proto.Unmarshal(data, m))
	return m.Version
}

func TestRowsArePackedAndComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	b := wide(100, 3)
	b.Sections = append(b.Sections, sample().Sections[0]) // too small to be packed
	b.Seal()
	data, err := b.Marshal()
	require.NoError(t, err)
	require.EqualValues(t, 2, versionOf(t, data))
	require.Less(t, len(data), b.TupleBytes()/2)
	require.Equal(t, len(data), cap(data), "the message holds more than it needs")
	requireCanonical(t, data)

	back, err := batch.Unmarshal(data)
	require.NoError(t, err)
	require.Nil(t, back.Sections[0].Tuples, "they are expanded only when they are asked for")
	require.Equal(t, b.MessageID(), back.MessageID(), "packed or not it is the same batch")
	requireExpands(t, b, back)
	require.Nil(t, back.Sections[0].Tuples, "whoever expands keeps what was small")
	again, err := back.Marshal()
	require.NoError(t, err)
	require.Equal(t, data, again)
}

func TestWhatDoesNotPackIsWrittenAsVersion1(t *testing.T) {
	t.Parallel()
	noise := wide(1, 1)
	random := rand.NewChaCha8([32]byte{})
	noise.Sections[0].Tuples = make([]byte, 10_000)
	_, _ = random.Read(noise.Sections[0].Tuples) // never fails
	noise.Seal()
	for name, b := range map[string]*batch.Batch{"small": sample(), "noise": noise} {
		data, err := b.Marshal()
		require.NoError(t, err)
		require.EqualValues(t, 1, versionOf(t, data), name)
		back, err := batch.Unmarshal(data)
		require.NoError(t, err)
		require.Equal(t, b, back, name)
		same, err := back.Expand()
		require.NoError(t, err)
		require.Equal(t, back, same)
	}
}

func TestUnmarshalCopiesNoTuples(t *testing.T) {
	t.Parallel()
	data, err := sample().Marshal()
	require.NoError(t, err)
	b, err := batch.Unmarshal(data)
	require.NoError(t, err)
	clear(data)
	require.Equal(t, make([]byte, b.TupleBytes()), b.Sections[0].Tuples)
	require.Equal(t, "db1", b.Sections[0].Server, "names are kept by themselves")
}

func TestALimitCountsWhatIsNotPackedYet(t *testing.T) {
	t.Parallel()
	for name, b := range map[string]*batch.Batch{"small": sample(), "packed": wide(50, 2), "large": wide(3000, 1)} {
		data, err := b.Marshal()
		require.NoError(t, err)
		m := &batchpb.Batch{}
		require.NoError(t, proto.Unmarshal(data, m))
		m.Version = 1
		for i, s := range m.Sections {
			s.Packed, s.Tuples = nil, b.Sections[i].Tuples
		}
		plain := proto.Size(m)
		within, err := b.MarshalWithin(plain)
		require.NoError(t, err, name)
		require.Equal(t, data, within, name)
		_, err = b.MarshalWithin(plain - 1)
		require.ErrorIs(t, err, batch.ErrTooLarge, name)
		back, err := batch.Unmarshal(data)
		require.NoError(t, err)
		_, err = back.MarshalWithin(plain - 1)
		require.ErrorIs(t, err, batch.ErrTooLarge, "%s: also when it is sent on as it came", name)
	}
}

// claim returns a block that says it expands to n bytes.
func claim(n uint64, block []byte) []byte {
	_, width := binary.Uvarint(block)
	return append(binary.AppendUvarint(nil, n), block[width:]...)
}

func TestAPackedSectionThatCannotBeIsRefused(t *testing.T) {
	t.Parallel()
	b := wide(10, 2)
	size := uint64(len(b.Sections[0].Tuples))
	data, err := b.Marshal()
	require.NoError(t, err)
	for name, test := range map[string]struct {
		change func(*batchpb.Batch)
		names  string // in the error
	}{
		"version 1":   {func(m *batchpb.Batch) { m.Version = 1 }, "sections[0].packed: is not of version 1"},
		"both":        {func(m *batchpb.Batch) { m.Sections[1].Tuples = []byte{1} }, "sections[1].packed: stands beside tuples"},
		"no length":   {func(m *batchpb.Batch) { m.Sections[0].Packed = []byte{0x80} }, "sections[0].packed"},
		"empty":       {func(m *batchpb.Batch) { m.Sections[0].Packed = []byte{0} }, "sections[0].packed: is empty"},
		"rows":        {func(m *batchpb.Batch) { m.Sections[1].Rows = size + 1 }, "sections[1].rows"},
		"one too big": {func(m *batchpb.Batch) { m.Sections[0].Packed = claim(64<<20+1, m.Sections[0].Packed) }, "sections[0].packed"},
		"too big together": {func(m *batchpb.Batch) {
			m.Sections[0].Packed = claim(64<<20-size+1, m.Sections[0].Packed)
		}, "sections[1]"},
	} {
		m := &batchpb.Batch{}
		require.NoError(t, proto.Unmarshal(data, m))
		test.change(m)
		changed, err := proto.Marshal(m)
		require.NoError(t, err)
		_, err = batch.Unmarshal(changed)
		require.ErrorContains(t, err, test.names, name)
	}
}

func TestAPackedSectionThatLiesDoesNotExpand(t *testing.T) {
	t.Parallel()
	b := wide(10, 2)
	size := uint64(len(b.Sections[0].Tuples))
	data, err := b.Marshal()
	require.NoError(t, err)
	for name, change := range map[string]func(block []byte) []byte{
		"more than there is": func(block []byte) []byte { return claim(size+1, block) },
		"less than there is": func(block []byte) []byte { return claim(size-1, block) },
		"cut":                func(block []byte) []byte { return block[:len(block)-1] },
		"longer":             func(block []byte) []byte { return append(block, 0) },
	} {
		m := &batchpb.Batch{}
		require.NoError(t, proto.Unmarshal(data, m))
		m.Sections[1].Packed = change(m.Sections[1].Packed)
		changed, err := proto.Marshal(m)
		require.NoError(t, err)
		back, err := batch.Unmarshal(changed)
		require.NoError(t, err, name)
		_, err = back.Expand()
		require.ErrorContains(t, err, "sections[1]", name)
		require.ErrorIs(t, err, batch.ErrDamaged, name)
		require.Equal(t, fault.Invalid, fault.ClassOf(err), name)
	}
}

func TestALieAboutItsSizeIsNotAllocated(t *testing.T) { // not parallel: it measures the process's allocations
	data := envelope(t, func(m *batchpb.Batch) {
		m.Version, m.Sections[0].Tuples = 2, nil
		m.Sections[0].Packed = claim(1<<32-1, s2.Encode(nil, []byte("x")))
	})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := batch.Unmarshal(data)
	runtime.ReadMemStats(&after)
	require.ErrorContains(t, err, "sections[0].packed: expands to 4294967295 bytes")
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(1<<20))
}

func TestBatchesMarshalledAtOnceDoNotMix(t *testing.T) {
	t.Parallel()
	var group errgroup.Group
	for n := range 8 {
		group.Go(func() error {
			for i := range 50 {
				b := wide(1+n+10*i, 1+n%3)
				data, err := b.Marshal()
				if err != nil {
					return err
				}
				back, err := batch.Unmarshal(bytes.Clone(data))
				if err != nil {
					return err
				}
				requireExpands(t, b, back)
			}
			return nil
		})
	}
	require.NoError(t, group.Wait())
}

func TestWhatIsNotUTF8IsNotWritten(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*batch.Batch){
		"label":  func(b *batch.Batch) { b.Labels[0].Value = "\xff" },
		"server": func(b *batch.Batch) { b.Sections[0].Server = "a\xc0" },
		"column": func(b *batch.Batch) { b.Sections[0].Columns[0].Name = "\x80" },
	} {
		b := sample()
		change(b)
		_, err := b.Marshal()
		require.ErrorContains(t, err, "is not UTF-8", name)
	}
	_, err := sample().Marshal()
	require.NoError(t, err, "the one after it is none the worse")
}

// Costs of the envelope: make the message, read it, expand it.
func BenchmarkEnvelope(bench *testing.B) {
	for _, shape := range []struct {
		name string
		rows int
	}{{"10 rows", 10}, {"250 rows", 250}} {
		b := wide(shape.rows, 1)
		b.ReceivedAt = time.Now().UTC()
		data, err := b.Marshal()
		require.NoError(bench, err)
		back, err := batch.Unmarshal(data)
		require.NoError(bench, err)
		bench.Run("marshal "+shape.name, func(bench *testing.B) {
			bench.ReportAllocs()
			for bench.Loop() {
				_, _ = b.Marshal()
			}
			bench.ReportMetric(float64(len(data)), "B/message")
		})
		bench.Run("unmarshal "+shape.name, func(bench *testing.B) {
			bench.ReportAllocs()
			for bench.Loop() {
				_, _ = batch.Unmarshal(data)
			}
		})
		bench.Run("expand "+shape.name, func(bench *testing.B) {
			bench.ReportAllocs()
			for bench.Loop() {
				_, _ = back.Expand()
			}
		})
	}
}
