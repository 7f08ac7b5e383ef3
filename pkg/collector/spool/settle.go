package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// deadDir holds refused bodies: <batch id>.json.zst, and beside it
// <batch id>.answer with what the gateway said.
const deadDir = "dead"

// Answer is what the gateway said to an accepted batch.
type Answer struct {
	Rows      int
	Duplicate bool
	Rejected  int    // items that were not accepted; the body is then kept as a dead letter
	Text      []byte // the answer itself, kept with the dead letter
}

// Refusal is a final no.
type Refusal struct {
	Status int
	Code   string
	Text   []byte // the answer itself
}

// Oldest returns the oldest batch that is not settled, or false when there is
// none. The record must not be changed.
func (s *Spool) Oldest() (*Record, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, false, ErrClosed
	}
	for s.head == nil {
		if err := s.dropSettled(); err != nil {
			return nil, false, err
		}
		if len(s.segments) == 0 || s.headOff >= s.segments[0].size {
			return nil, false, nil
		}
		r, err := s.segments[0].read(s.headOff)
		if errors.Is(err, errDamaged) || errors.Is(err, errTorn) {
			if err := s.skipDamaged(r); err != nil {
				return nil, false, err
			}
			continue
		}
		if err != nil {
			return nil, false, fmt.Errorf("read spool: %w", err)
		}
		s.head = r
	}
	return s.head, true, nil
}

// skipDamaged passes over a record that became unreadable after the spool was
// opened. Its number is missing from then on, which is how the loss shows.
func (s *Spool) skipDamaged(r *Record) error {
	seg := s.segments[0]
	data, err := os.ReadFile(seg.path)
	if err != nil {
		return fmt.Errorf("read spool: %w", err)
	}
	next := int64(nextRecord(data[:min(int64(len(data)), seg.size)], int(s.headOff)+1))
	next = min(next, seg.size)
	s.metrics.damaged.Inc()
	s.metrics.cutBytes.Add(float64(next - s.headOff))
	s.log.Error("a spooled batch became unreadable and is lost",
		"segment", filepath.Base(seg.path), "offset", s.headOff, "bytes", next-s.headOff,
		"epoch", r.Epoch, "sequence", r.Sequence)
	if r.Sequence != 0 { // else the cursor moves with the next one
		if err := s.journal.append(line{Kind: kindDamaged, At: now(), Epoch: r.Epoch, Sequence: r.Sequence, BatchID: r.BatchID}); err != nil {
			return err
		}
	}
	s.advance(next - s.headOff)
	return nil
}

// Accepted settles the oldest batch after a 202. After an error it is still
// the oldest, and sending it again is harmless.
func (s *Spool) Accepted(r *Record, a Answer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.checkOldest(r); err != nil {
		return err
	}
	if a.Rejected > 0 {
		if err := s.bury(r, a.Text); err != nil {
			return err
		}
	}
	return s.settle(r, line{
		Kind: kindAccepted, At: now(), Epoch: r.Epoch, Sequence: r.Sequence, BatchID: r.BatchID,
		Rows: a.Rows, Duplicate: a.Duplicate, Rejected: a.Rejected,
	})
}

// Refused moves the oldest batch to the dead letters. Its number, and those
// that it was to report itself, are reported in the next batch.
func (s *Spool) Refused(r *Record, why Refusal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.checkOldest(r); err != nil {
		return err
	}
	if err := s.bury(r, why.Text); err != nil {
		return err
	}
	numbers := append(append([]uint64(nil), r.Refused...), r.Sequence)
	l := line{
		Kind: kindRefused, At: now(), Epoch: r.Epoch, Sequence: r.Sequence, BatchID: r.BatchID,
		Status: why.Status, Code: why.Code, Numbers: numbers,
	}
	if err := s.settle(r, l); err != nil {
		return err
	}
	if !s.numbering.refuse(&l) {
		s.log.Warn("the number of a refused batch of an ended epoch cannot be reported", "epoch", r.Epoch, "sequence", r.Sequence)
	}
	return nil
}

func (s *Spool) checkOldest(r *Record) error {
	if s.closed {
		return ErrClosed
	}
	if s.head == nil || s.head != r {
		return errStale
	}
	return nil
}

func (s *Spool) settle(r *Record, l line) error {
	if err := s.journal.append(l); err != nil {
		return err
	}
	s.advance(int64(fixedHeaderLen + 8*len(r.Refused) + len(r.Body)))
	if err := s.journal.rotate(s.epochLine()); err != nil {
		s.log.Warn("spool journal could not be rotated", "err", err)
	}
	return nil
}

// advance moves the head over n settled bytes.
func (s *Spool) advance(n int64) {
	s.head = nil
	s.headOff += n
	s.unsent--
	s.unsentBytes -= n
	s.gauge()
	signal(s.room)
}

// dropSettled removes segments whose records are all settled. The newest
// record always stays, for it tells where the numbering ended.
func (s *Spool) dropSettled() error {
	for len(s.segments) > 1 && s.headOff >= s.segments[0].size && s.segments[1].size > 0 {
		if err := os.Remove(s.segments[0].path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove sent segment: %w", err)
		}
		s.segments, s.headOff = s.segments[1:], 0
		s.journal.reserve()
	}
	return nil
}

// bury writes the body, and the answer to it, into the dead letters.
func (s *Spool) bury(r *Record, answer []byte) error {
	base := filepath.Join(s.cfg.Dir, deadDir, r.BatchID.String())
	if err := writeFile(base+".json.zst", r.Body); err != nil {
		return fmt.Errorf("write dead letter: %w", err)
	}
	if err := writeFile(base+".answer", answer); err != nil {
		return fmt.Errorf("write dead letter: %w", err)
	}
	s.deadBytes += int64(len(r.Body) + len(answer))
	s.metrics.deadLetters.Inc()
	return nil
}

// deadBytes returns the bytes of all dead letters.
func deadBytes(dir string) (int64, error) {
	entries, err := os.ReadDir(filepath.Join(dir, deadDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("read dead letters: %w", err)
	}
	var n int64
	for _, e := range entries {
		if info, err := e.Info(); err == nil { // else removed meanwhile
			n += info.Size()
		}
	}
	return n, nil
}
