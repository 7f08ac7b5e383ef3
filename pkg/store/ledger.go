package store

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
)

// Reading the floor locks its table until the transaction ends, which keeps
// the floor from moving and the ledger from being pruned meanwhile; see
// pruneLedger. Without that a batch could pass the floor just before it moves
// and be entered again just after its row was pruned.
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

// enter begins the transaction, writes the ledger rows of those batches that
// are new and tells the outcome of all.
func enter(ctx context.Context, ses session, items []batch.Item) ([]batch.Outcome, error) {
	first := make(map[key]int, len(items)) // an id's first item stands for it
	for i := range items {
		k := keyOf(items[i].Batch)
		if _, again := first[k]; !again {
			first[k] = i
		}
	}
	entered, err := enterNew(ctx, ses, items, first)
	if err != nil {
		return nil, err
	}
	known := make(map[key]digest, len(first))
	var others []key
	for k, i := range first {
		if entered[k] {
			known[k] = items[i].Digest
		} else {
			others = append(others, k)
		}
	}
	if len(others) > 0 {
		if err := readKnown(ctx, ses, others, known); err != nil {
			return nil, err
		}
	}
	outcomes := make([]batch.Outcome, len(items))
	for i := range items {
		k := keyOf(items[i].Batch)
		stored, there := known[k]
		switch {
		case !there:
			outcomes[i] = batch.BelowFloor
		case stored != items[i].Digest:
			outcomes[i] = batch.Differs
		case entered[k] && first[k] == i:
			outcomes[i] = batch.Stored
		default:
			outcomes[i] = batch.AlreadyStored
		}
	}
	return outcomes, nil
}

// enterNew inserts the ledger rows of the items in first and returns the keys
// of those that went in. It waits for other loads that hold one of the keys.
func enterNew(ctx context.Context, ses session, items []batch.Item, first map[key]int) (map[key]bool, error) {
	var rows ledgerRows
	for _, i := range first {
		if err := rows.add(&items[i]); err != nil {
			return nil, err
		}
	}
	entered := make(map[key]bool, len(first))
	var once pgx.Batch // one round trip
	once.Queue("begin")
	once.Queue(enterLedger, rows.args()...).Query(func(r pgx.Rows) error { return collectKeys(r, entered) })
	if err := ses.SendBatch(ctx, &once).Close(); err != nil {
		return nil, ses.failed("enter the ledger", err)
	}
	return entered, nil
}

func collectKeys(rows pgx.Rows, into map[key]bool) error {
	var sentAt time.Time
	var collector, id uuid.UUID
	_, err := pgx.ForEachRow(rows, []any{&sentAt, &collector, &id}, func() error {
		into[key{sentAt.UnixMicro(), collector, id}] = true
		return nil
	})
	return err
}

// readKnown adds the digests that the ledger holds for keys. One that it does
// not hold was refused by the floor, and is left out.
func readKnown(ctx context.Context, ses session, keys []key, known map[key]digest) error {
	floor, err := lookUp(ctx, ses, keys, known)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if _, there := known[k]; !there && !k.time().Before(floor) {
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
	var collectors, ids []uuid.UUID
	from, to := keys[0].sentAt, keys[0].sentAt
	for _, k := range keys {
		sentAt = append(sentAt, k.time())
		collectors = append(collectors, k.collector)
		ids = append(ids, k.batch)
		from, to = min(from, k.sentAt), max(to, k.sentAt)
	}
	rows, err := ses.Query(ctx, readLedger, sentAt, collectors, ids, time.UnixMicro(from).UTC(), time.UnixMicro(to).UTC())
	if err != nil {
		return floor, ses.failed("read the ledger", err)
	}
	var at time.Time
	var collector, id uuid.UUID
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
	collectors, ids            []uuid.UUID
	epochs, previousEpochs     []*uuid.UUID
	sequences, previousNumbers []*int64
	refused                    []string
	streamSeqs                 []int64
	incarnations               []string
	digests                    [][]byte
	rowCounts                  []int64
	sections                   []string
}

func (r *ledgerRows) args() []any {
	return []any{r.sentAt, r.collectors, r.ids, r.epochs, r.sequences, r.previousEpochs, r.previousNumbers, r.refused,
		r.streamSeqs, r.incarnations, r.digests, r.rowCounts, r.sections}
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
	r.collectors = append(r.collectors, it.CollectorID)
	r.ids = append(r.ids, it.ID)
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

// mark returns nils for a sender that does not number.
func mark(m batch.Mark) (*uuid.UUID, *int64) {
	if m.Epoch == uuid.Nil {
		return nil, nil
	}
	n := int64(m.Sequence)
	return &m.Epoch, &n
}

// describe returns the sections as the ledger keeps them, to be counted
// against the tables.
func describe(sections []batch.Section) (string, error) {
	type section struct {
		Family   string    `json:"family"`
		ServerID uuid.UUID `json:"server_id"`
		MinTime  time.Time `json:"min_time"`
		MaxTime  time.Time `json:"max_time"`
		Rows     int       `json:"rows"`
	}
	list := make([]section, len(sections))
	for i := range sections {
		s := &sections[i]
		list[i] = section{s.Family, s.ServerID, s.MinTime, s.MaxTime, s.Rows}
	}
	text, err := json.Marshal(list)
	return string(text), err
}
