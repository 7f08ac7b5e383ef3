package pulled

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
)

// Snapshot is the bucket in a gateway's memory. It is a bus.Sink, and goes on
// with what it has while NATS is away and while the bucket is made anew.
type Snapshot struct {
	bucket    Bucket
	mu        sync.RWMutex
	complete  bool
	documents map[uuid.UUID]Record
	resends   map[uuid.UUID]Resend
	states    map[uuid.UUID]State
}

// NewSnapshot makes an empty one, to be fed by following the bucket.
func NewSnapshot(b Bucket) *Snapshot {
	return &Snapshot{bucket: b, documents: map[uuid.UUID]Record{}, resends: map[uuid.UUID]Resend{}, states: map[uuid.UUID]State{}}
}

// Answer returns what a collector is to get. False means that the bucket was
// never read to its end: what there is for it is not known.
func (s *Snapshot) Answer(collector uuid.UUID) (Answer, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r := s.effective(collector)
	a := Answer{CollectorID: collector, Version: r.Version, Document: r.Document}
	if resend, asked := s.resends[collector]; asked {
		a.Resend = &Resend{ID: resend.ID, Ranges: resend.Ranges} // who asked is not the collector's business
	}
	return a, s.complete
}

// Version returns the version that counts for a collector, 0 if there is none
// or it is not known.
func (s *Snapshot) Version(collector uuid.UUID) int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if !s.complete {
		return 0
	}
	return s.effective(collector).Version
}

func (s *Snapshot) effective(collector uuid.UUID) Record {
	return Effective(s.documents[collector], s.documents[uuid.Nil])
}

// Report writes what a collector says into the bucket unless it is there.
// Errors are the bucket's.
func (s *Snapshot) Report(ctx context.Context, collector uuid.UUID, state State) error {
	s.mu.RLock()
	known, reported := s.states[collector]
	s.mu.RUnlock()
	if reported && state.Same(known) {
		return nil
	}
	state.At = time.Now().UTC()
	if err := putState(ctx, s.bucket, collector, state); err != nil {
		return fmt.Errorf("keep what a collector says: %w", err)
	}
	return nil
}

// Begin keeps what there is: a bucket that was made anew lacks everything
// until it is filled again, and no collector may be told so.
func (s *Snapshot) Begin() {}

// Apply takes one record. A document that is older than the one known is left
// out; the error says so.
func (s *Snapshot) Apply(key string, value []byte) error {
	kind, collector, err := parseKey(key)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch kind {
	case documentKey:
		r, err := decode[Record](key, value)
		if known := s.documents[collector]; err == nil && r.Version < known.Version {
			err = fmt.Errorf("version %d is older than %d", r.Version, known.Version)
		}
		if err == nil {
			s.documents[collector] = r
		}
		return err
	case resendKey:
		return take(s.resends, collector, key, value)
	default:
		return take(s.states, collector, key, value)
	}
}

func take[T any](into map[uuid.UUID]T, collector uuid.UUID, key string, value []byte) error {
	v, err := decode[T](key, value)
	if err == nil {
		into[collector] = v
	}
	return err
}

// Remove forgets requests and states. A document is taken back by a version
// without text; one whose key is gone is about to be published again.
func (s *Snapshot) Remove(key string) {
	kind, collector, err := parseKey(key)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch kind {
	case resendKey:
		delete(s.resends, collector)
	case stateKey:
		delete(s.states, collector)
	}
}

// Complete says that every key there was has been applied.
func (s *Snapshot) Complete() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.complete = true
}

// Confirm is of no use here: a document that is late is no danger.
func (s *Snapshot) Confirm(time.Time) {}

func parseKey(key string) (kind string, collector uuid.UUID, err error) {
	for _, kind := range []string{documentKey, resendKey, stateKey} {
		name, ok := strings.CutPrefix(key, kind)
		switch {
		case !ok:
		case name == fleet && kind == documentKey:
			return kind, uuid.Nil, nil
		default:
			collector, err := uuid.Parse(name)
			if err == nil && (collector == uuid.Nil || collector.String() != name) {
				err = errors.New("not a collector")
			}
			return kind, collector, err
		}
	}
	return "", uuid.Nil, errors.New("a key of another kind")
}
