package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Batches that the gateway has answered are kept for a while, so that they can
// be sent again should what lies behind it have lost them. They stay where they
// are: a segment all of whose records are settled is kept whole and goes whole.
// When its last record was settled is the file's modification time; should a
// crash leave an older one, the segment goes sooner. Nothing depends on kept
// segments: they are not read when the spool is opened, and do not count
// against MaxBytes.

// keepSettled moves segments whose records are all settled to the kept ones.
// The newest record always stays, for it tells where the numbering ended.
func (s *Spool) keepSettled() error {
	for len(s.segments) > 1 && s.headOff >= s.segments[0].size && s.segments[1].size > 0 {
		seg := s.segments[0]
		seg.settledAt = s.cfg.now()
		if err := os.Chtimes(seg.path, time.Time{}, seg.settledAt); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("a sent segment could not be stamped; it may be kept for a shorter time", "err", err)
		}
		s.kept = append(s.kept, seg)
		s.keptBytes += seg.size
		s.segments, s.headOff = s.segments[1:], 0
	}
	return s.ageOut()
}

// ageOut removes kept segments beyond Keep and KeepBytes.
func (s *Spool) ageOut() error {
	for len(s.kept) > 0 && (s.keptBytes > s.cfg.KeepBytes || s.cfg.now().Sub(s.kept[0].settledAt) > s.cfg.Keep) {
		if err := s.dropKept(); err != nil {
			return err
		}
	}
	s.metrics.keptBytes.Set(float64(s.keptBytes))
	return nil
}

// dropKept removes the oldest kept segment and renews the journal's room.
func (s *Spool) dropKept() error {
	seg := s.kept[0]
	if err := os.Remove(seg.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove sent segment: %w", err)
	}
	s.kept = s.kept[1:]
	s.keptBytes -= seg.size
	s.metrics.keptBytes.Set(float64(s.keptBytes))
	s.journal.reserve()
	return nil
}

// squeeze writes, and while the disk has no room for it makes some of what is
// kept.
func (s *Spool) squeeze(write func() error) error {
	for {
		err := write()
		if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
			return err
		}
		if keepErr := s.keepSettled(); keepErr != nil {
			return errors.Join(err, keepErr)
		}
		if len(s.kept) == 0 {
			return err
		}
		s.metrics.squeezed.Inc()
		s.log.Warn("the disk is full; sent batches that were kept for sending again are dropped early", "bytes", s.kept[0].size)
		if dropErr := s.dropKept(); dropErr != nil {
			return errors.Join(err, dropErr)
		}
	}
}
