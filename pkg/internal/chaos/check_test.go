package chaos

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
)

// verdict is what became of the batches that were taken, counted in batches.
type verdict struct {
	batches, rows, letters int

	lost    int // neither stored nor a letter, or with a row missing
	twice   int // in the ledger more than once, there and a letter, or with a row more than once
	altered int // stored or buried as something else than was sent
	strange int // stored or buried although nobody was told so, or for no fault of its own
	expired int // rows that retention may have taken, and has
	faults  []string
}

func (v *verdict) String() string {
	return fmt.Sprintf("lost=%d twice=%d letters=%d (altered=%d strange=%d; %d batches with %d rows taken, %d rows outlived their retention)",
		v.lost, v.twice, v.letters, v.altered, v.strange, v.batches, v.rows, v.expired)
}

// note counts one fault of a batch; a few are told in full.
func (v *verdict) note(count *int, format string, args ...any) {
	*count++
	if len(v.faults) < 20 {
		v.faults = append(v.faults, fmt.Sprintf(format, args...))
	}
}

// ledgerRow is what the ledger says of a batch.
type ledgerRow struct {
	collector uuid.UUID
	digest    string
	rows      int64
}

// stored is one row of a table.
type stored struct {
	n   int32
	sum uint64
}

// evidence is everything that lies in the database and the dead letters.
type evidence struct {
	ledger  map[uuid.UUID][]ledgerRow
	rows    map[uuid.UUID][]stored
	letters map[uuid.UUID][]batch.Letter
}

// judge holds the journal against the evidence. Rows from before oldest may be
// gone: retention takes them.
func judge(journal []accepted, e evidence, oldest time.Time) *verdict {
	v := &verdict{batches: len(journal)}
	known := map[uuid.UUID]bool{}
	for i := range journal {
		a := &journal[i]
		known[a.Batch] = true
		v.rows += len(a.Rows)
		v.judgeBatch(a, e, oldest)
	}
	for id, letters := range e.letters {
		v.letters += len(letters)
		if !known[id] {
			v.note(&v.strange, "letter %s: nobody was told that this batch is taken", id)
		}
	}
	for id := range e.ledger {
		if !known[id] {
			v.note(&v.strange, "ledger has batch %s: nobody was told that it is taken", id)
		}
	}
	for id, rows := range e.rows {
		if !known[id] {
			v.note(&v.strange, "tables have %d rows of batch %s: nobody was told that it is taken", len(rows), id)
		}
	}
	return v
}

func (v *verdict) judgeBatch(a *accepted, e evidence, oldest time.Time) {
	ledger, letters := e.ledger[a.Batch], e.letters[a.Batch]
	switch {
	case len(ledger)+len(letters) == 0:
		v.note(&v.lost, "batch %s: neither in the ledger nor a letter", a.Batch)
		return
	case len(ledger)+len(letters) > 1:
		v.note(&v.twice, "batch %s: %d times in the ledger, %d letters", a.Batch, len(ledger), len(letters))
	case len(letters) == 1 && !a.Faulty:
		v.note(&v.strange, "batch %s: a letter for no fault of its own: %s %s %s", a.Batch, letters[0].Reason, letters[0].SQLState, letters[0].Detail)
	case len(ledger) == 1 && a.Faulty:
		v.note(&v.altered, "batch %s: stored although nobody can store it", a.Batch)
	}
	for _, l := range letters {
		if b, err := batch.Unmarshal(l.Payload); err != nil || a.Digest != "" && hex.EncodeToString(b.Digest[:]) != a.Digest {
			v.note(&v.altered, "batch %s: its letter holds something else", a.Batch)
		}
	}
	for _, l := range ledger {
		if a.Digest != "" && l.digest != a.Digest || l.rows != int64(len(a.Rows)) || l.collector != a.Collector {
			v.note(&v.altered, "batch %s: the ledger says %d rows, digest %s of collector %s", a.Batch, l.rows, l.digest, l.collector)
		}
	}
	v.judgeRows(a, e.rows[a.Batch], len(ledger) > 0, oldest)
}

func (v *verdict) judgeRows(a *accepted, rows []stored, want bool, oldest time.Time) {
	seen := make([]int, len(a.Rows))
	strange, altered, twice, lost := 0, 0, 0, 0
	for _, r := range rows {
		if !want || r.n < 0 || int(r.n) >= len(seen) {
			strange++
			continue
		}
		seen[r.n]++
		if r.sum != a.Rows[r.n].Sum {
			altered++
		}
	}
	for n, times := range seen {
		switch {
		case times > 1:
			twice++
		case times == 0 && want && a.Rows[n].At.Before(oldest):
			v.expired++
		case times == 0 && want:
			lost++
		}
	}
	for _, f := range []struct {
		what  string
		rows  int
		count *int
	}{{"more than once", twice, &v.twice}, {"missing", lost, &v.lost}, {"altered", altered, &v.altered}, {"strange", strange, &v.strange}} {
		if f.rows > 0 {
			v.note(f.count, "batch %s: of %d rows %d are %s", a.Batch, len(a.Rows), f.rows, f.what)
		}
	}
}

// gather reads all that lies in the database and the dead letters.
func (s *site) gather(conn *pgx.Conn) evidence {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()

	e := evidence{ledger: map[uuid.UUID][]ledgerRow{}, rows: map[uuid.UUID][]stored{}, letters: map[uuid.UUID][]batch.Letter{}}
	var id uuid.UUID
	var l ledgerRow
	each(ctx, s.t, conn, "select batch_id, collector_id, encode(digest, 'hex'), row_count from ingest.batch",
		[]any{&id, &l.collector, &l.digest, &l.rows}, func() { e.ledger[id] = append(e.ledger[id], l) })
	for i, name := range families {
		r := row{family: i}
		each(ctx, s.t, conn, "select time, server_id, batch, n, body, extra from metrics."+name,
			[]any{&r.at, &r.server, &r.batch, &r.n, &r.body, &r.extra}, func() {
				e.rows[r.batch] = append(e.rows[r.batch], stored{r.n, r.sum()})
			})
	}
	letters, err := s.bus.DeadLetters().List(ctx, 1_000_000)
	require.NoError(s.t, err)
	for _, letter := range letters {
		e.letters[letter.BatchID] = append(e.letters[letter.BatchID], letter)
	}
	return e
}

func each(ctx context.Context, t *testing.T, conn *pgx.Conn, query string, into []any, do func()) {
	t.Helper()
	rows, err := conn.Query(ctx, query)
	require.NoError(t, err)
	_, err = pgx.ForEachRow(rows, into, func() error { do(); return nil })
	require.NoError(t, err)
}

// verify waits until the stream is empty of work, stops what still runs and
// holds the journal against everything that was kept.
func (s *site) verify() *verdict {
	s.t.Helper()
	s.settled()
	s.stopIngesters()
	v := judge(s.journal.read(s.t), s.gather(s.connect()), time.Now().Add(-retention))
	s.t.Log(v)
	require.Empty(s.t, v.faults, strings.Join(v.faults, "\n"))
	require.Positive(s.t, v.batches)
	return v
}

// retention of the families.
const retention = 48 * time.Hour
