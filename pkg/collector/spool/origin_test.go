package spool

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
)

// nextEpochNames puts a batch and requires it to be the first of an epoch that
// names last as the end of the one before.
func nextEpochNames(t *testing.T, s *Spool, last batch.Mark) Stamp {
	t.Helper()
	next := put(t, s, "next")
	require.NotEqual(t, last.Epoch, next.Epoch)
	require.Equal(t, uint64(1), next.Sequence)
	require.Equal(t, last, next.Previous)
	return next
}

func TestACopyOfASpoolNumbersInAnEpochOfItsOwn(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir()}
	s := open(t, cfg)
	put(t, s, "one")
	last := put(t, s, "two")
	require.NoError(t, s.Close())
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, os.DirFS(cfg.Dir)))

	copied := open(t, Config{Dir: dir})
	next := nextEpochNames(t, copied, last.Mark)
	require.Equal(t, "one", string(accept(t, copied).Body), "what waits is sent under its old number: it is the same batch")
	require.NoError(t, copied.Close())
	copied = open(t, Config{Dir: dir})
	require.Equal(t, batch.Mark{Epoch: next.Epoch, Sequence: 2}, put(t, copied, "on").Mark)

	s = open(t, cfg)
	require.Equal(t, batch.Mark{Epoch: last.Epoch, Sequence: 3}, put(t, s, "three").Mark, "the original goes on")
}

// After a reboot the disk may be an older one.
func TestARebootBeginsANewEpoch(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir(), boot: "first"}
	s := open(t, cfg)
	last := put(t, s, "one")
	require.NoError(t, s.Close())
	cfg.boot = "second"
	s = open(t, cfg)
	nextEpochNames(t, s, last.Mark)
}

func TestAMachineThatStoodStillBeginsANewEpoch(t *testing.T) {
	t.Parallel()
	s := open(t, Config{Dir: t.TempDir()})
	last := put(t, s, "one")
	s.watch.wall = s.watch.wall.Add(-2 * time.Minute)
	next := nextEpochNames(t, s, last.Mark)
	s.watch.wall = s.watch.wall.Add(-30 * time.Second)
	require.Equal(t, batch.Mark{Epoch: next.Epoch, Sequence: 2}, put(t, s, "on").Mark, "a clock that is put right")
}

// A number can be reported in its own epoch only.
func TestANewEpochWaitsForTheRefusedNumbersToBeTold(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir(), boot: "first"}
	s := open(t, cfg)
	refusedOne(t, s, "one")
	require.NoError(t, s.Close())
	cfg.boot = "second"
	s = open(t, cfg)
	tells := put(t, s, "two")
	require.Equal(t, []uint64{1}, tells.Refused)
	require.Equal(t, uint64(2), tells.Sequence)
	nextEpochNames(t, s, tells.Mark)
}

func TestARotatedJournalKeepsTheEpoch(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir()}
	s := open(t, cfg)
	s.journal.max = 2000
	var last Stamp
	for range 40 {
		last = put(t, s, "body")
		accept(t, s)
	}
	require.NoError(t, s.Close())
	s = open(t, cfg)
	require.Equal(t, batch.Mark{Epoch: last.Epoch, Sequence: 41}, put(t, s, "on").Mark)
	require.Equal(t, 1, s.Stats().Unsent)
}

// The old file may have lost its name before the new one got it.
func TestARotationThatEndedHalfWayLosesNoEntry(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir()}
	s := open(t, cfg)
	putNumbered(t, s, 5)
	accept(t, s)
	require.NoError(t, os.Rename(filepath.Join(cfg.Dir, journalName), filepath.Join(cfg.Dir, journalPast)))
	accept(t, s)
	require.NoError(t, s.Close())
	s = open(t, cfg)
	require.Equal(t, uint64(3), accept(t, s).Sequence)
	require.NoError(t, os.Rename(filepath.Join(cfg.Dir, journalName), filepath.Join(cfg.Dir, journalPast)))
	s.journal.max = 1 // the next attempt
	accept(t, s)
	require.NoError(t, s.Close())
	s = open(t, cfg)
	require.Equal(t, 1, s.Stats().Unsent)
	require.Equal(t, uint64(6), putNumbered(t, s, 1).Sequence)
}
