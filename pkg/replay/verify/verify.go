// Package verify finds out whether everything that was accepted is where it
// belongs: it holds what each collector numbered against ledger, stream and
// dead letters, and what the ledger says was stored against the tables.
//
// Its invariants: nothing that is merely under way looks lost, and an honest
// batch never looks wrong, so that what it reports can be acted on. It changes
// nothing. It must not know the stream's protocol nor the database's.
package verify

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
	"pganalytics/pkg/ingester"
)

// Stream is the stream as it can be read.
type Stream interface {
	// Acked tells how far the shared consumer is.
	Acked(ctx context.Context) (Acked, error)
	// All returns a reader of all that is on the stream now and arrived since
	// then, by the stream's clock; zero: ever.
	All(ctx context.Context, since time.Time) (incarnation string, r ingester.Reader, err error)
}

// Acked is how far the shared consumer is.
type Acked struct {
	Incarnation string // of the stream that the sequences are of
	Floor       uint64 // everything up to here is acknowledged
	Delivered   uint64 // everything up to here has been handed out
	Pending     uint64 // messages that were handed out and are not acknowledged
}

// Ledger tells what the database says it holds.
type Ledger interface {
	// Numbers calls f for the ledger's batches of these collectors, all if there
	// are none, that were sent from one time to the other, zero for unbounded.
	// It tells the batches' id, collector, sent_at and numbering, in the order
	// of sent_at, and whether they were discarded. floor is the time before which the ledger has been pruned.
	Numbers(ctx context.Context, from, to time.Time, collectors []uuid.UUID, f func(b *batch.Batch, discarded bool) error) (floor time.Time, err error)
	// Missing returns the indexes of the items that it lacks.
	Missing(ctx context.Context, items []batch.Item) ([]int, error)
}

// Tables tells what the database does hold.
type Tables interface {
	// Compare calls mismatch for every range of which ledger and table differ,
	// among the whole hours from one time to the other.
	Compare(ctx context.Context, from, to time.Time, collectors []uuid.UUID, mismatch func(Mismatch) error) ([]Family, error)
}

// Letters are the dead letters.
type Letters interface {
	// Each calls f with the letters until it returns false or an error.
	Each(ctx context.Context, f func(batch.Letter) (more bool, err error)) error
}

// Request says what to verify.
type Request struct {
	From, To   time.Time   // of sent_at, both included; zero: unbounded
	Collectors []uuid.UUID // none: all
	List       int         // the most gaps, and the most mismatches, to list; all are counted
}

// Verifier is where to look.
type Verifier struct {
	Stream  Stream
	Ledger  Ledger
	Tables  Tables
	Letters Letters
}

// Run verifies. Errors are those of the parts; fault.Conflict if the stream was
// made anew meanwhile.
//
// The order matters, for batches move on meanwhile. What was acknowledged before
// all else is in the ledger or in the dead letters when those are read. What
// comes later than the ledger is seen on the stream, which is read last: there
// each batch lies until long after it is stored.
func (v *Verifier) Run(ctx context.Context, req Request) (Report, error) {
	r := Report{From: req.From, To: req.To, Collectors: []Collector{}, Gaps: []Gap{}, Mismatches: []Mismatch{}}
	t := newTally(req)
	acked, err := v.Stream.Acked(ctx)
	if err != nil {
		return r, fmt.Errorf("ask the stream: %w", err)
	}
	known, err := v.Ledger.Numbers(ctx, req.From, req.To, req.Collectors, t.entered)
	if err != nil {
		return r, fmt.Errorf("read the ledger: %w", err)
	}
	if known.After(time.Unix(0, 0)) { // else it was never pruned
		r.Known = known
	}
	buried, err := v.readLetters(ctx, t)
	if err != nil {
		return r, fmt.Errorf("read the dead letters: %w", err)
	}
	if err := v.readStream(ctx, t, &r, acked, buried); err != nil {
		return r, fmt.Errorf("read the stream: %w", err)
	}
	if err := v.lookAgain(ctx, t, r.Known); err != nil {
		return r, fmt.Errorf("read the ledger again: %w", err)
	}
	t.report(&r)
	r.Families, err = v.Tables.Compare(ctx, req.From, req.To, req.Collectors, func(m Mismatch) error {
		if r.MismatchCount++; len(r.Mismatches) < req.List {
			r.Mismatches = append(r.Mismatches, m)
		}
		return nil
	})
	if err != nil {
		return r, fmt.Errorf("compare the tables: %w", err)
	}
	return r, nil
}

type digests map[[sha256.Size]byte]struct{}

// readLetters returns the digests of the batches that lie there. A letter that
// is no batch has no number to be missed.
func (v *Verifier) readLetters(ctx context.Context, t *tally) (digests, error) {
	buried := digests{}
	return buried, v.Letters.Each(ctx, func(l batch.Letter) (bool, error) {
		b, err := batch.Unmarshal(l.Payload)
		if err == nil {
			buried[b.Digest] = struct{}{}
			t.add(b, DeadLettered)
		}
		return true, nil
	})
}

// What one step on the stream takes: enough to be worth a look into the ledger,
// and a bound to what is held.
const (
	stepMessages = 500
	stepBytes    = 16 << 20
)

// clocksDiffer is how far a sender's clock may be ahead of the stream's, and
// more: the gateways take 10 minutes unless they are told otherwise. What was
// sent in the window, and every number between such, arrived after that.
const clocksDiffer = time.Hour

func (v *Verifier) readStream(ctx context.Context, t *tally, r *Report, acked Acked, buried digests) error {
	since := t.From
	if !since.IsZero() {
		since = since.Add(-clocksDiffer)
	}
	now, reader, err := v.Stream.All(ctx, since)
	if err != nil {
		return err
	}
	if now != acked.Incarnation {
		return fault.Wrap(fault.Conflict, errors.New("it was made anew meanwhile"))
	}
	var out handedOut
	for {
		step, err := reader.Next(ctx, stepMessages, stepBytes)
		if err != nil {
			return err
		}
		if len(step) == 0 {
			out.report(r, acked)
			return nil
		}
		items := r.items(step, t)
		missing, err := v.Ledger.Missing(ctx, items)
		if err != nil {
			return err
		}
		for i := range items {
			it := &items[i]
			_, laidAside := buried[it.Digest]
			stored := len(missing) == 0 || missing[0] != i
			if !stored {
				missing = missing[1:]
			}
			switch {
			case stored && it.Epoch != uuid.Nil: // the ledger may have it only now
				t.add(it.Batch, Stored)
			case stored, laidAside: // it was counted there
			case it.Position.Sequence <= acked.Floor:
				t.add(it.Batch, Replayable)
				r.replay(it.Position.Sequence, t.within(it.Batch))
			default:
				t.add(it.Batch, InFlight)
				out.see(it.Position.Sequence, acked)
			}
		}
	}
}

// items opens the envelopes of what can say something about the window.
func (r *Report) items(step []batch.Delivery, t *tally) []batch.Item {
	var items []batch.Item
	for _, d := range step {
		b, err := batch.Unmarshal(d.Payload)
		switch {
		case fault.ClassOf(err) == fault.Behind:
			r.Unknown++
		case err != nil:
			r.Unreadable++
		case t.near(b):
			items = append(items, batch.Item{Batch: b, Position: d.Position})
		}
	}
	return items
}

// replay takes a sequence among those to be replayed if it was asked about.
func (r *Report) replay(sequence uint64, asked bool) {
	switch {
	case !asked:
		return
	case r.ReplayFrom == 0 || sequence < r.ReplayFrom:
		r.ReplayFrom = sequence
	}
	r.ReplayTo = max(r.ReplayTo, sequence)
}

// handedOut is what was handed out above the acknowledged floor and is not
// stored. Which of it was acknowledged all the same nobody tells, but how many
// were not: what is more than those was, and has been lost since.
type handedOut struct {
	first, last, count uint64
}

func (o *handedOut) see(sequence uint64, acked Acked) {
	if sequence > acked.Delivered {
		return
	}
	if o.count++; o.count == 1 {
		o.first = sequence
	}
	o.last = sequence
}

func (o *handedOut) report(r *Report, acked Acked) {
	if o.count > acked.Pending {
		r.AckedInFlight = o.count - acked.Pending
		r.replay(o.first, true)
		r.replay(o.last, true)
	}
}

// lookAgain looks for what seems to be lost in the ledger as it is now, a day
// around the window: it may have been stored and trimmed meanwhile, or sent by
// a clock that was put back.
func (v *Verifier) lookAgain(ctx context.Context, t *tally, known time.Time) error {
	t.closed = true
	collectors := t.lost(known)
	if len(collectors) == 0 {
		return nil
	}
	from, to := t.From, t.To
	if !from.IsZero() {
		from = from.Add(-stepped)
	}
	if !to.IsZero() {
		to = to.Add(stepped)
	}
	_, err := v.Ledger.Numbers(ctx, from, to, collectors, t.entered)
	return err
}
