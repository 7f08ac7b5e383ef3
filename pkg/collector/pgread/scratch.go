package pgread

import (
	"context"
	"slices"
	"time"
)

// Results of which little is sent: a sample of 2,000 statements is more than a
// megabyte, and most of it is like the one before. Those of many servers come
// at the same moments, and together would be most of what the process holds.
const (
	largeResult  = 256 << 10
	turnWait     = 3 * time.Second
	scratchBytes = 4 << 20 // of a buffer that is kept, at most
)

// turn is held by whoever reads a large result, until it is handed over.
var turn = make(turns, 1)

// turns are had by one at a time. They only smooth: a server that does not
// answer holds up the others for no longer than turnWait.
type turns chan struct{}

// take waits for the turn, or long enough, and returns what ends it.
func (t turns) take(ctx context.Context) (end func()) {
	timer := time.NewTimer(turnWait)
	defer timer.Stop()
	select {
	case t <- struct{}{}:
		return func() { <-t }
	case <-timer.C:
	case <-ctx.Done():
	}
	return func() {}
}

// scratch holds the buffers that a turn takes: for a result, and for the one
// before it. Unlike a sync.Pool it survives the garbage collector, which
// buffers of this size would otherwise call.
var scratch = make(chan []byte, 2)

// borrow returns an empty buffer with room for so many bytes.
func borrow(size int) []byte {
	if size >= largeResult {
		select {
		case b := <-scratch:
			return slices.Grow(b[:0], size)
		default:
		}
	}
	return make([]byte, 0, size)
}

func giveBack(b []byte) {
	if cap(b) < largeResult || cap(b) > scratchBytes {
		return
	}
	select {
	case scratch <- b:
	default:
	}
}
