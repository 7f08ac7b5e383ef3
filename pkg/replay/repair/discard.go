package repair

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
)

// Discarding says how letters are given up.
type Discarding struct {
	Reason string // for the ledger and the audit
	// Undecodable also deletes letters that have no key in the ledger. The
	// audit keeps the digest of their bytes.
	Undecodable bool
}

// errNoReason is for a discard that nobody could understand later.
var errNoReason = errors.New("discard: give a reason")

// Discard gives up the batches of letters: the ledger says so first, then the
// letter is deleted. Whatever delivers such a batch again finds it stored. tell
// is called with the end of each letter. An error leaves the letters that were
// not told of.
func (b *Bench) Discard(ctx context.Context, heads []batch.FiledLetter, how Discarding, tell func(Result)) error {
	if how.Reason == "" {
		return errNoReason
	}
	for _, head := range heads {
		r, err := b.discard(ctx, head, how)
		if err != nil {
			return fmt.Errorf("discard letter %s: %w", head.ID, err)
		}
		tell(r)
	}
	return nil
}

func (b *Bench) discard(ctx context.Context, head batch.FiledLetter, how Discarding) (Result, error) {
	l, found, stays, err := b.open(ctx, head)
	if err != nil {
		return Result{}, err
	}
	end := Undecodable
	if found != nil {
		act := letterAct("dead_letter.discard", head, map[string]any{"why": how.Reason})
		_, err := b.Ledger.Discard(ctx, batch.Item{Batch: found, Position: head.Position}, how.Reason, act)
		switch {
		case fault.ClassOf(err) == fault.Invalid:
			stays, end = err.Error(), Invalid
		case err != nil:
			return Result{}, err
		}
	}
	if stays != "" {
		if !how.Undecodable {
			return Result{head, end, stays + "; --undecodable deletes it all the same"}, nil
		}
		sum := sha256.Sum256(l.Payload)
		act := letterAct("dead_letter.discard", head, map[string]any{"why": how.Reason, "payload_sha256": hex.EncodeToString(sum[:])})
		if err := b.Ledger.Note(ctx, act); err != nil {
			return Result{}, err
		}
	}
	return Result{head, GivenUp, ""}, b.Letters.Delete(ctx, head)
}
