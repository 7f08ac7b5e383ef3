package ingester

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"pganalytics/pkg/batch"
)

// message is one delivery in this process's hand.
type message struct {
	batch.Delivery
	batch    *batch.Batch
	done     atomic.Bool // acknowledged, or given back to the stream
	ended    bool        // stored or buried
	replayed bool        // it was acknowledged before
}

// place tells the message from every other, also from those of a stream that
// was made anew and counts from 1 again.
type place struct {
	incarnation string
	sequence    uint64
}

func (m *message) place() place { return place{m.Incarnation, m.Sequence} }

// hand is what one fetch brought.
type hand struct{ messages []*message }

func newHand(fetched []batch.Delivery) *hand {
	h := &hand{messages: make([]*message, len(fetched))}
	for i, d := range fetched {
		h.messages[i] = &message{Delivery: d}
	}
	return h
}

// keepAlive tells the stream every so often that the unfinished messages are
// still at work, so that a pause or a long load uses up no delivery. The
// returned function ends it and waits until it has ended.
func (h *hand) keepAlive(every time.Duration, onError func(*message, error)) (stop func()) {
	quit := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			for _, m := range h.messages {
				if m.done.Load() {
					continue
				}
				if err := m.Extend(); err != nil {
					onError(m, err)
				}
			}
		}
	})
	return func() { close(quit); wg.Wait() }
}

// cut divides messages into loads of at most maxRows rows and maxBytes bytes of
// tuples, in the stream's order. Whatever failed before goes alone, so that it
// cannot take its neighbours down again, and last, so that it does not hold
// them up.
func cut(messages []*message, known *suspects, maxRows, maxBytes int) [][]*message {
	var loads, alone [][]*message
	var load []*message
	rows, bytes := 0, 0
	flush := func() {
		if len(load) > 0 {
			loads = append(loads, load)
		}
		load, rows, bytes = nil, 0, 0
	}
	for _, m := range messages {
		if known.alone(m) {
			alone = append(alone, []*message{m})
			continue
		}
		r, n := m.batch.Rows(), m.batch.TupleBytes()
		if rows+r > maxRows || bytes+n > maxBytes {
			flush()
		}
		load, rows, bytes = append(load, m), rows+r, bytes+n
	}
	flush()
	return append(loads, alone...)
}

func items(load []*message) []batch.Item {
	items := make([]batch.Item, len(load))
	for i, m := range load {
		items[i] = batch.Item{Batch: m.batch, Position: m.Position}
	}
	return items
}

// buryReason names why a batch that failed alone can never be stored.
func buryReason(err error) string {
	if errors.Is(err, batch.ErrDamaged) {
		return "undecodable"
	}
	return "data_error"
}
