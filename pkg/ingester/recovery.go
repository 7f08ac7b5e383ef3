package ingester

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
)

// Gap is a range of the stream, both ends included, of which the database may
// lack batches that were acknowledged: it was restored from a backup, or failed
// over to a standby that was behind.
type Gap struct {
	Incarnation string
	From, To    uint64
}

// Holds keep the gap on the stream until it has been filled. There is one gap
// at most, which all ingesters share.
type Holds interface {
	// Take returns once the gap is held durably, joined with one that was.
	Take(ctx context.Context, gap Gap) error
	Held(ctx context.Context) (gap Gap, held bool, err error)
	// Release ends the hold unless it has changed since Held returned the gap.
	Release(ctx context.Context, gap Gap) error
}

// History is the stream as it can be read again.
type History interface {
	// Last returns the newest sequence of the stream.
	Last(ctx context.Context) (incarnation string, sequence uint64, err error)
	// Newest returns a reader of the newest messages that were handed out, of as
	// many that acked of them are acknowledged, as far as they are still there;
	// at most unacked of them are not.
	Newest(ctx context.Context, acked int) (r Reader, unacked int, err error)
	// Read returns what is left of the gap, in the stream's order; fault.Conflict
	// if it is a gap of a stream that is gone.
	Read(ctx context.Context, gap Gap) (Reader, error)
}

// Reader reads messages that stay where they are.
type Reader interface {
	// Next returns no message at the end.
	Next(ctx context.Context, maxMessages, maxBytes int) ([]batch.Delivery, error)
	// Missing returns how many sequences are no longer on the stream.
	Missing() uint64
}

// Ledger tells what the database itself holds.
type Ledger interface {
	// Missing returns the indexes of the items that it lacks.
	Missing(ctx context.Context, items []batch.Item) ([]int, error)
	// AckFloor returns the newest sequence of which it is written there that
	// everything up to it is stored; false when nothing is written.
	AckFloor(ctx context.Context, incarnation string) (floor uint64, known bool, err error)
	// Alone runs f while no other ingester does, or returns false.
	Alone(ctx context.Context, f func(ctx context.Context) error) (ran bool, err error)
}

// Buried tells whether a batch lies in the dead letters.
type Buried interface {
	Buried(ctx context.Context, b *batch.Batch) (bool, error)
}

// Recovery notices that the database has gone back behind what was
// acknowledged, keeps the stream from forgetting what it lost, and stores that
// again:
//
//	acknowledged and stored ── database goes back ──▶ gap held, alarm
//	gap held ── at most AutoRewind of the stream ──▶ replay ──▶ released
//	         └─ more ──▶ waits for people; new batches go on all the while
type Recovery struct {
	auto    time.Duration
	in      *Ingester
	history History
	ledger  Ledger
	holds   Holds
	letters Buried
	log     *slog.Logger
	metrics *recoveryMetrics
	noticed chan struct{} // of size 1: one reminder is as good as many

	// Of Run's goroutine alone.
	told      Gap // of which people were told
	notBefore time.Time
}

// NewRecovery returns a recovery that replays through in what is at most auto
// of the stream's time. Check and Run must be called; Rewound is for the store.
func NewRecovery(auto time.Duration, in *Ingester, history History, ledger Ledger, holds Holds, letters Buried, log *slog.Logger, reg prometheus.Registerer) *Recovery {
	return &Recovery{
		auto: auto, in: in, history: history, ledger: ledger, holds: holds, letters: letters,
		log: log, metrics: newRecoveryMetrics(reg), noticed: make(chan struct{}, 1),
	}
}

// Rewound holds everything from a sequence on. It returns only when that is
// durable; until then nothing may be loaded into the database, for what is
// loaded is acknowledged, and what is acknowledged may be trimmed.
func (r *Recovery) Rewound(ctx context.Context, incarnation string, from uint64) error {
	now, last, err := r.history.Last(ctx)
	if err != nil {
		return fmt.Errorf("hold what the database lost: %w", err)
	}
	if now != incarnation {
		from = 0 // of a stream that was made anew since
	}
	r.metrics.rewinds.Inc()
	if from > last {
		r.log.Warn("database went back, and nothing was acknowledged since", "from_sequence", from)
		return nil
	}
	gap := Gap{Incarnation: now, From: from, To: last}
	if err := r.holds.Take(ctx, gap); err != nil {
		return fmt.Errorf("hold what the database lost: %w", err)
	}
	r.log.Error("database is behind the stream; what it may lack is held", "from_sequence", gap.From, "to_sequence", gap.To)
	select {
	case r.noticed <- struct{}{}:
	default:
	}
	return nil
}

// recoverEvery is the time between two looks for a gap, which another ingester
// may have noticed, or one that did not live to fill it.
const recoverEvery = 10 * time.Second

// refillAfter is the pause before a gap is read again of which some batches
// could not be stored: one whose family is not known yet may wait for an hour.
const refillAfter = time.Minute

// Run fills gaps until ctx ends.
func (r *Recovery) Run(ctx context.Context) error {
	tick := time.NewTicker(recoverEvery)
	defer tick.Stop()
	for {
		if err := r.round(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("replay what the database lost", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.noticed:
		case <-tick.C:
		}
	}
}

func (r *Recovery) round(ctx context.Context) error {
	gap, held, err := r.holds.Held(ctx)
	if err != nil {
		return err
	}
	r.metrics.held(gap, held)
	if !held || time.Now().Before(r.notBefore) {
		return nil
	}
	_, err = r.ledger.Alone(ctx, func(ctx context.Context) error { return r.fill(ctx, gap) })
	return err
}

// fill replays the gap if it is small enough, and then releases it.
func (r *Recovery) fill(ctx context.Context, gap Gap) error {
	reader, err := r.history.Read(ctx, gap)
	if fault.ClassOf(err) == fault.Conflict {
		r.log.Error("what the database lost cannot be stored again: its stream is gone", "incarnation", gap.Incarnation)
		return r.holds.Release(ctx, gap)
	}
	if err != nil {
		return err
	}
	replayed, left := 0, 0
	for {
		fetched, err := reader.Next(ctx, r.in.cfg.FetchMessages, r.in.cfg.FetchBytes)
		if err != nil {
			return err
		}
		if len(fetched) == 0 {
			break
		}
		if replayed == 0 && !r.small(gap, fetched[0].StoredAt) {
			return nil
		}
		replayed += len(fetched)
		// One that was buried before the database went back need not fail anew
		// to be done with.
		some, err := r.notBuried(ctx, r.in.replay(ctx, fetched))
		if err != nil {
			return err
		}
		left += len(some)
		r.metrics.replayed.Add(float64(len(fetched)))
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if n := reader.Missing(); n > 0 {
		r.log.Error("part of what the database lost had left the stream before", "sequences", n, "from_sequence", gap.From)
	}
	if left > 0 {
		r.notBefore = time.Now().Add(refillAfter)
		return fmt.Errorf("%d of %d batches wait for another try", left, replayed)
	}
	if err := r.holds.Release(ctx, gap); err != nil {
		return err
	}
	r.metrics.held(Gap{}, false)
	r.log.Info("what the database lost is stored again", "from_sequence", gap.From, "to_sequence", gap.To, "batches", replayed)
	return nil
}

// small reports whether a gap that begins with a message of that time may be
// filled without asking, and tells people once if not.
func (r *Recovery) small(gap Gap, begins time.Time) bool {
	if time.Since(begins) <= r.auto {
		return true
	}
	if r.told != gap {
		r.told = gap
		r.log.Error("replay needed: the gap is larger than auto-rewind", "from", begins, "from_sequence", gap.From,
			"to_sequence", gap.To, "auto_rewind", r.auto)
	}
	return false
}
