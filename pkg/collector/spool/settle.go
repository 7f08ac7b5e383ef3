package spool

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
)

// Answer is what the gateway said to an accepted batch.
type Answer struct {
	Rows      int
	Duplicate bool
	Rejected  int    // items that were not accepted; they become a dead letter
	Text      []byte // the answer itself, kept with it

	// Rest is a batch, under the id RestID, of just the items that were not
	// accepted. The same for the same answer, id included. Empty: they could not
	// be told apart, and the whole body is kept.
	Rest   []byte
	RestID uuid.UUID
}

// rest is the letter about the items of a batch that were not accepted.
func (a *Answer) rest(id uuid.UUID, of batch.Mark) Letter {
	l := Letter{BatchID: id, Epoch: of.Epoch, Sequence: of.Sequence, Rejected: a.Rejected, Status: http.StatusAccepted, Answer: string(a.Text)}
	if len(a.Rest) > 0 {
		l.BatchID, l.PartOf = a.RestID, id
	}
	return l
}

// body is the body of that letter, of all that was sent.
func (a *Answer) body(all []byte) []byte {
	if len(a.Rest) > 0 {
		return a.Rest
	}
	return all
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
		if err := s.keepSettled(); err != nil {
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
		l := line{Kind: kindDamaged, At: s.now(), Epoch: r.Epoch, Sequence: r.Sequence, BatchID: r.BatchID}
		if err := s.squeeze(func() error { return s.journal.append(l) }); err != nil {
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
		if err := s.bury(a.rest(r.BatchID, r.Mark), a.body(r.Body)); err != nil {
			return err
		}
	}
	l := line{
		Kind: kindAccepted, At: s.now(), Epoch: r.Epoch, Sequence: r.Sequence, BatchID: r.BatchID,
		Rows: a.Rows, Duplicate: a.Duplicate, Rejected: a.Rejected,
	}
	if err := s.settle(r, l); err != nil {
		return err
	}
	s.accepted = l.acceptance()
	return nil
}

// Refused moves the oldest batch to the dead letters. Its number, and those
// that it was to report itself, are reported in the next batch.
func (s *Spool) Refused(r *Record, why Refusal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.checkOldest(r); err != nil {
		return err
	}
	l := Letter{
		BatchID: r.BatchID, Epoch: r.Epoch, Sequence: r.Sequence,
		Status: why.Status, Code: why.Code, Answer: string(why.Text),
	}
	if err := s.bury(l, r.Body); err != nil {
		return err
	}
	numbers := append(append([]uint64(nil), r.Refused...), r.Sequence)
	entry := line{
		Kind: kindRefused, At: s.now(), Epoch: r.Epoch, Sequence: r.Sequence, BatchID: r.BatchID,
		Status: why.Status, Code: why.Code, Numbers: numbers,
	}
	if err := s.settle(r, entry); err != nil {
		return err
	}
	if !s.numbering.refuse(&entry) {
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
	if err := s.squeeze(func() error { return s.journal.append(l) }); err != nil {
		return err
	}
	s.advance(int64(fixedHeaderLen + 8*len(r.Refused) + len(r.Body)))
	if err := s.journal.rotate(s.epochLine); err != nil {
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
