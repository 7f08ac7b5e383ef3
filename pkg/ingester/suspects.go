package ingester

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/google/uuid"
)

// suspects remembers the messages that failed alone, by their place on the
// stream, and the collectors whose batches lately could not be stored. It is
// memory only: after a restart a suspect starts anew, so it is buried later
// than it could be, never earlier.
type suspects struct {
	mu      sync.Mutex
	byPlace map[place]*suspect
	blamed  map[uuid.UUID]time.Time // collector → when its newest letter was buried
	commits uint64                  // loads committed by this process
	now     func() time.Time
}

// blameFor is how long a collector's batches are loaded alone after one of
// them was buried. One that sends nothing else would otherwise spoil every load:
// with one of twenty collectors so, the others were stored at a sixteenth of
// their speed.
const blameFor = 5 * time.Minute

type suspect struct {
	since   time.Time
	tries   int
	commits uint64 // of the process when it first failed
}

func newSuspects() *suspects {
	return &suspects{byPlace: map[place]*suspect{}, blamed: map[uuid.UUID]time.Time{}, now: time.Now}
}

// blame notes that a batch of the collector could not be stored.
func (s *suspects) blame(collector uuid.UUID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blamed[collector] = s.now()
}

// alone reports whether the message must be loaded by itself.
func (s *suspects) alone(m *message) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byPlace[m.place()] != nil {
		return true
	}
	at, blamed := s.blamed[m.batch.CollectorID]
	if blamed && s.now().Sub(at) > blameFor {
		delete(s.blamed, m.batch.CollectorID)
		return false
	}
	return blamed
}

func (s *suspects) committed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.commits++
}

func (s *suspects) forget(at place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byPlace, at)
}

// failed notes one more failure and reports whether the message has failed for
// long and often enough to be given up; with othersCommit only if other loads
// were committed meanwhile, for otherwise the fault may be the store's.
func (s *suspects) failed(at place, long time.Duration, often int, othersCommit bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.byPlace[at]
	if p == nil {
		p = &suspect{since: s.now(), commits: s.commits}
		s.byPlace[at] = p
	}
	p.tries++
	return p.tries >= often && s.now().Sub(p.since) >= long && (!othersCommit || s.commits > p.commits)
}

// backoff is the one way to wait for a neighbour that is away: from 100 ms,
// doubling up to 5 s, each wait shortened at random by up to half so that many
// ingesters do not knock together.
type backoff struct{ next time.Duration }

const (
	backoffFirst = 100 * time.Millisecond
	backoffMost  = 5 * time.Second
)

func newBackoff() *backoff { return &backoff{next: backoffFirst} }

func (b *backoff) reset() { b.next = backoffFirst }

// sleep waits and reports whether ctx is still alive.
func (b *backoff) sleep(ctx context.Context) bool {
	d := b.next - rand.N(b.next/2)
	b.next = min(2*b.next, backoffMost)
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// sqlState returns the SQLSTATE of an error that carries one, else "".
func sqlState(err error) string {
	if e, ok := errors.AsType[interface {
		error
		SQLState() string
	}](err); ok {
		return e.SQLState()
	}
	return ""
}

// familyOf returns the family that an error is about, else "".
func familyOf(err error) string {
	if e, ok := errors.AsType[interface {
		error
		Family() string
	}](err); ok {
		return e.Family()
	}
	return ""
}
