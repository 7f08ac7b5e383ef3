package bus

import (
	"context"
	"errors"
	"sync"
	"time"
)

// errLost is the cause with which every wait for an answer ends that was under
// way when the connection was lost.
var errLost = errors.New("nats connection lost")

// waiting knows everyone who waits for an answer of the server. An answer does
// not come over a lost connection, but the client library waits for it until
// the context ends.
type waiting struct {
	mu   sync.Mutex
	next uint64
	all  map[uint64]context.CancelCauseFunc
}

// bound limits a wait for the server to limit, and to the life of the
// connection. The returned function must be called after the wait.
func (w *waiting) bound(ctx context.Context, limit time.Duration) (context.Context, func()) {
	ctx, stop := context.WithTimeout(ctx, limit)
	ctx, cancel := context.WithCancelCause(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all == nil {
		w.all = map[uint64]context.CancelCauseFunc{}
	}
	id := w.next
	w.next++
	w.all[id] = cancel
	return ctx, func() {
		w.mu.Lock()
		delete(w.all, id)
		w.mu.Unlock()
		cancel(nil)
		stop()
	}
}

// lose ends all waits. One that begins at this moment may be ended too, on the
// new connection: it is repeated like any other.
func (w *waiting) lose() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, cancel := range w.all {
		cancel(errLost)
	}
}

// request bounds the wait for one answer.
func (b *Bus) request(ctx context.Context) (context.Context, func()) {
	return b.waiting.bound(ctx, b.cfg.RequestTimeout)
}
