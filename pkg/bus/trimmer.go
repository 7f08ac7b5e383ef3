package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
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
// consumer's ack floor.
type Trimmer struct {
	bus      *Bus
	cfg      TrimConfig
	answered func(context.Context) error
	alarmed  bool
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

func (t *Trimmer) trim(ctx context.Context) (TrimReport, error) {
	if err := t.answered(ctx); err != nil {
		return TrimReport{}, fmt.Errorf("trim while the store does not answer: %w", err)
	}
	ctx, done := t.bus.request(ctx)
	defer done()
	stream, err := t.bus.js.Stream(ctx, t.bus.names.batches)
	if err != nil {
		return TrimReport{}, unavailable("ask for stream "+t.bus.names.batches, err)
	}
	consumer, err := stream.Consumer(ctx, t.bus.names.consumer)
	if err != nil {
		return TrimReport{}, unavailable("ask for consumer "+t.bus.names.consumer, err)
	}
	info := stream.CachedInfo()
	t.alarm(info)
	// The ack floor means "stored" only for a consumer that delivers
	// everything and wants every ack.
	if err := errors.Join(t.bus.batchesFaults(info.Config), t.bus.consumerFaults(consumer.CachedInfo().Config)); err != nil {
		return TrimReport{}, fmt.Errorf("trim a stream that is not as it must be: %w", err)
	}
	report, err := t.plan(ctx, info, consumer.CachedInfo().AckFloor.Stream)
	if err != nil || report.Purged() == 0 {
		return TrimReport{}, err
	}
	if err := stream.Purge(ctx, jetstream.WithPurgeSequence(report.To)); err != nil {
		return TrimReport{}, unavailable(fmt.Sprintf("purge up to sequence %d", report.To), err)
	}
	t.account(report)
	return report, nil
}

// plan returns what to purge. The limit is the first sequence that must stay
// whatever the reasons to purge: all of them only choose among what lies below
// it. A consumer that is new has its floor before the first message, so
// nothing lies below.
func (t *Trimmer) plan(ctx context.Context, info *jetstream.StreamInfo, ackFloor uint64) (TrimReport, error) {
	state := info.State
	nothing := TrimReport{From: state.FirstSeq, To: state.FirstSeq}
	limit := min(ackFloor, state.LastSeq) + 1
	if state.Msgs == 0 || limit <= state.FirstSeq {
		return nothing, nil
	}
	aged := state.FirstSeq
	// The server's clock: it wrote the messages' times too.
	if begin := info.TimeStamp.Add(-t.cfg.ReplayWindow); state.FirstTime.Before(begin) {
		var err error
		if aged, err = t.firstSince(ctx, begin, state.LastSeq); err != nil {
			return nothing, err
		}
	}
	to := min(limit, max(aged, t.pressed(info)))
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

// firstSince returns the sequence of the first message stored at or after
// begin, last+1 if there is none. The server finds it by time; the client
// library has no call for that. The answer carries the message, which is the
// price of not needing the right to create consumers.
func (t *Trimmer) firstSince(ctx context.Context, begin time.Time, last uint64) (uint64, error) {
	request, err := json.Marshal(map[string]time.Time{"start_time": begin.UTC()})
	if err != nil {
		return 0, err
	}
	answer, err := t.bus.nc.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+t.bus.names.batches, request)
	if err != nil {
		return 0, unavailable("find the first message of the replay window", err)
	}
	var found struct {
		Error   *jetstream.APIError `json:"error"`
		Message struct {
			Seq uint64 `json:"seq"`
		} `json:"message"`
	}
	if err := json.Unmarshal(answer.Data, &found); err != nil {
		return 0, fmt.Errorf("read the first message of the replay window: %w", err)
	}
	switch {
	case found.Error != nil && found.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return last + 1, nil
	case found.Error != nil:
		return 0, unavailable("find the first message of the replay window", found.Error)
	}
	return found.Message.Seq, nil
}

// alarm tells once when the stream rises above its high water, and once when
// it is below again.
func (t *Trimmer) alarm(info *jetstream.StreamInfo) {
	m, above := t.bus.metrics, float64(info.State.Bytes) > t.highWater(info)
	m.streamBytes.Set(float64(info.State.Bytes))
	switch {
	case above && !t.alarmed:
		m.aboveHighWater.Set(1)
		t.bus.log.Error("stream is above its high water, stored batches leave it before the replay window is over",
			"stream", info.Config.Name, "bytes", info.State.Bytes, "max_bytes", info.Config.MaxBytes, "messages", info.State.Msgs)
	case !above && t.alarmed:
		m.aboveHighWater.Set(0)
		t.bus.log.Info("stream is below its high water again", "stream", info.Config.Name, "bytes", info.State.Bytes)
	}
	t.alarmed = above
}

func (t *Trimmer) account(r TrimReport) {
	reason := "window"
	if r.Forced {
		reason = "high_water"
	}
	t.bus.metrics.purged.WithLabelValues(reason).Add(float64(r.Purged()))
	t.bus.log.Info("stream trimmed", "stream", t.bus.names.batches, "from", r.From, "to", r.To, "purged", r.Purged(), "reason", reason)
}
