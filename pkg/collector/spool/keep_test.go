package spool

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
)

// clock is a collector's that is put forward by hand.
type clock struct{ at time.Time }

func newClock() *clock { return &clock{time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC)} }

func (c *clock) now() time.Time { return c.at }

// find returns the sequences found and the ranges that are missing.
func find(t *testing.T, s *Spool, ranges ...Range) (found []uint64, missing []Range) {
	t.Helper()
	kept, missing, err := s.FindKept(ranges)
	require.NoError(t, err)
	for _, k := range kept {
		r, err := s.ReadKept(k)
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintf("body %d", r.Sequence), string(r.Body))
		found = append(found, r.Sequence)
	}
	return found, missing
}

func putNumbered(t *testing.T, s *Spool, n int) Stamp {
	t.Helper()
	var last Stamp
	for range n {
		var err error
		last, err = s.Append(func(st Stamp) ([]byte, error) { return fmt.Appendf(nil, "body %d", st.Sequence), nil })
		require.NoError(t, err)
	}
	return last
}

func TestAnsweredBatchesAreFoundAgainByTheirNumbers(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir(), SegmentBytes: 300}
	s := open(t, cfg)
	epoch := putNumbered(t, s, 30).Epoch
	for range 20 {
		accept(t, s)
	}
	for range 2 { // also after a restart
		found, missing := find(t, s, Range{epoch, 3, 5}, Range{epoch, 18, 33}, Range{uuid.Max, 1, 2})
		require.Equal(t, []uint64{3, 4, 5, 18, 19, 20}, found, "unsent ones are sent anyway")
		require.Equal(t, []Range{{epoch, 31, 33}, {uuid.Max, 1, 2}}, missing)
		require.Equal(t, 10, s.Stats().Unsent)
		require.Equal(t, uint64(21), oldest(t, s).Sequence)
		require.NoError(t, s.Close())
		s = open(t, cfg)
	}
}

func TestKeptBatchesGoByAgeAndBySize(t *testing.T) {
	t.Parallel()
	c := newClock()
	cfg := Config{Dir: t.TempDir(), SegmentBytes: 300, Keep: time.Hour, KeepBytes: 900, now: c.now}
	s := open(t, cfg)
	epoch := putNumbered(t, s, 6).Epoch
	for range 5 { // the last segment stays with those that wait
		accept(t, s)
	}
	_, _, err := s.Oldest()
	require.NoError(t, err)
	found, _ := find(t, s, Range{epoch, 1, 5})
	require.Equal(t, []uint64{1, 2, 3, 4, 5}, found)
	c.at = c.at.Add(time.Hour)
	require.NoError(t, s.Close())
	s = open(t, cfg)
	found, _ = find(t, s, Range{epoch, 1, 5})
	require.Equal(t, []uint64{1, 2, 3, 4, 5}, found, "their time is not yet over")
	c.at = c.at.Add(time.Second)
	putNumbered(t, s, 1)
	accept(t, s)
	_, _, err = s.Oldest()
	require.NoError(t, err)
	found, missing := find(t, s, Range{epoch, 1, 5})
	require.Equal(t, []uint64{4, 5}, found, "whole segments go: this one has the batch after")
	require.Equal(t, []Range{{epoch, 1, 3}}, missing)

	putNumbered(t, s, 60)
	for s.Stats().Unsent > 0 {
		accept(t, s)
	}
	require.LessOrEqual(t, s.Stats().KeptBytes, int64(900))
	require.Positive(t, s.Stats().KeptBytes)
}

// What waits is never too old, however long the outage.
func TestUnsentBatchesNeverAgeOut(t *testing.T) {
	t.Parallel()
	c := newClock()
	cfg := Config{Dir: t.TempDir(), SegmentBytes: 300, Keep: time.Hour, KeepBytes: 400, now: c.now}
	s := open(t, cfg)
	for range 40 {
		putNumbered(t, s, 1)
		c.at = c.at.Add(24 * time.Hour)
	}
	require.NoError(t, s.Close())
	s = open(t, cfg)
	for i := range uint64(40) {
		require.Equal(t, i+1, accept(t, s).Sequence)
	}
}

func TestKeptBatchesTakeNoRoomFromThoseThatWait(t *testing.T) {
	t.Parallel()
	s := open(t, Config{Dir: t.TempDir(), SegmentBytes: 300, MaxBytes: 1000})
	putNumbered(t, s, 9)
	for range 9 {
		accept(t, s)
	}
	_, _, err := s.Oldest()
	require.NoError(t, err)
	require.Positive(t, s.Stats().KeptBytes)
	require.Zero(t, s.Stats().Used())
	require.Zero(t, s.Stats().Fill())
	putNumbered(t, s, 9)
	require.InDelta(t, .85, s.Stats().Fill(), .1)
	_, err = s.Append(func(Stamp) ([]byte, error) { return make([]byte, 900), nil })
	require.ErrorIs(t, err, ErrFull)
}

func TestADamagedKeptBatchIsMissingAndNothingElse(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir(), SegmentBytes: 300}
	s := open(t, cfg)
	last := putNumbered(t, s, 12)
	for range 12 {
		accept(t, s)
	}
	kept, _, err := s.FindKept([]Range{{last.Epoch, 1, 12}})
	require.NoError(t, err)
	require.Len(t, kept, 12)
	first := kept[0].segment.path
	require.NoError(t, s.Close())
	data, err := os.ReadFile(first)
	require.NoError(t, err)
	data[bytes.Index(data, []byte("body 2"))] ^= 1
	require.NoError(t, os.WriteFile(first, data, 0o600))

	_, err = s.ReadKept(kept[1])
	require.ErrorIs(t, err, ErrGone)
	s = open(t, cfg)
	found, missing := find(t, s, Range{last.Epoch, 1, 3})
	require.Equal(t, []uint64{1, 3}, found)
	require.Equal(t, []Range{{last.Epoch, 2, 2}}, missing)
	require.Equal(t, batch.Mark{Epoch: last.Epoch, Sequence: 13}, putNumbered(t, s, 1).Mark, "what is settled proves nothing, and is no reason for a new epoch")
}

// A lost record that was the last to be settled must not bring back all that is
// kept.
func TestTheCursorHoldsWithoutItsOwnRecord(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir(), SegmentBytes: 300}
	s := open(t, cfg)
	putNumbered(t, s, 12)
	for range 5 {
		accept(t, s)
	}
	kept, _, err := s.FindKept([]Range{{s.Stats().Last.Epoch, 5, 5}})
	require.NoError(t, err)
	require.NoError(t, s.Close())
	data, err := os.ReadFile(kept[0].segment.path)
	require.NoError(t, err)
	data[bytes.Index(data, []byte("body 5"))] ^= 1
	require.NoError(t, os.WriteFile(kept[0].segment.path, data, 0o600))
	s = open(t, cfg)
	require.Equal(t, 7, s.Stats().Unsent)
	require.Equal(t, uint64(6), oldest(t, s).Sequence)
}

// Three weeks: a batch every ten minutes, a weekend without a gateway in each,
// a restart a day. The directory stays within what the limits say.
func TestDiskUseStaysWithinItsBoundsOverWeeks(t *testing.T) {
	t.Parallel()
	c := newClock()
	cfg := Config{
		Dir: t.TempDir(), SegmentBytes: 16 << 10, MaxBytes: 600 << 10, Keep: 24 * time.Hour, KeepBytes: 100 << 10, now: c.now,
	}
	s := open(t, cfg)
	s.journal.max = 20 << 10
	var most, taken, sent int64
	var kept int64
	for hour := range 3 * 7 * 24 {
		weekend := hour/24%7 >= 5
		for range 6 {
			c.at = c.at.Add(10 * time.Minute)
			stamp, err := s.Append(func(Stamp) ([]byte, error) { return make([]byte, 1024), nil })
			require.NoError(t, err)
			taken++
			require.Equal(t, uint64(taken), stamp.Sequence)
			for !weekend && s.Stats().Unsent > 0 {
				sent++
				require.Equal(t, uint64(sent), accept(t, s).Sequence)
			}
		}
		most = max(most, diskUse(t, cfg.Dir))
		kept = max(kept, s.Stats().KeptBytes)
		if hour%24 == 23 {
			require.NoError(t, s.Close())
			s = open(t, cfg)
			s.journal.max = 20 << 10
		}
	}
	journals := int64(2*(20<<10) + 1<<10)
	require.LessOrEqual(t, most, cfg.MaxBytes+cfg.KeepBytes+3*cfg.SegmentBytes+journals)
	require.LessOrEqual(t, kept, cfg.KeepBytes)
	require.Greater(t, kept, cfg.KeepBytes*8/10)
	require.InDelta(t, 0, testutil.ToFloat64(s.metrics.full), 0)
	t.Logf("%d batches, at most %d bytes on disk, %d kept", taken, most, kept)
}

// diskUse returns the bytes of all files, as far as they are written.
func diskUse(t *testing.T, dir string) (n int64) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		n += info.Size()
		return err
	}))
	return n
}
