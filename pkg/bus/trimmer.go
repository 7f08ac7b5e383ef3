package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
)

// TrimConfig says how much of what is stored stays on the stream.
type TrimConfig struct {
	// ReplayWindow is how long a stored batch stays on the stream, so that a
	// database restored from a backup can be given again what it lacks.
	// Defaults to 72 h; it should be longer than a backup is old.
	ReplayWindow time.Duration
	// HighWater is the part of MaxBytes above which stored batches leave
	// before their window is over, with an alarm. Defaults to 0.8. Too near
	// to 1 and the stream refuses batches before a round comes.
	HighWater float64
	// Interval of the rounds. Defaults to 10 s.
	Interval time.Duration
}

// below the high water by so much a round cuts, so that not every round does.
const highWaterSlack = 0.05

func (c TrimConfig) withDefaults() TrimConfig {
	setDefault(&c.ReplayWindow, 72*time.Hour)
	setDefault(&c.HighWater, 0.8)
	setDefault(&c.Interval, 10*time.Second)
	return c
}

// Validate reports all faults at once.
func (c TrimConfig) Validate() error {
	c = c.withDefaults()
	var errs []error
	if c.ReplayWindow < 0 {
		errs = append(errs, fmt.Errorf("bus: ReplayWindow %s is negative", c.ReplayWindow))
	}
	if c.HighWater <= highWaterSlack || c.HighWater >= 1 {
		errs = append(errs, fmt.Errorf("bus: HighWater %g is not between %g and 1", c.HighWater, highWaterSlack))
	}
	if c.Interval <= 0 {
		errs = append(errs, fmt.Errorf("bus: Interval %s is not positive", c.Interval))
	}
	return errors.Join(errs...)
}

// Trimmer makes room on the stream. A stream that refuses instead of
// forgetting stays full, even of batches that have long been stored; so the
// trimmer takes away the oldest of what is acked, never anything above the
// consumer's ack floor nor anything from a hold's first sequence on.
type Trimmer struct {
	bus      *Bus
	cfg      TrimConfig
	answered func(context.Context) error
	above    bool // the high water
	heldFull bool // above it because of a hold
	heldBy   string
}

// Trimmer returns a trimmer with a valid cfg. A round purges only if answered
// returns nil, that is, if the store answered in that round: while the store
// is away nothing is purged, for a full stream loses nothing and a purge does.
// Several trimmers on one stream do no harm. The methods of one must not be
// called concurrently.
func (b *Bus) Trimmer(cfg TrimConfig, answered func(context.Context) error) *Trimmer {
	return &Trimmer{bus: b, cfg: cfg.withDefaults(), answered: answered}
}

// TrimReport says what a round has purged: the sequences from From up to, not
// including, To.
type TrimReport struct {
	From, To uint64
	Forced   bool // part of it was within the replay window
}

// Purged returns the number of sequences purged.
func (r TrimReport) Purged() uint64 { return r.To - r.From }

// Run trims every Interval until ctx ends, and then returns nil. A round that
// failed is logged, and the next one tries again.
func (t *Trimmer) Run(ctx context.Context) error {
	tick := time.NewTicker(t.cfg.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if _, err := t.Trim(ctx); err != nil && ctx.Err() == nil {
			t.bus.log.Warn("stream was not trimmed", "err", err)
		}
	}
}

// Trim does one round.
func (t *Trimmer) Trim(ctx context.Context) (TrimReport, error) {
	report, err := t.trim(ctx)
	result := "idle"
	switch {
	case err != nil:
		result = "failed"
	case report.Purged() > 0:
		result = "purged"
	}
	t.bus.metrics.trims.WithLabelValues(result).Inc()
	return report, err
}

// trim reads the holds before it plans, and purges nothing if they cannot be
// read. A hold that is taken between that and the purge comes too late for this
// round and in time for all others: what the round takes away was not held when
// it was decided, it was stored and old or in the way, and Reader.Missing counts
// it. Nothing that a hold keeps at the beginning of a round leaves. To ask once
// more before the purge would make the gap smaller and close it no better.
func (t *Trimmer) trim(ctx context.Context) (TrimReport, error) {
	// Asked first, so that little time lies between the holds and the purge.
	answered := t.answered(ctx)
	ctx, done := t.bus.request(ctx)
	defer done()
	f, err := t.bus.look(ctx)
	if err != nil {
		return TrimReport{}, err
	}
	// Also while the store is away, for then they matter most.
	f.tell(t.bus.metrics)
	t.alarm(&f)
	if answered != nil {
		return TrimReport{}, fmt.Errorf("trim while the store does not answer: %w", answered)
	}
	// The ack floor means "stored" only for a consumer that delivers
	// everything and wants every ack.
	if err := errors.Join(t.bus.batchesFaults(f.info.Config), t.bus.consumerFaults(f.consumer.Config)); err != nil {
		return TrimReport{}, fmt.Errorf("trim a stream that is not as it must be: %w", err)
	}
	report, err := t.plan(ctx, &f)
	if err != nil || report.Purged() == 0 {
		return TrimReport{}, err
	}
	if err := f.stream.Purge(ctx, jetstream.WithPurgeSequence(report.To)); err != nil {
		return TrimReport{}, unavailable(fmt.Sprintf("purge up to sequence %d", report.To), err)
	}
	t.account(report)
	return report, nil
}

// plan returns what to purge.
func (t *Trimmer) plan(ctx context.Context, f *facts) (TrimReport, error) {
	state, limit := f.info.State, f.limit()
	nothing := TrimReport{From: state.FirstSeq, To: state.FirstSeq}
	if state.Msgs == 0 || limit <= state.FirstSeq {
		return nothing, nil
	}
	aged := state.FirstSeq
	// The server's clock: it wrote the messages' times too.
	if begin := f.info.TimeStamp.Add(-t.cfg.ReplayWindow); state.FirstTime.Before(begin) {
		var err error
		if aged, err = t.bus.firstSince(ctx, begin, state.LastSeq); err != nil {
			return nothing, err
		}
	}
	to := min(limit, max(aged, t.pressed(f.info)))
	return TrimReport{From: state.FirstSeq, To: max(to, state.FirstSeq), Forced: to > aged}, nil
}

// pressed returns up to where the stream must be cut to get below its high
// water again, taking all messages for equally large: a wrong guess is put
// right by the next round.
func (t *Trimmer) pressed(info *jetstream.StreamInfo) uint64 {
	state := info.State
	if float64(state.Bytes) <= t.highWater(info) {
		return state.FirstSeq
	}
	excess := float64(state.Bytes) - (t.cfg.HighWater-highWaterSlack)*float64(info.Config.MaxBytes)
	return state.FirstSeq + uint64(excess/float64(state.Bytes)*float64(state.Msgs)) + 1
}

func (t *Trimmer) highWater(info *jetstream.StreamInfo) float64 {
	return t.cfg.HighWater * float64(info.Config.MaxBytes)
}

// alarm tells once when the stream rises above its high water, and once when
// it is below again.
func (t *Trimmer) alarm(f *facts) {
	state, limit := f.info.State, f.info.Config.MaxBytes
	above := float64(state.Bytes) > t.highWater(f.info)
	switch changed := turned(&t.above, above, t.bus.metrics.aboveHighWater); {
	case changed && above:
		t.bus.log.Error("stream is above its high water, stored batches leave it before the replay window is over",
			"stream", f.info.Config.Name, "bytes", state.Bytes, "max_bytes", limit, "messages", state.Msgs)
	case changed:
		t.bus.log.Info("stream is below its high water again", "stream", f.info.Config.Name, "bytes", state.Bytes)
	}
	// More is stored than the hold lets go, and the cut would go beyond it.
	t.alarmHeld(f, above && f.limit() < min(f.stored(), t.pressed(f.info)))
}

// alarmHeld tells once of a hold, and once when it is all that keeps the stream
// above its high water: then only the end of what it is for makes room.
func (t *Trimmer) alarmHeld(f *facts, full bool) {
	h := f.held()
	if h == nil {
		h = &Hold{}
	}
	log := t.bus.log.With("stream", f.info.Config.Name, "hold", h.Name, "from", h.From, "to", h.To, "reason", h.Reason, "by", h.By, "since", h.Since)
	if h.Name != "" && h.Name != t.heldBy {
		log.Warn("a hold keeps the stream from its first sequence on")
	}
	t.heldBy = h.Name
	switch changed := turned(&t.heldFull, full, t.bus.metrics.heldAboveHighWater); {
	case changed && full:
		log.Error("stream is above its high water because of a hold, batches will be refused when it is full",
			"bytes", f.info.State.Bytes, "max_bytes", f.info.Config.MaxBytes)
	case changed:
		t.bus.log.Info("no hold keeps the stream above its high water any more", "stream", f.info.Config.Name)
	}
}

// turned keeps a state with its gauge and reports whether it has changed.
func turned(state *bool, now bool, gauge prometheus.Gauge) bool {
	changed := *state != now
	*state = now
	value := 0.0
	if now {
		value = 1
	}
	gauge.Set(value)
	return changed
}

func (t *Trimmer) account(r TrimReport) {
	reason := "window"
	if r.Forced {
		reason = "high_water"
	}
	t.bus.metrics.purged.WithLabelValues(reason).Add(float64(r.Purged()))
	t.bus.log.Info("stream trimmed", "stream", t.bus.names.batches, "from", r.From, "to", r.To, "purged", r.Purged(), "reason", reason)
}
