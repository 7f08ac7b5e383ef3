package store_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/store"
)

// hour is in the recent past, as retention counts from now.
var hour = time.Now().UTC().Truncate(time.Hour).Add(-24 * time.Hour)

// across is a section of narrow with a row at each of the times.
func across(collector uuid.UUID, server string, times ...time.Time) batch.Section {
	s := narrow(collector, server, times[0], 0)
	for _, at := range times {
		one := narrow(collector, server, at, 1)
		s.Tuples = append(s.Tuples, one.Tuples...)
		s.Rows++
		s.MaxTime = at
	}
	return s
}

func (f *fixture) compare(from, to time.Time, collectors ...uuid.UUID) (map[string]store.Compared, []store.Mismatch) {
	f.Helper()
	var found []store.Mismatch
	list, err := f.store.Compare(f.Context(), from, to, collectors, func(m store.Mismatch) error {
		found = append(found, m)
		return nil
	})
	require.NoError(f, err)
	families := map[string]store.Compared{}
	for _, c := range list {
		families[c.Name] = c
	}
	return families, found
}

func TestHonestBatchesLookRight(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	at := func(n int) time.Time { return hour.Add(time.Duration(n) * time.Minute) }
	f.load(
		item(c, at(60), narrow(c, "db1", at(5), 3), narrow(c, "db2", at(5), 4), text(c, at(5), 1, "select 1")),
		item(c, at(61), across(c, "db1", at(58), at(59), at(60))), // around the full hour
		item(c, at(70), across(c, "db1", at(70), at(190))),        // and around three
		item(c, at(71), text(c, at(5), 1, "select 1")),
		item(c, at(72)),
	)
	families, found := f.compare(time.Time{}, time.Time{})
	require.Empty(t, found)
	require.Equal(t, store.Compared{Name: "narrow", From: families["narrow"].From, Ranges: 2, LedgerRows: 12, TableRows: 12}, families["narrow"])
	require.WithinDuration(t, time.Now().Add(-30*24*time.Hour), families["narrow"].From, 3*time.Hour, "retention bounds it")
	require.Contains(t, families["texts"].LeftOut, "dimension")

	families, found = f.compare(at(60), time.Time{})
	require.Empty(t, found, "what reaches out of the window is not judged")
	require.Zero(t, families["narrow"].Ranges)
	families, found = f.compare(time.Time{}, at(60))
	require.Empty(t, found)
	require.EqualValues(t, 1, families["narrow"].Ranges, "that of db2")
}

func TestEachWrongHourIsNamed(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c, other := uuid.New(), uuid.New()
	at := func(n int) time.Time { return hour.Add(time.Duration(n) * time.Minute) }
	f.load(
		item(c, at(200), narrow(c, "db1", at(5), 3), narrow(c, "db1", at(65), 3), narrow(c, "db1", at(125), 3)),
		item(other, at(200), narrow(other, "db1", at(5), 3)),
	)
	one := store.Mismatch{
		Family: "narrow", ServerID: batch.ServerID(c, "db1"), Server: "db1", CollectorID: c,
		From: at(60), To: at(120), LedgerRows: 3, TableRows: 2,
	}
	f.exec("delete from metrics.narrow where server_id = $1 and time = $2 and v = 0", one.ServerID, at(65))
	_, found := f.compare(time.Time{}, time.Time{})
	require.Equal(t, []store.Mismatch{one}, found)

	two := one
	two.From, two.To, two.TableRows = at(120), at(180), 4
	f.exec("insert into metrics.narrow select * from metrics.narrow where server_id = $1 and time = $2", one.ServerID, at(125))
	_, found = f.compare(time.Time{}, time.Time{})
	require.Equal(t, []store.Mismatch{one, two}, found)

	_, found = f.compare(at(60), at(120))
	require.Equal(t, []store.Mismatch{one}, found)
	_, found = f.compare(time.Time{}, time.Time{}, other)
	require.Empty(t, found)
	_, found = f.compare(time.Time{}, time.Time{}, c)
	require.Equal(t, []store.Mismatch{one, two}, found)

	stranger := uuid.New() // whom no batch has brought
	f.exec("insert into metrics.narrow (time, server_id, v) values ($1, $2, 1)", at(5), stranger)
	_, found = f.compare(time.Time{}, at(60))
	require.Equal(t, []store.Mismatch{{Family: "narrow", ServerID: stranger, From: hour, To: at(60), TableRows: 1}}, found)
}

func TestWhatRetentionOrPruningTookIsNotMissed(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	old := time.Now().UTC().Truncate(time.Hour).Add(-30 * 24 * time.Hour)
	f.load(item(c, old, narrow(c, "db1", old.Add(-time.Hour), 3)), item(c, hour, narrow(c, "db1", hour, 3)))
	f.exec("delete from metrics.narrow where time < $1", hour)
	_, found := f.compare(time.Time{}, time.Time{})
	require.Empty(t, found)

	f.exec("update ingest.floor set sent_at = $1", hour.Add(time.Second))
	f.exec("delete from ingest.batch")
	families, found := f.compare(time.Time{}, time.Time{})
	require.Empty(t, found)
	require.True(t, families["narrow"].From.Equal(hour.Add(2*time.Hour)))
}

func TestNumbersComeInTheOrderTheyWereSent(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c, epoch, ended := uuid.New(), uuid.New(), uuid.New()
	var want []batch.Batch
	for n := range 5 {
		it := item(c, hour.Add(time.Duration(n)*24*time.Hour), narrow(c, "db1", hour, 1))
		if n > 0 { // the first has no number
			it.Epoch, it.Batch.Sequence = epoch, uint64(n)
		}
		if n == 1 {
			it.Previous = batch.Mark{Epoch: ended, Sequence: 7}
		}
		if n == 4 {
			it.Refused = []uint64{2, 3}
		}
		it.Seal()
		f.load(it)
		want = append(want, batch.Batch{
			CollectorID: c, ID: it.ID, SentAt: it.SentAt, Epoch: it.Epoch, Sequence: it.Batch.Sequence, Previous: it.Previous, Refused: it.Refused,
		})
	}
	read := func(from, to time.Time, collectors ...uuid.UUID) (got []batch.Batch) {
		floor, err := f.store.Numbers(t.Context(), from, to, collectors, func(b *batch.Batch, discarded bool) error {
			require.False(t, discarded)
			one := *b
			one.Refused = append([]uint64(nil), b.Refused...)
			got = append(got, one)
			return nil
		})
		require.NoError(t, err)
		require.Equal(t, time.Unix(0, 0).UTC(), floor)
		return got
	}
	require.Equal(t, want, read(time.Time{}, time.Time{}))
	require.Equal(t, want, read(time.Time{}, time.Time{}, uuid.New(), c))
	require.Equal(t, want[1:3], read(want[1].SentAt, want[2].SentAt))
	require.Empty(t, read(time.Time{}, time.Time{}, uuid.New()))
}
