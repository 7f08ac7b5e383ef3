package spool

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"pganalytics/pkg/batch"
)

// Stats is a spool's state.
type Stats struct {
	Last        batch.Mark // last number given
	Unsent      int
	UnsentBytes int64
	OldestAt    time.Time // when the oldest unsent batch was made; zero: there is none
	KeptBytes   int64     // of batches that were answered and are in whole kept segments
	DeadLetters int
	DeadBytes   int64
	Accepted    Acceptance // the last one

	// MaxBytes is the bound of UnsentBytes and DeadBytes, Room what may still be
	// added: less than is left of MaxBytes if the volume has less. 0 in what
	// Inspect returns.
	MaxBytes, Room int64
}

// Used is the bytes that are neither sent nor given up.
func (s Stats) Used() int64 { return s.UnsentBytes + s.DeadBytes }

// Fill returns from 0 to 1 how full the spool is: 1 when it takes nothing more,
// be it by its bound or because the volume is full.
func (s Stats) Fill() float64 {
	if s.Room <= 0 {
		return 1
	}
	return float64(s.Used()) / float64(s.Used()+s.Room)
}

// Inspect reads the state of the spool in dir without opening it, also beside
// a running collector.
func Inspect(dir string) (Stats, error) {
	st, err := readState(dir)
	if err != nil {
		return Stats{}, fmt.Errorf("inspect spool %s: %w", dir, err)
	}
	stats := st.stats()
	stats.Last, stats.Accepted = st.last, st.accepted
	if st.unsent > 0 {
		stats.OldestAt = oldestAt(st.segments, st.headOff)
	}
	return stats, nil
}

// Stats returns the state now.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.load.stats()
	stats.Last, stats.Accepted, stats.MaxBytes = s.last, s.accepted, s.cfg.MaxBytes
	if s.unsent > 0 {
		if s.head != nil {
			stats.OldestAt = madeAt(&s.head.Stamp)
		} else {
			stats.OldestAt = oldestAt(s.segments, s.headOff)
		}
	}
	stats.Room = max(0, s.cfg.MaxBytes-stats.Used())
	var fs unix.Statfs_t
	if err := unix.Statfs(s.cfg.Dir, &fs); err == nil { // else the bound alone counts
		stats.Room = min(stats.Room, int64(fs.Bavail)*int64(fs.Bsize)+s.keptBytes) //nolint:unconvert // not an int64 everywhere
	}
	return stats
}

func (l *load) stats() Stats {
	return Stats{
		Unsent: l.unsent, UnsentBytes: l.unsentBytes,
		KeptBytes: l.keptBytes, DeadLetters: l.dead, DeadBytes: l.deadBytes,
	}
}

// oldestAt returns when the record at off in the first of the segments, or at
// the start of one behind it, was made; zero if it cannot be read.
func oldestAt(segments []*segment, off int64) time.Time {
	for _, seg := range segments {
		if off < seg.size {
			r, err := seg.read(off)
			if err != nil {
				return time.Time{}
			}
			return madeAt(&r.Stamp)
		}
		off = 0
	}
	return time.Time{}
}

// madeAt returns the time in the batch's id.
func madeAt(s *Stamp) time.Time {
	sec, nsec := s.BatchID.Time().UnixTime()
	return time.Unix(sec, nsec).UTC()
}
