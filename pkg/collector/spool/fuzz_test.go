package spool

import (
	"bytes"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
)

// FuzzScan promises: no input makes scan panic, all bytes are either in a
// record or counted as damage, and a readable record is encoded to the very
// bytes it was read from.
func FuzzScan(f *testing.F) {
	one := appendRecord(nil, &Record{
		Stamp: Stamp{Mark: batch.Mark{Epoch: uuid.Max, Sequence: 9}, BatchID: uuid.NameSpaceDNS, Refused: []uint64{1, 2}},
		Body:  []byte("body"),
	})
	two := appendRecord(append([]byte(nil), one...), &Record{Body: []byte("x")})
	f.Add([]byte{})
	f.Add(one)
	f.Add(two)
	f.Add(two[:len(two)-1])
	f.Add(append([]byte("rubbish"), two...))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, d := scan(data)
		total, end := d.bytes, 0
		for _, e := range entries {
			require.GreaterOrEqual(t, e.off, end)
			end = e.off + e.size
			r, n, err := decodeRecord(data[e.off:])
			require.NoError(t, err)
			require.Equal(t, e.size, n)
			require.Equal(t, data[e.off:end], appendRecord(nil, &r))
			total += int64(e.size)
		}
		require.Equal(t, int64(len(data)), total)
	})
}

// FuzzJournal promises: no input makes the reader panic, and what it accepts
// survives being written again.
func FuzzJournal(f *testing.F) {
	text, err := (&line{Kind: kindRefused, Sequence: 3, Numbers: []uint64{1, 3}}).encode()
	require.NoError(f, err)
	f.Add(text)
	f.Add(text[:len(text)-2])
	f.Add(append(append([]byte("\n"), text...), text...))
	f.Fuzz(func(t *testing.T, data []byte) {
		lines, _, size, torn := decoded(t, data)
		require.Equal(t, int64(len(data)), size+torn)
		for _, l := range lines {
			text, err := l.encode()
			require.NoError(t, err)
			again, bad, _, _ := decoded(t, text)
			require.Zero(t, bad)
			require.Equal(t, []line{l}, again)
		}
	})
}

func decoded(t *testing.T, data []byte) (lines []line, bad int, size, torn int64) {
	t.Helper()
	bad, size, torn, err := decodeJournal(bytes.NewReader(data), func(l *line) { lines = append(lines, *l) })
	require.NoError(t, err)
	return lines, bad, size, torn
}
