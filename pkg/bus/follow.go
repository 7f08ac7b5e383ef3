package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Sink is what a bucket is followed into. Its methods are called by one
// goroutine, in this order:
//
//	Begin ─▶ Apply per key ─▶ Complete ─▶ Apply, Remove, Confirm … ─▶ Begin …
//
// After another Begin the sink should go on with what it had until Complete:
// the bucket is read again because what was followed is in doubt, and
// Confirm stops meanwhile.
type Sink interface {
	// Begin starts a new reading from nothing.
	Begin()
	// Apply takes a key's value. A value that it refuses counts as applied;
	// the error is logged, with the key.
	Apply(key string, value []byte) error
	// Remove takes a key's removal.
	Remove(key string)
	// Complete says that every key there was has been applied.
	Complete()
	// Confirm says that at this time, by our clock, all of the bucket's
	// changes had been applied.
	Confirm(at time.Time)
}

// followPause is the wait before a bucket is read again.
const followPause = 500 * time.Millisecond

// Follow feeds sink from the bucket until ctx ends, and then returns nil. A
// change arrives at once; every ConfirmEvery it asks the server for the
// bucket's last revision and its creation time. That is needed because a
// watcher gets no error when its bucket is deleted and made anew, nor when its
// consumer on the server is gone.
func (b *Bucket) Follow(ctx context.Context, sink Sink) error {
	for {
		err := b.follow(ctx, sink)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the end of ctx is the only orderly end, whatever it broke
		}
		b.bus.metrics.bucketRestarts.WithLabelValues(b.name).Inc()
		b.bus.log.Warn("bucket is read again", "bucket", b.name, "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followPause):
		}
	}
}

// follow reads the bucket once and stays with it until something is in doubt.
func (b *Bucket) follow(ctx context.Context, sink Sink) error {
	begun, err := b.ask(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	watcher, err := b.watch(ctx, cancel)
	if err != nil {
		cancel()
		return err
	}
	defer func() {
		cancel() // ends the watch, which then closes its channel
		for range watcher.Updates() {
			continue // until then its goroutine waits for room
		}
	}()

	sink.Begin()
	f := following{bucket: b, sink: sink, begun: begun, known: map[string]struct{}{}}
	tick := time.NewTicker(b.bus.cfg.ConfirmEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case entry, ok := <-watcher.Updates():
			if !ok {
				return errors.New("watch ended")
			}
			if entry != nil {
				f.apply(entry)
				continue
			}
			f.complete()
		case <-tick.C:
		}
		if err := f.confirm(ctx); err != nil {
			return err
		}
	}
}

// watch begins a watch that lives as long as ctx. If it does not begin in time
// it is cancelled: the client library would wait for an answer as long as ctx
// lives, over a connection lost meanwhile too.
func (b *Bucket) watch(ctx context.Context, cancel context.CancelFunc) (jetstream.KeyWatcher, error) {
	late := time.AfterFunc(b.bus.cfg.RequestTimeout, cancel)
	defer late.Stop()
	kv, err := b.bus.js.KeyValue(ctx, b.name)
	if err != nil {
		return nil, fmt.Errorf("open bucket: %w", err)
	}
	watcher, err := kv.WatchAll(ctx)
	if err != nil {
		return nil, fmt.Errorf("watch bucket: %w", err)
	}
	return watcher, nil
}

// ask returns the state of the stream below the bucket.
func (b *Bucket) ask(ctx context.Context) (*jetstream.StreamInfo, error) {
	// A server that does not answer must not hold up what the watcher brings.
	ctx, done := b.bus.waiting.bound(ctx, b.bus.cfg.ConfirmEvery)
	defer done()
	stream, err := b.bus.js.Stream(ctx, bucketStream(b.name))
	if err != nil {
		return nil, fmt.Errorf("ask for bucket: %w", err)
	}
	return stream.CachedInfo(), nil
}

// following is the state of one reading.
type following struct {
	bucket *Bucket
	sink   Sink
	begun  *jetstream.StreamInfo // the bucket as it was before the reading

	completed bool
	known     map[string]struct{} // subjects seen, removed keys included: each is one message
	applied   uint64              // revision
	taken     int                 // entries since the last confirm
	behind    bool                // at the last confirm
}

func (f *following) apply(e jetstream.KeyValueEntry) {
	f.known[e.Key()] = struct{}{}
	f.applied = max(f.applied, e.Revision())
	f.taken++
	if e.Operation() != jetstream.KeyValuePut {
		if f.completed { // before, nothing is there to remove
			f.sink.Remove(e.Key())
		}
		return
	}
	if err := f.sink.Apply(e.Key(), e.Value()); err != nil {
		f.bucket.bus.log.Error("bucket entry is refused", "bucket", f.bucket.name, "key", e.Key(), "revision", e.Revision(), "err", err)
	}
}

func (f *following) complete() {
	// The last revision may have been a message that is no longer there.
	f.applied = max(f.applied, f.begun.State.LastSeq)
	f.completed = true
	f.sink.Complete()
}

// confirm asks the server what there is, and tells the sink if that is what it
// has. An error means that the reading is in doubt. A server that does not
// answer puts nothing in doubt: the sink ages, and that is what it is for.
func (f *following) confirm(ctx context.Context) error {
	asked := time.Now()
	now, err := f.bucket.ask(ctx)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return err
	}
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	taken, wasBehind := f.taken, f.behind
	f.taken, f.behind = 0, false
	switch last := now.State.LastSeq; {
	case !now.Created.Equal(f.begun.Created):
		return fmt.Errorf("bucket was made anew at %s", now.Created)
	case f.applied > last:
		return fmt.Errorf("bucket went back from revision %d to %d", f.applied, last)
	case !f.completed || f.applied < last:
		// Normal, unless nothing has come since it was so before.
		f.behind = true
		if wasBehind && taken == 0 {
			return fmt.Errorf("no entry arrives after revision %d of %d", f.applied, last)
		}
	case uint64(len(f.known)) != now.State.Msgs:
		return fmt.Errorf("bucket has %d entries of %d: it was purged", now.State.Msgs, len(f.known))
	default:
		f.sink.Confirm(asked)
		f.bucket.bus.metrics.bucketConfirmed.WithLabelValues(f.bucket.name).Set(float64(asked.UnixMilli()) / 1e3)
	}
	return nil
}
