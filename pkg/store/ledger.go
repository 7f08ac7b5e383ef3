package store

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
)

// Reading the floor locks its table until the transaction ends, which keeps
// the floor from moving and the ledger from being pruned meanwhile; see
// pruneLedger. Without that a batch could pass the floor just before it moves
// and be entered again just after its row was pruned.
const lockFloor = "select from ingest.floor"

// How long the transaction waits for keys of the ledger, and for all else.
const (
	waitForKeys = "select set_config('lock_timeout', $1, true)"
	waitAsEver  = "set local lock_timeout = default"
)

const enterLedger = `
insert into ingest.batch (sent_at, collector_id, batch_id, epoch, sequence, previous_epoch, previous_sequence, refused,
                          stream_seq, stream_incarnation, digest, row_count, sections)
select b.sent_at, b.collector_id, b.batch_id, b.epoch, b.sequence, b.previous_epoch, b.previous_sequence, b.refused::bigint[],
       b.stream_seq, b.stream_incarnation, b.digest, b.row_count, b.sections::jsonb
from unnest($1::timestamptz[], $2::uuid[], $3::uuid[], $4::uuid[], $5::bigint[], $6::uuid[], $7::bigint[], $8::text[],
            $9::bigint[], $10::text[], $11::bytea[], $12::bigint[], $13::text[])
     as b(sent_at, collector_id, batch_id, epoch, sequence, previous_epoch, previous_sequence, refused,
          stream_seq, stream_incarnation, digest, row_count, sections)
where b.sent_at >= (select f.sent_at from ingest.floor f)
order by b.sent_at, b.collector_id, b.batch_id
on conflict do nothing
returning sent_at, collector_id, batch_id`

const readLedger = `
select b.sent_at, b.collector_id, b.batch_id, b.digest
from unnest($1::timestamptz[], $2::uuid[], $3::uuid[]) as k(sent_at, collector_id, batch_id)
join ingest.batch b using (sent_at, collector_id, batch_id)
where b.sent_at between $4 and $5`

// key is what the ledger tells batches apart by.
type key struct {
	sentAt    int64 // microseconds since 1970, as exact as the database is
	collector uuid.UUID
	batch     uuid.UUID
}

func keyOf(b *batch.Batch) key { return key{b.SentAt.UnixMicro(), b.CollectorID, b.ID} }

func (k key) time() time.Time { return time.UnixMicro(k.sentAt).UTC() }

type digest = [sha256.Size]byte

func (k key) compare(o key) int {
	return cmp.Or(cmp.Compare(k.sentAt, o.sentAt), bytes.Compare(k.collector[:], o.collector[:]), bytes.Compare(k.batch[:], o.batch[:]))
}

// entry is one id of a load. The first item that has it stands for it.
type entry struct {
	key     key
	first   int           // in items
	outcome batch.Outcome // Stored when this load entered it, Contested, or 0
	digest  digest        // in the ledger; of no meaning without known
	known   bool
}

// entriesOf returns the ids of the items in the order of their keys.
func entriesOf(items []batch.Item) []entry {
	entries := make([]entry, len(items))
	for i := range items {
		entries[i] = entry{key: keyOf(items[i].Batch), first: i}
	}
	slices.SortStableFunc(entries, func(a, b entry) int { return a.key.compare(b.key) })
	return slices.CompactFunc(entries, func(a, b entry) bool { return a.key == b.key })
}

// find returns the entry of a key, which must have one.
func find(entries []entry, k key) *entry {
	i, _ := slices.BinarySearchFunc(entries, k, func(e entry, k key) int { return e.key.compare(k) })
	return &entries[i]
}

// enter begins the transaction, writes the ledger rows of those batches that
// are new and tells the outcome of all.
func (s *Store) enter(ctx context.Context, ses session, items []batch.Item) ([]batch.Outcome, error) {
	entries := entriesOf(items)
	if err := s.enterNew(ctx, ses, items, entries); err != nil {
		return nil, err
	}
	if err := readKnown(ctx, ses, entries); err != nil {
		return nil, err
	}
	outcomes := make([]batch.Outcome, len(items))
	for i := range items {
		e := find(entries, keyOf(items[i].Batch))
		if e.outcome == batch.Stored {
			e.digest, e.known = items[e.first].Digest, true
		}
		switch {
		case e.outcome == batch.Contested:
			outcomes[i] = batch.Contested
		case !e.known:
			outcomes[i] = batch.BelowFloor
		case e.digest != items[i].Digest:
			outcomes[i] = batch.Differs
		case e.outcome == batch.Stored && e.first == i:
			outcomes[i] = batch.Stored
		default:
			outcomes[i] = batch.AlreadyStored
		}
	}
	return outcomes, nil
}

// enterNew inserts the ledger rows of those entries that are new. For other
// loads that hold one of them it waits for a while, then goes on without it.
// The floor is not part of that: whoever moves it holds up all.
func (s *Store) enterNew(ctx context.Context, ses session, items []batch.Item, entries []entry) error {
	var rows ledgerRows
	for _, e := range entries {
		if err := rows.add(&items[e.first]); err != nil {
			return err
		}
	}
	var once pgx.Batch // one round trip
	once.Queue("begin")
	once.Queue(lockFloor)
	once.Queue(waitForKeys, milliseconds(s.cfg.KeyTimeout))
	rows.enter(&once, 0, entries)
	once.Queue(waitAsEver)
	err := ses.SendBatch(ctx, &once).Close()
	if SQLState(err) == lockNotAvailable && !ses.IsClosed() {
		return rows.enterApart(ctx, ses, entries)
	}
	return ses.failed("enter the ledger", err)
}

// readKnown reads what the ledger holds of the entries that are neither new
// nor contested. One that it does not hold was refused by the floor.
func readKnown(ctx context.Context, ses session, entries []entry) error {
	var keys []key
	for _, e := range entries {
		if e.outcome == 0 {
			keys = append(keys, e.key)
		}
	}
	if len(keys) == 0 {
		return nil
	}
	known := make(map[key]digest, len(keys))
	floor, err := lookUp(ctx, ses, keys, known)
	if err != nil {
		return err
	}
	for _, k := range keys {
		e := find(entries, k)
		e.digest, e.known = known[k]
		if !e.known && !k.time().Before(floor) {
			// Calling it below the floor would send a good batch to the dead letters.
			return fault.Wrap(fault.Contended, fmt.Errorf("ledger row of batch %s was there and is gone", k.batch))
		}
	}
	return nil
}

// lookUp adds the digests that the ledger holds for keys and returns its
// floor, read last: what was pruned before it was looked for lies below.
func lookUp(ctx context.Context, ses session, keys []key, known map[key]digest) (floor time.Time, err error) {
	var sentAt []time.Time
	var collectors, ids []pgtype.UUID
	from, to := keys[0].sentAt, keys[0].sentAt
	for _, k := range keys {
		sentAt = append(sentAt, k.time())
		collectors = append(collectors, pgUUID(k.collector))
		ids = append(ids, pgUUID(k.batch))
		from, to = min(from, k.sentAt), max(to, k.sentAt)
	}
	rows, err := ses.Query(ctx, readLedger, sentAt, collectors, ids, time.UnixMicro(from).UTC(), time.UnixMicro(to).UTC())
	if err != nil {
		return floor, ses.failed("read the ledger", err)
	}
	var at time.Time
	var collector, id [16]byte
	var sum []byte
	_, err = pgx.ForEachRow(rows, []any{&at, &collector, &id, &sum}, func() error {
		known[key{at.UnixMicro(), collector, id}] = digest(sum)
		return nil
	})
	if err != nil {
		return floor, ses.failed("read the ledger", err)
	}
	err = ses.QueryRow(ctx, "select sent_at from ingest.floor").Scan(&floor)
	return floor, ses.failed("read the floor of the ledger", err)
}

// Missing returns which of the batches, by their place in items, are not
// stored. One that the ledger can no longer tell about, see BelowFloor, does
// not count as missing. Errors are classified like those of Load.
func (s *Store) Missing(ctx context.Context, items []batch.Item) ([]int, error) {
	known, err := s.Known(ctx, items)
	if err != nil {
		return nil, err
	}
	var missing []int
	for i, outcome := range known {
		if outcome == 0 {
			missing = append(missing, i)
		}
	}
	return missing, nil
}

// Known returns what a load would find of each batch: AlreadyStored, Differs or
// BelowFloor, and 0 for one that is missing. Errors are classified like those
// of Load.
func (s *Store) Known(ctx context.Context, items []batch.Item) ([]batch.Outcome, error) {
	if len(items) == 0 {
		return nil, nil
	}
	keys := make([]key, len(items))
	for i := range items {
		keys[i] = keyOf(items[i].Batch)
	}
	known := make(map[key]digest, len(keys))
	var floor time.Time
	err := s.session(ctx, func(ses session) (err error) {
		floor, err = lookUp(ctx, ses, keys, known)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look for %d batches: %w", len(items), err)
	}
	outcomes := make([]batch.Outcome, len(items))
	for i, k := range keys {
		outcomes[i] = standing(k, items[i].Digest, known, floor)
	}
	return outcomes, nil
}

// standing tells what the ledger knows of a batch; 0 when it is missing.
func standing(k key, sum digest, known map[key]digest, floor time.Time) batch.Outcome {
	has, there := known[k]
	switch {
	case there && has == sum:
		return batch.AlreadyStored
	case there:
		return batch.Differs
	case k.time().Before(floor):
		return batch.BelowFloor
	}
	return 0
}
