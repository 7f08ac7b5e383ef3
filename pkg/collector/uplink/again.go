package uplink

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"pganalytics/pkg/collector/spool"
)

// lookAgain is how often dead letters are looked through for those that are to
// be sent again.
const lookAgain = 5 * time.Second

// again is what is to be sent a second time, while nothing waits that was never
// sent: batches whose numbers somebody asked for, and dead letters.
type again struct {
	asked chan struct{} // size 1: a forgotten signal, not a queue
	look  time.Time     // no look at the dead letters before
	rest  time.Time     // nothing is sent again before: the last attempt was held

	mu     sync.Mutex
	ranges []spool.Range // asked for and not yet done; on disk too
	queue  []spool.Kept
	tally  tally
}

type tally struct{ sent, refused, gone int }

func newAgain() again { return again{asked: make(chan struct{}, 1)} }

// Resend sends the batches of these numbers again, with the bytes and the id
// that they had, so that whatever has them already knows them. It returns when
// it has found them and the wish is on disk, from where it is taken up after a
// restart: found is how many batches are kept, missing how many of the numbers
// are not, and are not waiting to be sent either.
func (p *Pusher) Resend(_ context.Context, ranges []spool.Range) (found, missing int, err error) {
	kept, lacking, err := p.spool.FindKept(ranges)
	if err != nil {
		return 0, 0, fmt.Errorf("send again: %w", err)
	}
	for _, r := range lacking {
		missing = int(min(uint64(missing)+min(r.Last-r.First, math.MaxInt32)+1, math.MaxInt32))
		p.log.Warn("batches to be sent again are no longer kept", "epoch", r.Epoch, "first", r.First, "last", r.Last)
	}
	if len(kept) == 0 {
		return 0, missing, nil
	}
	p.again.mu.Lock()
	defer p.again.mu.Unlock()
	all := append(p.again.ranges[:len(p.again.ranges):len(p.again.ranges)], ranges...)
	if err := p.spool.WantResend(all); err != nil {
		return 0, 0, fmt.Errorf("send again: %w", err)
	}
	p.again.ranges, p.again.queue = all, append(p.again.queue, kept...)
	p.log.Info("batches are sent again", "batches", len(kept), "waiting", len(p.again.queue))
	select {
	case p.again.asked <- struct{}{}:
	default:
	}
	return len(kept), missing, nil
}

// takeUp goes on with what a process before was asked to send again.
func (p *Pusher) takeUp() {
	if _, asked := p.again.first(); asked {
		return // by this one, before it ran
	}
	ranges, err := p.spool.WantedResend()
	if err == nil && len(ranges) > 0 {
		var found int
		if found, _, err = p.Resend(context.Background(), ranges); err == nil && found == 0 {
			err = p.spool.WantResend(nil)
		}
	}
	if err != nil {
		p.log.Error("what was to be sent again is not known any more; ask again", "err", err)
	}
}

// sendAgain sends one batch or dead letter a second time. It returns false if
// there is none. The order to stop ends it: what it did not finish waits.
func (p *Pusher) sendAgain(ctx context.Context) bool {
	if time.Now().Before(p.again.rest) {
		return false
	}
	if kept, ok := p.again.first(); ok {
		p.sendKept(ctx, kept)
		return true
	}
	if time.Now().Before(p.again.look) {
		return false
	}
	letters, err := p.spool.Asked()
	if err != nil {
		p.log.Error("dead letters cannot be read", "err", err)
	}
	if len(letters) == 0 {
		p.again.look = time.Now().Add(lookAgain)
		return false
	}
	p.sendLetter(ctx, letters[0])
	return true
}

func (a *again) first() (spool.Kept, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.queue) == 0 {
		return spool.Kept{}, false
	}
	return a.queue[0], true
}

func (p *Pusher) sendKept(ctx context.Context, kept spool.Kept) {
	rec, err := p.spool.ReadKept(kept)
	if errors.Is(err, spool.ErrGone) {
		p.done(func(t *tally) { t.gone++ })
		return
	}
	if err != nil {
		p.hold(ctx, ctx, verdict{result: unexpected, err: err})
		return
	}
	v, ok := p.pushAgain(ctx, rec.Body)
	if !ok {
		return
	}
	p.settled(ctx, ctx, nil)
	p.done(func(t *tally) {
		if v.result == refused {
			t.refused++ // as it was the first time, or the gateway has changed its mind; what is kept is not moved
		} else {
			t.sent++
		}
	})
}

// pushAgain pushes what is not new. If it is held, what is new is not held with
// it for longer than one pause.
func (p *Pusher) pushAgain(ctx context.Context, body []byte) (verdict, bool) {
	v, ok := p.push(ctx, ctx, body)
	if !ok {
		p.again.rest = time.Now().Add(p.cfg.MaxBackoff)
	} else {
		p.client.metrics.resent.WithLabelValues(string(v.result)).Inc()
	}
	return v, ok
}

// done takes the first one off the queue.
func (p *Pusher) done(count func(*tally)) {
	a := &p.again
	a.mu.Lock()
	defer a.mu.Unlock()
	count(&a.tally)
	a.queue = a.queue[1:]
	if len(a.queue) > 0 {
		return
	}
	p.log.Info("batches have been sent again", "sent", a.tally.sent, "refused", a.tally.refused, "no_longer_kept", a.tally.gone)
	a.ranges, a.tally = nil, tally{}
	if err := p.spool.WantResend(nil); err != nil {
		p.log.Warn("batches that were sent again will be once more after a restart", "err", err)
	}
}

func (p *Pusher) sendLetter(ctx context.Context, l spool.Letter) {
	body, err := p.spool.LetterBody(l)
	if errors.Is(err, spool.ErrNoLetter) {
		return // discarded meanwhile
	}
	if err != nil {
		p.hold(ctx, ctx, verdict{result: unexpected, err: err})
		return
	}
	v, ok := p.pushAgain(ctx, body)
	if !ok {
		return
	}
	if v.result == refused {
		p.log.Error("gateway refused a dead letter again", "batch_id", l.BatchID, "err", v.err)
		err = p.spool.LetterRefused(l, body, v.refusal)
	} else {
		p.taken(l.BatchID, v)
		p.log.Info("gateway took a dead letter", "batch_id", l.BatchID, "rows", v.answer.Rows, "duplicate", v.answer.Duplicate)
		err = p.spool.LetterAccepted(l, body, v.answer)
	}
	p.settled(ctx, ctx, err)
}
