package replay

import (
	"context"
	"time"
)

// deference lets live batches go first: while more of them wait from look to
// look, a replay holds back.
type deference struct {
	live           func(ctx context.Context) (ended, waiting uint64, err error)
	every          time.Duration
	ended, waiting uint64
}

const (
	// lookEvery is the time between two looks at the live batches.
	lookEvery = 500 * time.Millisecond
	// liveCalm is how many live batches may wait without anybody noticing: they
	// are in the hands of the ingesters.
	liveCalm = 100
	// liveMost bounds one wait, so that a replay ends even where the live
	// batches alone are too many.
	liveMost = 30 * time.Second
)

// wait returns once the live batches do not need the database more. If the
// ingesters end none, they have other troubles than a replay.
func (d *deference) wait(ctx context.Context, t *tally) error {
	for begin := time.Now(); ; {
		ended, waiting, err := d.live(ctx)
		if err != nil {
			return err
		}
		grows, moves := waiting > max(liveCalm, d.waiting), ended > d.ended
		d.ended, d.waiting = ended, waiting
		if !grows || !moves || time.Since(begin) > liveMost {
			return nil
		}
		t.yield()
		if err := sleep(ctx, d.every); err != nil {
			return err
		}
	}
}

// pace holds a replay to a number of rows a second.
type pace struct {
	rate int // 0: as many as possible
	free time.Time
}

func (p *pace) wait(ctx context.Context) error {
	if p.rate == 0 {
		return nil
	}
	return sleep(ctx, time.Until(p.free))
}

// allows reports whether one more batch may follow on that many rows: those of
// half a second go at once.
func (p *pace) allows(rows int) bool { return p.rate == 0 || rows == 0 || 2*rows < p.rate }

func (p *pace) took(rows int) {
	if p.rate > 0 {
		p.free = time.Now().Add(time.Duration(rows) * time.Second / time.Duration(p.rate))
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
