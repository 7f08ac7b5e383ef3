package store

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
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
	var missing []int
	for i, k := range keys {
		if _, there := known[k]; !there && !k.time().Before(floor) {
			missing = append(missing, i)
		}
	}
	return missing, nil
}

// ledgerRows gathers the columns of enterLedger.
type ledgerRows struct {
	sentAt                     []time.Time
	collectors, ids            []pgtype.UUID // a uuid.UUID would be encoded by way of its text
	epochs, previousEpochs     []pgtype.UUID
	sequences, previousNumbers []pgtype.Int8
	refused                    []string
	streamSeqs                 []int64
	incarnations               []string
	digests                    [][]byte
	rowCounts                  []int64
	sections                   []string
}

// enter queues the insert of the rows that begin at from, one for each entry.
func (r *ledgerRows) enter(to *pgx.Batch, from int, entries []entry) {
	end := from + len(entries)
	to.Queue(enterLedger, r.sentAt[from:end], r.collectors[from:end], r.ids[from:end], r.epochs[from:end], r.sequences[from:end],
		r.previousEpochs[from:end], r.previousNumbers[from:end], r.refused[from:end], r.streamSeqs[from:end],
		r.incarnations[from:end], r.digests[from:end], r.rowCounts[from:end], r.sections[from:end]).
		Query(func(rows pgx.Rows) error { return markStored(rows, entries) })
}

// markStored takes the keys that an insert returned.
func markStored(rows pgx.Rows, entries []entry) error {
	var sentAt time.Time
	var collector, id [16]byte
	_, err := pgx.ForEachRow(rows, []any{&sentAt, &collector, &id}, func() error {
		find(entries, key{sentAt.UnixMicro(), collector, id}).outcome = batch.Stored
		return nil
	})
	return err
}

// errNumber is for numbers that a bigint cannot hold. No sender counts to it.
var errNumber = errors.New("a number of its sequence exceeds 2^63-1")

func (r *ledgerRows) add(it *batch.Item) error {
	sections, err := describe(it.Sections)
	if err != nil {
		return fmt.Errorf("describe batch %s: %w", it.ID, err)
	}
	refused := []byte{'{'}
	for i, n := range it.Refused {
		if i > 0 {
			refused = append(refused, ',')
		}
		refused = strconv.AppendUint(refused, n, 10) // the database refuses what is too large
	}
	if max(it.Batch.Sequence, it.Previous.Sequence, it.Position.Sequence) > math.MaxInt64 {
		return fault.Wrap(fault.Invalid, fmt.Errorf("enter batch %s: %w", it.ID, errNumber))
	}
	epoch, sequence := mark(batch.Mark{Epoch: it.Epoch, Sequence: it.Batch.Sequence})
	previousEpoch, previousSequence := mark(it.Previous)

	r.sentAt = append(r.sentAt, keyOf(it.Batch).time())
	r.collectors = append(r.collectors, pgUUID(it.CollectorID))
	r.ids = append(r.ids, pgUUID(it.ID))
	r.epochs = append(r.epochs, epoch)
	r.sequences = append(r.sequences, sequence)
	r.previousEpochs = append(r.previousEpochs, previousEpoch)
	r.previousNumbers = append(r.previousNumbers, previousSequence)
	r.refused = append(r.refused, string(append(refused, '}')))
	r.streamSeqs = append(r.streamSeqs, int64(it.Position.Sequence))
	r.incarnations = append(r.incarnations, it.Incarnation)
	r.digests = append(r.digests, it.Digest[:])
	r.rowCounts = append(r.rowCounts, int64(it.Rows()))
	r.sections = append(r.sections, sections)
	return nil
}

// mark returns nulls for a sender that does not number.
func mark(m batch.Mark) (pgtype.UUID, pgtype.Int8) {
	numbers := m.Epoch != uuid.Nil
	return pgtype.UUID{Bytes: m.Epoch, Valid: numbers}, pgtype.Int8{Int64: int64(m.Sequence), Valid: numbers}
}

func pgUUID(id uuid.UUID) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: true} }

// describe returns the sections as the ledger keeps them, to be counted
// against the tables. It is JSON by hand, for it is written for every batch.
func describe(sections []batch.Section) (string, error) {
	text := make([]byte, 0, 2+192*len(sections))
	text = append(text, '[')
	for i := range sections {
		s := &sections[i]
		if i > 0 {
			text = append(text, ',')
		}
		family, err := json.Marshal(s.Family) // nobody has checked it yet
		if err != nil {
			return "", err
		}
		text = append(append(text, `{"family":`...), family...)
		text = append(append(text, `,"server_id":"`...), s.ServerID.String()...)
		text = s.MinTime.AppendFormat(append(text, `","min_time":"`...), time.RFC3339Nano)
		text = s.MaxTime.AppendFormat(append(text, `","max_time":"`...), time.RFC3339Nano)
		text = strconv.AppendInt(append(text, `","rows":`...), int64(s.Rows), 10)
		text = append(text, '}')
	}
	return string(append(text, ']')), nil
}
