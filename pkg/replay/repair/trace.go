package repair

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
)

// Trace is where a batch is.
type Trace struct {
	Messages []Message           // on the stream, oldest first
	Ledger   []batch.LedgerRow   // one, unless the sender used the id several times
	Letters  []batch.FiledLetter // heads
	Holdings []batch.Holding     // of the stored batch, if it is on the stream

	stored *batch.Batch // expanded; nil unless the ledger's own body is on the stream
}

// Message is a copy of the batch on the stream.
type Message struct {
	Sequence uint64
	StoredAt time.Time // stream's clock
	Digest   [32]byte
	Rows     int
	Bytes    int
}

// clockSkew is how far a batch may come before it was sent, with reserve.
const clockSkew = time.Hour

// Trace looks for a batch on the stream, in ledger and tables and among the
// dead letters. It reads all that the collector has on the stream since the
// batch was sent.
func (b *Bench) Trace(ctx context.Context, collector, id uuid.UUID) (t Trace, err error) {
	if t.Ledger, err = b.Ledger.LedgerRows(ctx, collector, id); err != nil {
		return t, err
	}
	if err := b.messages(ctx, collector, id, &t); err != nil {
		return t, err
	}
	err = b.Letters.Heads(ctx, &collector, 0, time.Time{}, func(l batch.FiledLetter) (bool, error) {
		if l.BatchID == id {
			t.Letters = append(t.Letters, l)
		}
		return true, nil
	})
	if err == nil && t.stored != nil {
		t.Holdings, err = b.Ledger.Holdings(ctx, t.stored)
	}
	return t, err
}

// messages finds the copies of a batch, and among them the one that is stored.
func (b *Bench) messages(ctx context.Context, collector, id uuid.UUID, t *Trace) error {
	since := time.Unix(0, 0)
	switch {
	case len(t.Ledger) > 0:
		since = t.Ledger[0].SentAt.Add(-clockSkew)
	case id.Version() == 7: // its time is when it was sent
		since = time.Unix(id.Time().UnixTime()).Add(-clockSkew)
	}
	return b.Stream.OfCollector(ctx, collector, since, func(d batch.Delivery) error {
		found, err := batch.Unmarshal(d.Payload)
		if err == nil && found.ID == id && found.CollectorID == collector {
			t.found(d, found)
		}
		return nil
	})
}

// found notes a copy of the batch, and keeps the first that the ledger has.
func (t *Trace) found(d batch.Delivery, b *batch.Batch) {
	t.Messages = append(t.Messages, Message{d.Sequence, d.StoredAt, b.Digest, b.Rows(), len(d.Payload)})
	if t.stored != nil || !t.has(b) {
		return
	}
	if expanded, err := b.Expand(); err == nil && expanded.Intact() {
		t.stored = expanded
	}
}

// has reports whether the ledger has that very batch, stored or given up.
func (t *Trace) has(b *batch.Batch) bool {
	for _, row := range t.Ledger {
		if row.Digest == b.Digest && row.SentAt.Equal(b.SentAt) {
			return true
		}
	}
	return false
}

// Remove takes a stored batch out of tables and ledger, by its rows as they
// stand on the stream; afterwards a replay can store it again. With a reason it
// stays in the ledger as given up, and no replay does. Rows of dimensions stay.
// One that was given up has no rows, and without a reason is so no longer.
// Errors are fault.NotFound when the batch is not stored, or no longer on the
// stream, and fault.Conflict when it cannot be told which rows are its own;
// then nothing is changed.
func (b *Bench) Remove(ctx context.Context, collector, id uuid.UUID, discard string) ([]batch.Holding, error) {
	var t Trace
	var err error
	if t.Ledger, err = b.Ledger.LedgerRows(ctx, collector, id); err != nil {
		return nil, err
	}
	if len(t.Ledger) == 0 {
		return nil, fault.New(fault.NotFound, "not_found", "the ledger does not have batch "+id.String())
	}
	if err := b.messages(ctx, collector, id, &t); err != nil {
		return nil, err
	}
	if t.stored == nil {
		return nil, fault.New(fault.NotFound, "not_found",
			fmt.Sprintf("what is stored of batch %s is no longer on the stream: it cannot be told which rows are its own", id))
	}
	act := Act{Action: "batch.remove", ResourceType: "batch", ResourceID: collector.String() + "/" + id.String(), Changes: map[string]any{
		"digest": hex.EncodeToString(t.stored.Digest[:]), "rows": t.stored.Rows(), "stream_sequence": t.Messages[0].Sequence,
	}}
	if discard != "" {
		act.Action, act.Changes["why"] = "batch.discard", discard
	}
	return b.Ledger.Remove(ctx, t.stored, discard, act)
}
