package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
)

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
