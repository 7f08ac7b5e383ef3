package spool

import (
	"bytes"
	"errors"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A spool on a volume smaller than its bound fills the volume. It must then be
// emptied by being sent, for nothing else may take from it.
func TestASpoolThatFilledItsVolumeIsEmptiedBySending(t *testing.T) {
	t.Parallel()
	dir := smallVolume(t)
	s := open(t, Config{Dir: dir, SegmentBytes: 300 << 10})
	fill := func() {
		for size := 1000; size > 0; { // to the last block
			_, err := s.Append(func(Stamp) ([]byte, error) { return bytes.Repeat([]byte{1}, size), nil })
			if errors.Is(err, unix.ENOSPC) {
				size /= 2
				continue
			}
			require.NoError(t, err)
		}
	}
	var settled uint64
	for range 20 {
		fill()
		for range 200 {
			settled++
			require.Equal(t, settled, accept(t, s).Sequence)
		}
	}
	for s.Stats().Unsent > 0 {
		accept(t, s)
	}
	require.Positive(t, testutil.ToFloat64(s.metrics.squeezed), "what was kept gave its room")
}

// The bound may be larger than what the volume has.
func TestFillGoesByTheVolumeToo(t *testing.T) {
	t.Parallel()
	dir := smallVolume(t)
	s := open(t, Config{Dir: dir, SegmentBytes: 300 << 10})
	require.Zero(t, s.Stats().Fill())
	for {
		if _, err := s.Append(func(Stamp) ([]byte, error) { return make([]byte, 10_000), nil }); err != nil {
			require.ErrorIs(t, err, unix.ENOSPC)
			break
		}
	}
	require.Greater(t, s.Stats().Fill(), .95)
}

// smallVolume mounts one of 2 MiB.
func smallVolume(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); errors.Is(err, unix.EPERM) {
		t.Skip("a small volume can only be made by root")
	} else {
		require.NoError(t, err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}
