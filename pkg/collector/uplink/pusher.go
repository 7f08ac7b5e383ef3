package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"pganalytics/pkg/collector/spool"
)

// PusherConfig sets how the spool is emptied.
type PusherConfig struct {
	// MinBackoff and MaxBackoff bound the pause after a failed push, which
	// doubles and is jittered. A longer Retry-After is honoured. Default to
	// 500ms and 1m.
	MinBackoff, MaxBackoff time.Duration

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
	if c.Grace == 0 {
		c.Grace = 5 * time.Second
	}
}

// Pusher sends what is in the spool, oldest first, one batch at a time. A
// batch leaves the spool only by the gateway's word.
type Pusher struct {
	cfg    PusherConfig
	client *Client
	spool  *spool.Spool
	log    *slog.Logger

	failures int    // in a row
	state    result // of the last failure
}

// NewPusher makes a pusher.
func NewPusher(cfg PusherConfig, c *Client, s *spool.Spool, log *slog.Logger) *Pusher {
	cfg.setDefaults()
	return &Pusher{cfg: cfg, client: c, spool: s, log: log}
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
	for work.Err() == nil {
		rec, ok, err := p.spool.Oldest()
		if err != nil {
			return fmt.Errorf("read spool: %w", err)
		}
		if !ok {
			select {
			case <-p.spool.Arrived():
				continue
			case <-ctx.Done():
			}
			if _, more, _ := p.spool.Oldest(); !more {
				return nil
			}
			continue
		}
		p.send(ctx, work, rec)
	}
	return nil
}

// send pushes one batch and settles it, or pauses.
func (p *Pusher) send(ctx, work context.Context, rec *spool.Record) {
	v := p.client.push(work, rec.Body)
	if work.Err() != nil && v.result == network {
		return // told to stop meanwhile; the batch stays
	}
	var err error
	switch v.result {
	case accepted, duplicate:
		err = p.spool.Accepted(rec, v.answer)
		p.client.metrics.rows.Add(float64(v.answer.Rows))
		p.client.metrics.rejected.Add(float64(v.answer.Rejected))
		if v.answer.Rejected > 0 {
			p.log.Error("gateway refused a part of a batch; it lies in the dead letters",
				"batch_id", rec.BatchID, "items", v.answer.Rejected)
		}
	case refused:
		p.log.Error("gateway refused a batch for good; it lies in the dead letters",
			"batch_id", rec.BatchID, "epoch", rec.Epoch, "sequence", rec.Sequence, "err", v.err)
		err = p.spool.Refused(rec, v.refusal)
	default:
		p.hold(ctx, work, v)
		return
	}
	if err != nil { // the batch is not settled: it will be sent once more, which is harmless
		p.hold(ctx, work, verdict{result: unexpected, err: fmt.Errorf("settle batch: %w", err)})
		return
	}
	if p.failures > 0 {
		p.log.Info("pushing works again", "after_failures", p.failures)
	}
	p.failures, p.state = 0, ""
	p.client.metrics.holding.Set(0)
}

// hold waits before the next attempt. The order to stop cuts the pause short,
// so that the spool gets its last chance.
func (p *Pusher) hold(ctx, work context.Context, v verdict) {
	pause := p.cfg.MaxBackoff
	if p.failures < 20 {
		pause = min(p.cfg.MinBackoff<<p.failures, p.cfg.MaxBackoff)
	}
	pause = pause/2 + rand.N(pause/2+1)
	pause = max(pause, v.retryAfter)
	level := slog.LevelDebug
	if p.state != v.result {
		level = slog.LevelWarn
	}
	p.failures++
	p.state = v.result
	p.client.metrics.holding.Set(1)
	p.log.Log(work, level, "push did not succeed; the spool holds", "result", string(v.result), "failures", p.failures, "pause", pause, "err", v.err)
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
			log.Log(ctx, renewalLevel(err), "certificate could not be renewed", "next_try_in", pause, "err", err)
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
