package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/collector/spool"
)

// PusherConfig sets how the spool is emptied.
type PusherConfig struct {
	// MinBackoff and MaxBackoff bound the pause after a failed push, which
	// doubles and is jittered. A longer Retry-After is honoured, and jittered
	// too. Default to 500ms and 1m.
	MinBackoff, MaxBackoff time.Duration

	// MaxRate bounds the batches a second, so that a fleet which comes back from
	// an outage does not run down its gateways; each pause is jittered. A
	// backlog is drained oldest first, so until it is gone what is read now
	// arrives as late as the backlog is long. Negative: no bound. Defaults to 20.
	MaxRate float64

	// Grace is how long, when told to stop, the pusher goes on sending what is
	// spooled. What is left stays in the spool. Defaults to 5s.
	Grace time.Duration
}

func (c *PusherConfig) setDefaults() {
	if c.MinBackoff == 0 {
		c.MinBackoff = 500 * time.Millisecond
	}
	if c.MaxBackoff == 0 {
		c.MaxBackoff = time.Minute
	}
	if c.MaxRate == 0 {
		c.MaxRate = 20
	}
	if c.Grace == 0 {
		c.Grace = 5 * time.Second
	}
}

// backoff returns the pause after so many failures in a row. Collectors fail at
// the same moment and are told the same Retry-After, so both are spread.
func (c *PusherConfig) backoff(failures int, retryAfter time.Duration) time.Duration {
	pause := c.MaxBackoff
	if failures < 20 {
		pause = min(c.MinBackoff<<failures, c.MaxBackoff)
	}
	pause = pause/2 + rand.N(pause/2+1)
	if retryAfter > 0 {
		pause = max(pause, retryAfter+rand.N(min(retryAfter, c.MaxBackoff)/2+1))
	}
	return pause
}

// spacing returns the time from one push to the next, MaxRate on average.
func (c *PusherConfig) spacing() time.Duration {
	if c.MaxRate < 0 {
		return 0
	}
	mean := time.Duration(float64(time.Second) / c.MaxRate)
	return mean/2 + rand.N(mean+1)
}

// Pusher sends what is in the spool, oldest first, one batch at a time. A
// batch leaves the spool only by the gateway's word. While nothing waits it
// sends again what it was asked to.
type Pusher struct {
	cfg    PusherConfig
	client *Client
	spool  *spool.Spool
	log    *slog.Logger
	again  again

	next     time.Time // no push before
	failures int       // in a row
	last     verdict   // of the last failure

	mu    sync.Mutex
	state State
}

// NewPusher makes a pusher.
func NewPusher(cfg PusherConfig, c *Client, s *spool.Spool, log *slog.Logger) *Pusher {
	cfg.setDefaults()
	return &Pusher{cfg: cfg, client: c, spool: s, log: log, again: newAgain()}
}

// Run pushes until ctx ends and then for as long as there is something to send
// and Grace allows. It returns an error only if the spool fails.
func (p *Pusher) Run(ctx context.Context) error {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(p.cfg.Grace, cancel)
		context.AfterFunc(work, func() { timer.Stop() })
	})
	defer stop()
	p.takeUp()
	for work.Err() == nil {
		rec, ok, err := p.spool.Oldest()
		switch {
		case err != nil:
			return fmt.Errorf("read spool: %w", err)
		case ok:
			p.send(ctx, work, rec)
		case ctx.Err() != nil:
			return nil
		case p.sendAgain(ctx):
		default:
			p.idle(ctx)
		}
	}
	return nil
}

// idle waits for something to do.
func (p *Pusher) idle(ctx context.Context) {
	look := time.NewTimer(lookAgain)
	defer look.Stop()
	select {
	case <-p.spool.Arrived():
	case <-p.again.asked:
	case <-look.C:
	case <-ctx.Done():
	}
}

// push sends one body in its turn. It returns false if nothing came of it and
// the body must be sent again.
func (p *Pusher) push(ctx, work context.Context, body []byte) (verdict, bool) {
	if !wait(work, time.Until(p.next)) {
		return verdict{}, false
	}
	p.next = time.Now().Add(p.cfg.spacing())
	v := p.client.push(work, body)
	switch {
	case work.Err() != nil && v.result == network:
		return v, false // told to stop meanwhile
	case v.settles():
		return v, true
	}
	p.hold(ctx, work, v)
	return v, false
}

// settles reports whether the verdict is the gateway's word about the batch.
func (v *verdict) settles() bool {
	return v.result == accepted || v.result == duplicate || v.result == refused
}

// send pushes one batch and settles it, or pauses.
func (p *Pusher) send(ctx, work context.Context, rec *spool.Record) {
	v, ok := p.push(ctx, work, rec.Body)
	if !ok {
		return
	}
	var err error
	if v.result == refused {
		p.log.Error("gateway refused a batch for good; it lies in the dead letters",
			"batch_id", rec.BatchID, "epoch", rec.Epoch, "sequence", rec.Sequence, "err", v.err)
		err = p.spool.Refused(rec, v.refusal)
	} else {
		p.taken(rec.BatchID, v)
		err = p.spool.Accepted(rec, v.answer)
	}
	p.settled(ctx, work, err)
}

// taken counts an accepted batch and says what of it was not.
func (p *Pusher) taken(id uuid.UUID, v verdict) {
	p.client.metrics.rows.Add(float64(v.answer.Rows))
	p.client.metrics.rejected.Add(float64(v.answer.Rejected))
	if v.answer.Rejected > 0 {
		p.log.Error("gateway refused a part of a batch; it lies in the dead letters",
			"batch_id", id, "items", v.answer.Rejected, "can_be_sent_again", len(v.answer.Rest) > 0)
	}
}

// settled notes that the gateway answered. With an error the answer could not
// be written down: the batch will be sent once more, which is harmless.
func (p *Pusher) settled(ctx, work context.Context, err error) {
	if err != nil {
		p.hold(ctx, work, verdict{result: unexpected, err: fmt.Errorf("settle batch: %w", err)})
		return
	}
	if p.failures > 0 {
		p.log.Info("pushing works again", "after_failures", p.failures)
	}
	p.failures, p.last = 0, verdict{}
	p.client.metrics.holding.Set(0)
	p.answered()
}

// hold waits before the next attempt. The order to stop cuts the pause short,
// so that the spool gets its last chance.
func (p *Pusher) hold(ctx, work context.Context, v verdict) {
	pause := p.cfg.backoff(p.failures, v.retryAfter)
	level, todo := slog.LevelDebug, advise(v.status, v.code)
	if p.last.result != v.result || p.last.code != v.code {
		level = slog.LevelWarn
		if todo != "" {
			level = slog.LevelError
		}
	}
	p.failures++
	p.last = v
	p.client.metrics.holding.Set(1)
	p.held(v, time.Now().Add(pause))
	args := []any{"result", string(v.result), "failures", p.failures, "pause", pause, "err", v.err}
	if todo != "" {
		args = append(args, "do", todo)
	}
	p.log.Log(work, level, "push did not succeed; the spool holds", args...)
	if ctx.Err() != nil {
		ctx = work
	}
	wait(ctx, pause)
}

// Pauses between failed renewals.
const (
	minRenewPause = time.Minute
	maxRenewPause = time.Hour
)

// KeepCertificate renews the certificate whenever it is due, until ctx ends,
// and returns why it ended.
func (c *Client) KeepCertificate(ctx context.Context, log *slog.Logger) error {
	pause := minRenewPause
	for {
		if !wait(ctx, time.Until(c.RenewAt())) {
			return ctx.Err()
		}
		err := c.Renew(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			log.Info("certificate was renewed", "renew_again_at", c.RenewAt())
			pause = minRenewPause
		default:
			log.Log(ctx, renewalLevel(err), "certificate could not be renewed", "next_try_in", pause, "err", err, "do", renewalAdvice(err))
			wait(ctx, pause/2+rand.N(pause/2))
			pause = min(2*pause, maxRenewPause)
		}
	}
}

// renewalLevel is error when the backend said no, which does not heal itself.
func renewalLevel(err error) slog.Level {
	if p, ok := errors.AsType[*problem](err); ok && p.Status < 500 {
		return slog.LevelError
	}
	return slog.LevelWarn
}

// renewalAdvice says what people have to do, or that it heals itself.
func renewalAdvice(err error) string {
	if p, ok := errors.AsType[*problem](err); ok {
		if todo := advise(p.Status, p.Code); todo != "" {
			return todo
		}
	}
	return "nothing: it is tried again"
}

// wait returns false if ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
