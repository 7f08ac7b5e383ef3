package replay

import (
	"context"
	"fmt"
	"sync"
	"time"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
)

// source hands the missing batches of a range to an ingester, each once. It
// ends the run when nothing is left and all loaders are idle; a loader that is
// not may be waiting for the database.
type source struct {
	scan    *scan
	live    *deference
	pace    *pace
	tally   *tally
	loaders int
	end     context.CancelCauseFunc

	turn  chan struct{} // held by the one loader that reads
	queue []seen        // missing batches that were not handed out yet
	idle  int

	mu   sync.Mutex
	open map[uint64]struct{} // handed out and neither stored nor buried
	next uint64              // all before it were handed out, or need not be
	left int                 // passed over; a newer command may store them
	low  uint64              // the first of those, 0 if there is none
}

// mostOpen is how many batches may fail to be stored before the run is given
// up: then it is no longer some batches that are at fault.
const mostOpen = 10_000

func newSource(s *scan, live *deference, p *pace, t *tally, loaders int, end context.CancelCauseFunc) *source {
	return &source{
		scan: s, live: live, pace: p, tally: t, loaders: loaders, end: end,
		turn: make(chan struct{}, 1), open: map[uint64]struct{}{}, next: s.at,
	}
}

// Fetch returns batches that the database lacks. It waits for the live ones to
// go first.
func (s *source) Fetch(ctx context.Context, maxMessages, maxBytes int, _ time.Duration) ([]batch.Delivery, error) {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	fetched, err := s.fetch(ctx, maxMessages, maxBytes)
	if err == nil && len(fetched) == 0 {
		s.idle++
	}
	over := s.idle == s.loaders
	<-s.turn
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		s.tally.wait(err)
		if fault.ClassOf(err) != fault.Unavailable {
			s.end(err)
		}
		return nil, err
	case over:
		s.end(nil)
	}
	if len(fetched) == 0 {
		<-ctx.Done()
	}
	return fetched, nil
}

func (s *source) fetch(ctx context.Context, maxMessages, maxBytes int) ([]batch.Delivery, error) {
	if err := s.fill(ctx); err != nil || len(s.queue) == 0 {
		return nil, err
	}
	if err := s.live.wait(ctx, s.tally); err != nil {
		return nil, err
	}
	if err := s.pace.wait(ctx); err != nil {
		return nil, err
	}
	var fetched []batch.Delivery
	rows, size := 0, 0
	for len(s.queue) > 0 && len(fetched) < maxMessages && s.pace.allows(rows) {
		x := s.queue[0]
		if size += len(x.Payload); size > maxBytes && len(fetched) > 0 {
			break
		}
		s.queue, rows = s.queue[1:], rows+x.batch.Rows()
		fetched = append(fetched, s.hand(x))
	}
	s.pace.took(rows)
	return fetched, nil
}

// fill reads on until something is missing.
func (s *source) fill(ctx context.Context) error {
	for len(s.queue) == 0 && ctx.Err() == nil {
		some, err := s.scan.next(ctx)
		if err != nil {
			return err
		}
		if len(some) == 0 {
			return nil
		}
		s.tally.saw(some)
		s.sort(some)
	}
	return ctx.Err()
}

func (s *source) sort(some []seen) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range some {
		switch x.state {
		case missing:
			s.queue = append(s.queue, x)
		case unknown:
			s.left++
			if s.low == 0 {
				s.low = x.Sequence
			}
		}
	}
	s.next = s.scan.at
	if len(s.queue) > 0 {
		s.next = s.queue[0].Sequence
	}
}

// hand returns the batch as an ingester takes it.
func (s *source) hand(x seen) batch.Delivery {
	d := x.Delivery
	d.Ack = func(context.Context) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.open, d.Sequence)
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[d.Sequence] = struct{}{}
	s.next = s.scan.at
	if len(s.queue) > 0 {
		s.next = s.queue[0].Sequence
	}
	if len(s.open) > mostOpen {
		s.end(fmt.Errorf("%d batches could not be stored", len(s.open)))
	}
	return d
}

// position returns the sequence before which all is done, and how many after
// it are not although they were passed.
func (s *source) position() (next uint64, left int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next = s.next
	if s.low > 0 {
		next = min(next, s.low)
	}
	for sequence := range s.open {
		next = min(next, sequence)
	}
	return next, s.left + len(s.open)
}
