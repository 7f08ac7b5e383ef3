package repair

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"pganalytics/pkg/batch"
)

// End says what became of a letter.
type End uint8

// The ends.
const (
	Stored      End = iota + 1 // its batch is stored, the letter is deleted
	GivenUp                    // its batch counts as given up, or has no key; the letter is deleted
	Again                      // its batch came back into the dead letters
	Waiting                    // its batch is on the stream, and nobody knows yet; the letter stays
	Undecodable                // it cannot be read; it stays
	Differs                    // another batch is stored under its id; it stays
	Invalid                    // its batch cannot be written into the ledger; it stays
)

var endNames = [...]string{"unknown", "stored", "discarded", "buried again", "waiting", "undecodable", "another is stored", "invalid"}

// String returns the end for people and scripts.
func (e End) String() string { return endNames[e] }

// MarshalText is String.
func (e End) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// Gone reports whether the letter is deleted.
func (e End) Gone() bool { return e == Stored || e == GivenUp }

// Result is the end of one letter.
type Result struct {
	Letter batch.FiledLetter // its head
	End    End
	Detail string // why it stays, for people
}

const (
	// retryAtOnce is how many letters are published before their end is awaited.
	retryAtOnce = 200
	retryPoll   = 250 * time.Millisecond
)

// retried is a letter whose batch is on the stream again.
type retried struct {
	head     batch.FiledLetter
	item     batch.Item // without its rows
	sequence uint64
}

// Retry publishes the batches of letters again, waits until the ledger has
// them, and only then deletes the letters: whoever else finds the message first
// may bury it again, and its letter would be taken for the one that lies there.
// A batch that is stored already is not published. tell is called with the end
// of each. wait bounds the time in which no batch of those under way gets
// stored. An error leaves the letters that were not told of.
func (b *Bench) Retry(ctx context.Context, heads []batch.FiledLetter, wait time.Duration, tell func(Result)) error {
	for chunk := range slices.Chunk(heads, retryAtOnce) {
		var open []retried
		for _, head := range chunk {
			r, sent, err := b.publish(ctx, head, tell)
			if err != nil {
				return fmt.Errorf("retry letter %s: %w", head.ID, err)
			}
			if sent {
				open = append(open, r)
			}
		}
		if err := b.await(ctx, open, wait, tell); err != nil {
			return fmt.Errorf("retry: %w", err)
		}
	}
	return nil
}

// publish puts a letter's batch onto the stream unless its end is known.
func (b *Bench) publish(ctx context.Context, head batch.FiledLetter, tell func(Result)) (r retried, sent bool, err error) {
	l, found, why, err := b.open(ctx, head)
	if err != nil {
		return r, false, err
	}
	if found == nil {
		tell(Result{head, Undecodable, why})
		return r, false, nil
	}
	r = retried{head: head, item: batch.Item{Batch: &batch.Batch{
		CollectorID: found.CollectorID, ID: found.ID, SentAt: found.SentAt, Digest: found.Digest,
	}}}
	known, err := b.Ledger.Known(ctx, []batch.Item{r.item})
	if err != nil {
		return r, false, err
	}
	switch known[0] {
	case batch.AlreadyStored:
		return r, false, b.stored(ctx, r, tell)
	case batch.Differs:
		tell(Result{head, Differs, "take that one out first: pganalytics batch remove " + found.CollectorID.String() + " " + found.ID.String()})
		return r, false, nil
	}
	r.sequence, err = b.Stream.Republish(ctx, found.CollectorID, l.Payload)
	return r, err == nil, err
}

// await waits for the end of each. The floor is read before the ledger, so that
// what lies below it and is not there came back.
func (b *Bench) await(ctx context.Context, open []retried, wait time.Duration, tell func(Result)) error {
	for deadline := time.Now().Add(wait); len(open) > 0; {
		floor, err := b.Stream.AckFloor(ctx)
		if err != nil {
			return err
		}
		items := make([]batch.Item, len(open))
		for i := range open {
			items[i] = open[i].item
		}
		known, err := b.Ledger.Known(ctx, items)
		if err != nil {
			return err
		}
		still := open[:0]
		for i, r := range open {
			switch {
			case known[i] == batch.AlreadyStored:
				deadline = time.Now().Add(wait)
				if err := b.stored(ctx, r, tell); err != nil {
					return err
				}
			case r.sequence <= floor:
				tell(Result{r.head, Again, "show tells why"})
			case time.Now().After(deadline):
				tell(Result{r.head, Waiting, fmt.Sprintf("it is message %d of the stream; retry again later", r.sequence)})
			default:
				still = append(still, r)
			}
		}
		if open = still; len(open) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retryPoll):
		}
	}
	return nil
}

// stored ends a letter whose batch the ledger has.
func (b *Bench) stored(ctx context.Context, r retried, tell func(Result)) error {
	if err := b.Ledger.Note(ctx, letterAct("dead_letter.retry", r.head, nil)); err != nil {
		return err
	}
	if err := b.Letters.Delete(ctx, r.head); err != nil {
		return err
	}
	tell(Result{r.head, Stored, ""})
	return nil
}

// letterAct is an act on a letter.
func letterAct(action string, l batch.FiledLetter, more map[string]any) Act {
	changes := map[string]any{
		"collector_id": l.CollectorID, "batch_id": l.BatchID, "digest": hex.EncodeToString(l.Digest[:]), "reason": l.Reason,
	}
	for name, v := range more {
		changes[name] = v
	}
	return Act{Action: action, ResourceType: "dead_letter", ResourceID: l.ID, Changes: changes}
}
