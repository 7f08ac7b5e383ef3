package ingester

import (
	"context"
	"crypto/sha256"
	"slices"
	"time"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
)

// A load that lost a race is loaded again at once, so often and for so long. A
// race is won within a few tries; a lock that is held for longer is waited for
// by those batches alone that want it.
const (
	contendedTries = 20
	contendedFor   = 15 * time.Second
)

// How often a load may fail before it is taken apart. What a lost connection
// or an outage ends is tried for longer, for it was hardly the load's fault;
// but not for ever, for a load may be too slow, or bring the server down.
const (
	failedTries = 2
	lostTries   = 5
)

// storeLoad brings one load to its end:
//
//	Load ── ok ──────────────────────────▶ settle: ack, or bury and ack
//	  │ error
//	  ├─ contended ────▶ Load again, a bounded number of times; then without
//	  │                  the batches that want what is locked
//	  ├─ probe fails ──▶ pause until it succeeds
//	  ├─ tries left ───▶ Load again
//	  └─ none ─────────▶ several messages: each half by itself
//	                     one message: judge it
//
// The error's class is a hint, the probe decides: an error during an outage
// says nothing about the batch. It returns false when ctx ended in a pause; the
// load then stays on the stream.
func (in *Ingester) storeLoad(ctx context.Context, load []*message) bool {
	if len(load) == 0 {
		return true
	}
	failures, contended := 0, 0
	begin, wait := time.Now(), newBackoff()
	for {
		outcomes, err := in.tryLoad(ctx, load)
		if err == nil {
			in.settle(ctx, load, outcomes)
			return true
		}
		class := fault.ClassOf(err)
		in.log.Warn("load", "batches", len(load), "class", class.String(), "err", err)
		if class == fault.Contended && contended < contendedTries && time.Since(begin) < contendedFor {
			contended++
			continue
		}
		if family := familyOf(err); class == fault.Contended && family != "" && len(load) > 1 {
			return in.storeLoad(ctx, in.leaveFamily(load, family, err))
		}
		paused, alive := in.pause(ctx)
		if !alive {
			return false
		}
		lost := class.Verb() == fault.Pause
		tries := failedTries
		switch {
		case paused || lost:
			tries = lostTries
		case class.Verb() == fault.Bury && len(load) > 1:
			tries = 1 // bad data does not get better; the one at fault is tried once more
		}
		if failures++; failures < tries {
			// The store commits a probe and not the load: a disk that is nearly
			// full would otherwise be written to without end.
			if lost && !paused && !wait.sleep(ctx) {
				return false
			}
			continue
		}
		if len(load) == 1 {
			in.judge(ctx, load[0], err)
			return true
		}
		in.metrics.splits.Inc()
		half := len(load) / 2
		return in.storeLoad(ctx, load[:half]) && in.storeLoad(ctx, load[half:])
	}
}

// leaveFamily leaves the batches to the stream that bring rows of a family
// whose table is locked, and returns the others.
func (in *Ingester) leaveFamily(load []*message, family string, err error) []*message {
	rest := load[:0:0]
	for _, m := range load {
		if slices.ContainsFunc(m.batch.Sections, func(s batch.Section) bool { return s.Family == family }) {
			in.leave(m)
		} else {
			rest = append(rest, m)
		}
	}
	in.log.Warn("a table is locked; batches for it come again", "family", family, "batches", len(load)-len(rest), "err", err)
	return rest
}

// tryLoad runs one transaction. It is finished even when ctx ends: half a
// second of work is worth more than its repetition after a redelivery.
func (in *Ingester) tryLoad(ctx context.Context, load []*message) ([]batch.Outcome, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), in.cfg.LoadTimeout)
	defer cancel()
	start := time.Now()
	outcomes, err := in.store.Load(ctx, items(load))
	in.metrics.load(start, err)
	return outcomes, err
}

// pause waits while the store does not commit a probe. paused says whether it
// had to wait, alive is false when ctx ended meanwhile.
func (in *Ingester) pause(ctx context.Context) (paused, alive bool) {
	wait := newBackoff()
	for {
		err := in.probe(ctx)
		if err == nil {
			return paused, ctx.Err() == nil
		}
		if !paused {
			paused = true
			in.metrics.paused.Inc()
			defer in.metrics.paused.Dec()
			in.log.Warn("pause: store does not commit", "err", err)
			defer in.log.Info("resume")
		}
		if !wait.sleep(ctx) {
			return paused, false
		}
	}
}

// probeTimeout bounds one probe; a store that needs longer for one row is away.
const probeTimeout = 5 * time.Second

func (in *Ingester) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	err := in.store.Probe(ctx)
	in.metrics.probe(err)
	return err
}

// settle acknowledges what a committed load stored and buries what it refused.
func (in *Ingester) settle(ctx context.Context, load []*message, outcomes []batch.Outcome) {
	in.suspects.committed()
	contested := 0
	for i, m := range load {
		in.metrics.outcome(m, outcomes[i])
		switch outcomes[i] {
		case batch.Stored, batch.AlreadyStored:
			in.ack(ctx, m)
		case batch.Differs, batch.BelowFloor:
			in.bury(ctx, m, outcomes[i].String(), nil)
		case batch.Contested:
			in.leave(m)
			contested++
		}
	}
	if contested > 0 {
		in.log.Warn("other loads hold some batches of this one; they come again", "batches", len(load), "contested", contested)
	}
}

// judge decides about one message that failed alone, while the store commits
// other things, as often as a load may.
func (in *Ingester) judge(ctx context.Context, m *message, err error) {
	class := fault.ClassOf(err)
	switch class.Verb() {
	case fault.Bury:
		in.suspects.blame(m.batch.CollectorID)
		in.bury(ctx, m, buryReason(err), err)
	case fault.Aside:
		if in.suspects.failed(m.place(), in.cfg.UnknownFor, 1, false) {
			in.bury(ctx, m, "unknown_schema", err)
			return
		}
		in.setAside(m, err)
	default:
		unresolved := in.suspects.failed(m.place(), in.cfg.UnresolvedFor, in.cfg.UnresolvedTry, true)
		// A database that says it is full, read-only or locked will not be for
		// ever, and no batch is to blame for it.
		ownTrouble := (class.Verb() == fault.Pause || class == fault.Contended) && sqlState(err) != ""
		if unresolved && !ownTrouble {
			in.bury(ctx, m, "unresolved", err)
			return
		}
		in.setAside(m, err)
	}
}

// leave gives the message back to the stream, which hands it out again after
// AckWait; until then its neighbours pass.
func (in *Ingester) leave(m *message) {
	m.done.Store(true)
	in.metrics.aside.Inc()
}

// setAside leaves a message that failed alone.
func (in *Ingester) setAside(m *message, err error) {
	in.leave(m)
	in.log.Warn("set batch aside", "stream_seq", m.Sequence, "subject", m.Subject, "delivered", m.Delivered, "err", err)
}

// bury lays the message into the dead letters, then acknowledges it. When the
// dead letters do not take it, it stays on the stream and comes back.
func (in *Ingester) bury(ctx context.Context, m *message, reason string, cause error) {
	letter := batch.Letter{Reason: reason, Position: m.Position, Payload: m.Payload}
	if m.batch != nil {
		letter.CollectorID, letter.BatchID, letter.Digest = m.batch.CollectorID, m.batch.ID, m.batch.Digest
		letter.Rows = m.batch.Rows()
	} else {
		letter.Digest = sha256.Sum256(m.Payload)
	}
	if cause != nil {
		letter.Detail, letter.SQLState = cause.Error(), sqlState(cause)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ackTimeout)
	defer cancel()
	if err := in.letters.Bury(ctx, letter); err != nil {
		m.done.Store(true)
		in.metrics.buryErrors.Inc()
		in.log.Error("bury batch; it stays on the stream", "stream_seq", m.Sequence, "reason", reason, "err", err)
		return
	}
	in.metrics.letters.WithLabelValues(reason).Inc()
	in.log.Error("batch is a dead letter", "stream_seq", m.Sequence, "collector_id", letter.CollectorID,
		"batch_id", letter.BatchID, "reason", reason, "err", cause)
	in.ack(ctx, m)
}

// ackTimeout bounds one acknowledgement or burial.
const ackTimeout = 10 * time.Second

// ack ends a message. A lost acknowledgement costs a redelivery, which the
// ledger recognises.
func (in *Ingester) ack(ctx context.Context, m *message) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ackTimeout)
	defer cancel()
	m.done.Store(true)
	m.ended = true
	in.suspects.forget(m.place())
	if err := m.Ack(ctx); err != nil {
		in.metrics.ackErrors.Inc()
		in.log.Warn("ack message", "stream_seq", m.Sequence, "err", err)
	}
}
