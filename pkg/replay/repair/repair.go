// Package repair is what people do with single batches: see where one is and
// why it could not be stored, try a dead letter again, give one up, take out
// one that was stored.
//
// Its invariant: a letter is deleted only once the ledger has its batch, stored
// or given up by somebody who is named in the audit. The package knows neither
// the stream's protocol nor the database's.
package repair

import (
	"context"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
)

// Letters are the dead letters.
type Letters interface {
	// Heads goes through the heads of letters, oldest first, until each returns
	// false or an error: of one collector, after a sequence among the letters or
	// buried since a time. nil and zero mean all.
	Heads(ctx context.Context, collector *uuid.UUID, after uint64, since time.Time, each func(batch.FiledLetter) (more bool, err error)) error
	// Get returns a letter with its payload.
	Get(ctx context.Context, id string) (batch.FiledLetter, error)
	// Delete returns nil also when the letter is gone.
	Delete(ctx context.Context, l batch.FiledLetter) error
}

// Stream is the stream of batches.
type Stream interface {
	// Republish returns the sequence once the stream has the message on disk.
	Republish(ctx context.Context, collector uuid.UUID, payload []byte) (sequence uint64, err error)
	// AckFloor returns the sequence up to which every message was stored or
	// buried.
	AckFloor(ctx context.Context) (uint64, error)
	// OfCollector goes through what came from a collector since a time.
	OfCollector(ctx context.Context, collector uuid.UUID, since time.Time, f func(batch.Delivery) error) error
}

// Ledger is the database. Each change and the entry of its act in the audit are
// one transaction.
type Ledger interface {
	// Known returns AlreadyStored, Differs or BelowFloor, and 0 for a batch that
	// is missing.
	Known(ctx context.Context, items []batch.Item) ([]batch.Outcome, error)
	LedgerRows(ctx context.Context, collector, id uuid.UUID) ([]batch.LedgerRow, error)
	Holdings(ctx context.Context, b *batch.Batch) ([]batch.Holding, error)
	// Discard enters a batch as given up; the outcome is that of a load.
	Discard(ctx context.Context, it batch.Item, reason string, act Act) (batch.Outcome, error)
	// Remove takes out a stored batch; with a reason it stays as given up.
	Remove(ctx context.Context, b *batch.Batch, discard string, act Act) ([]batch.Holding, error)
	// Note writes an act into the audit that changes nothing in the database.
	Note(ctx context.Context, act Act) error
}

// Act is what the audit says of a change.
type Act struct {
	Action       string // "dead_letter.retry", …
	ResourceType string // "dead_letter" or "batch"
	ResourceID   string
	Changes      map[string]any
}

// Bench is where batches are repaired.
type Bench struct {
	Letters   Letters
	Stream    Stream
	Ledger    Ledger // not needed to list, show and export
	Catalogue *catalogue.Catalogue
}

// Selection says which letters are meant. Zero fields do not narrow it.
type Selection struct {
	IDs          []string // these alone, whatever the other fields say
	Collector    *uuid.UUID
	Reason       string
	Since, Until time.Time // of burial, by the stream's clock; Until is not included
	After        uint64    // only letters behind this sequence
	Limit        int       // at most as many; 0: all
}

// List returns the heads of the letters that are meant, oldest first, and
// whether the limit left some out.
func (b *Bench) List(ctx context.Context, sel Selection) (heads []batch.FiledLetter, more bool, err error) {
	if len(sel.IDs) > 0 {
		for _, id := range sel.IDs {
			l, err := b.Letters.Get(ctx, id)
			if err != nil {
				return nil, false, err
			}
			l.Payload = nil
			heads = append(heads, l)
		}
		return heads, false, nil
	}
	err = b.Letters.Heads(ctx, sel.Collector, sel.After, sel.Since, func(l batch.FiledLetter) (bool, error) {
		switch {
		case !sel.Until.IsZero() && !l.BuriedAt.Before(sel.Until):
			return false, nil // those that follow were buried later
		case l.BuriedAt.Before(sel.Since), sel.Reason != "" && l.Reason != sel.Reason:
			return true, nil
		case sel.Limit > 0 && len(heads) == sel.Limit:
			more = true
			return false, nil
		}
		heads = append(heads, l)
		return true, nil
	})
	return heads, more, err
}

// get returns the whole letter of a head, addressed so that no other letter of
// the same short id is taken for it.
func (b *Bench) get(ctx context.Context, head batch.FiledLetter) (batch.FiledLetter, error) {
	return b.Letters.Get(ctx, address(head))
}

// open returns the letter of a head and the batch in it; without a batch, why
// it cannot be read.
func (b *Bench) open(ctx context.Context, head batch.FiledLetter) (l batch.FiledLetter, found *batch.Batch, why string, err error) {
	if l, err = b.get(ctx, head); err != nil {
		return l, nil, "", err
	}
	found, unreadable := batch.Unmarshal(l.Payload)
	if unreadable != nil {
		why = unreadable.Error()
	}
	return l, found, why, nil
}

// address is the letter's id together with the collector and the batch under
// which it lies.
func address(l batch.FiledLetter) string {
	return l.CollectorID.String() + "." + l.BatchID.String() + "." + l.ID
}
