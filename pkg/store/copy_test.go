package store

import (
	"bytes"
	"io"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
)

// sectionsOf returns sections of so many bytes as they come from the stream,
// packed where that pays, and the COPY stream that they make.
func sectionsOf(t *testing.T, sizes ...int) (sections []*batch.Section, stream []byte) {
	t.Helper()
	at := time.UnixMicro(1_700_000_000_000_000).UTC()
	b := &batch.Batch{CollectorID: uuid.New(), ID: uuid.New(), SentAt: at, ReceivedAt: at}
	stream = append(stream, batch.CopyHeader...)
	for i, size := range sizes {
		rows := bytes.Repeat([]byte{byte(i), 1, 2, 3}, size/4)
		b.Sections = append(b.Sections, batch.Section{Family: "f", MinTime: at, MaxTime: at, Rows: min(1, size), Tuples: rows})
		stream = append(stream, rows...)
	}
	data, err := b.Marshal()
	require.NoError(t, err)
	back, err := batch.Unmarshal(data)
	require.NoError(t, err)
	for i := range back.Sections {
		sections = append(sections, &back.Sections[i])
	}
	return sections, append(stream, batch.CopyTrailer...)
}

func TestPackedAndPlainSectionsMakeOneCopyStream(t *testing.T) {
	t.Parallel()
	sections, want := sectionsOf(t, 4, 8000, 0, 100, 200_000, 60, 4000)
	require.Nil(t, sections[1].Tuples, "it is packed")
	require.NotNil(t, sections[3].Tuples, "it is not")
	require.NoError(t, iotest.TestReader(&tuples{sections: sections, rest: batch.CopyHeader}, want))

	full := make([]byte, 64<<10)
	n, err := (&tuples{sections: sections, rest: batch.CopyHeader}).Read(full)
	require.NoError(t, err)
	require.Equal(t, len(full), n, "a message is filled from as many sections as it takes")
	require.Nil(t, sections[1].Tuples, "reading expands nothing in the batch itself")
}

func TestADamagedSectionEndsItsCopy(t *testing.T) {
	t.Parallel()
	at := time.UnixMicro(1_700_000_000_000_000).UTC()
	b := &batch.Batch{CollectorID: uuid.New(), ID: uuid.New(), SentAt: at, ReceivedAt: at, Sections: []batch.Section{{
		Family: "f", MinTime: at, MaxTime: at, Rows: 1, Tuples: bytes.Repeat([]byte("row "), 2000),
	}}}
	data, err := b.Marshal()
	require.NoError(t, err)
	data[len(data)-1]++ // the end of the block
	back, err := batch.Unmarshal(data)
	require.NoError(t, err)
	stream := &tuples{sections: []*batch.Section{&back.Sections[0]}, rest: batch.CopyHeader}
	_, err = io.ReadAll(stream)
	require.ErrorIs(t, err, batch.ErrDamaged)
	require.ErrorIs(t, stream.err, batch.ErrDamaged)
	_, err = stream.Read(make([]byte, 10))
	require.ErrorIs(t, err, batch.ErrDamaged, "and stays so")
}
