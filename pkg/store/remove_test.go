package store_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/fault"
)

// silent is a witness that has nothing to tell.
func silent(context.Context, *pgx.Conn) error { return nil }

// keyed is a section of one row of the family keyed; a nil value is NULL.
func keyed(collector uuid.UUID, at time.Time, name string, v *float64) batch.Section {
	return section(collector, "db1", "keyed", []batch.Column{column("name", catalogue.Text), column("v", catalogue.DoublePrecision)}, at,
		func(dst []byte) []byte {
			if dst = batch.AppendText(dst, name); v == nil {
				return batch.AppendNull(dst)
			}
			return batch.AppendFloat64(dst, *v)
		})
}

func TestADiscardedBatchIsNeverLoaded(t *testing.T) {
	t.Parallel()
	f := setup(t)
	it := item(uuid.New(), now, narrow(uuid.New(), "db1", now, 3))
	for _, want := range []batch.Outcome{batch.Stored, batch.AlreadyStored} {
		got, err := f.store.Discard(t.Context(), it, "of no use", silent)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	require.Equal(t, []batch.Outcome{batch.AlreadyStored}, f.load(it))
	require.Equal(t, [2]int{1, 0}, f.counts())
	missing, err := f.store.Missing(t.Context(), []batch.Item{it})
	require.NoError(t, err)
	require.Empty(t, missing, "a replay leaves it out")
	entries, err := f.store.LedgerRows(t.Context(), it.CollectorID, it.ID)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	e := entries[0]
	e.StoredAt = time.Time{}
	require.Equal(t, batch.LedgerRow{
		CollectorID: it.CollectorID, BatchID: it.ID, SentAt: now, Sequence: 7, Incarnation: "first",
		Digest: it.Digest, Discarded: "of no use",
	}, e)
}

func TestDiscardTellsWhatStandsInItsWay(t *testing.T) {
	t.Parallel()
	f := setup(t)
	stored := item(uuid.New(), now, narrow(uuid.New(), "db1", now, 3))
	f.load(stored)
	other := *stored.Batch
	other.Labels = nil
	other.Seal()
	old := item(uuid.New(), now.Add(-48*time.Hour))
	f.exec("update ingest.floor set sent_at = $1", now.Add(-24*time.Hour))
	for outcome, it := range map[batch.Outcome]batch.Item{
		batch.AlreadyStored: stored, batch.Differs: {Batch: &other}, batch.BelowFloor: old,
	} {
		got, err := f.store.Discard(t.Context(), it, "reason", silent)
		require.NoError(t, err)
		require.Equal(t, outcome, got)
	}
	require.Equal(t, [2]int{1, 3}, f.counts())
	require.Equal(t, 0, ask[int](f, "select count(*) from ingest.batch where discarded is not null"))
}

func TestWhatAWitnessCannotWriteDownIsNotDone(t *testing.T) {
	t.Parallel()
	f := setup(t)
	stored, other := item(uuid.New(), now, narrow(uuid.New(), "db1", now, 3)), item(uuid.New(), now)
	f.load(stored)
	blind := func(context.Context, *pgx.Conn) error { return errors.New("no audit") }
	_, err := f.store.Discard(t.Context(), other, "reason", blind)
	require.ErrorContains(t, err, "no audit")
	_, err = f.store.Remove(t.Context(), stored.Batch, "", blind)
	require.ErrorContains(t, err, "no audit")
	require.Equal(t, [2]int{1, 3}, f.counts())
	writes := func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "create table witnessed()")
		return err
	}
	_, err = f.store.Remove(t.Context(), stored.Batch, "", writes)
	require.NoError(t, err)
	require.True(t, ask[bool](f, "select to_regclass('witnessed') is not null"))
}

func TestARemovedBatchLeavesAllOthersAndCanBeLoadedAgain(t *testing.T) {
	t.Parallel()
	f := setup(t)
	collector, one := uuid.New(), 1.5
	wrong := item(collector, now, narrow(collector, "db1", now, 5), keyed(collector, now, "a", &one), keyed(collector, now, "b", nil),
		text(collector, now, 7, "select 1"))
	f.load(wrong,
		item(collector, now, narrow(collector, "db2", now, 5)),                                  // another server
		item(collector, now, narrow(collector, "db1", now.Add(time.Hour), 5)),                   // other times
		item(collector, now, keyed(collector, now, "c", &one), keyed(collector, now, "d", nil))) // the same times, other keys
	before := f.counts()
	holdings, err := f.store.Holdings(t.Context(), wrong.Batch)
	require.NoError(t, err)
	require.Equal(t, before, f.counts(), "looking changes nothing")

	removed, err := f.store.Remove(t.Context(), wrong.Batch, "", silent)
	require.NoError(t, err)
	require.Equal(t, []batch.Holding{
		{Family: "keyed", Rows: 2, Found: 2}, {Family: "narrow", Rows: 5, Found: 5}, {Family: "texts", Rows: 1, Dimension: true},
	}, removed)
	require.Equal(t, holdings, removed)
	require.Equal(t, [2]int{3, 10}, f.counts())
	require.Equal(t, 2, ask[int](f, "select count(*) from metrics.keyed where name in ('c', 'd')"))
	require.Equal(t, 2, ask[int](f, "select count(*) from metrics.keyed"))
	require.Equal(t, 1, ask[int](f, "select count(*) from metrics.texts"), "dimensions stay")

	_, err = f.store.Remove(t.Context(), wrong.Batch, "", silent)
	require.Equal(t, fault.NotFound, fault.ClassOf(err))
	require.Equal(t, []batch.Outcome{batch.Stored}, f.load(wrong))
	require.Equal(t, before, f.counts())
	require.Equal(t, 4, ask[int](f, "select count(*) from metrics.keyed"))
}

func TestABatchRemovedForGoodStaysAway(t *testing.T) {
	t.Parallel()
	f := setup(t)
	collector := uuid.New()
	it := item(collector, now, narrow(collector, "db1", now, 5))
	f.load(it)
	_, err := f.store.Remove(t.Context(), it.Batch, "measured nonsense", silent)
	require.NoError(t, err)
	require.Equal(t, []batch.Outcome{batch.AlreadyStored}, f.load(it))
	require.Equal(t, [2]int{1, 0}, f.counts())
	require.Equal(t, "measured nonsense", ask[string](f, "select discarded from ingest.batch where row_count = 0 and sections = '[]'"))
	_, err = f.store.Remove(t.Context(), it.Batch, "", silent) // and comes back when that is taken back
	require.NoError(t, err)
	require.Equal(t, []batch.Outcome{batch.Stored}, f.load(it))
	require.Equal(t, [2]int{1, 5}, f.counts())
}

func TestRowsThatMayBeAnotherBatchsAreNotRemoved(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(f *fixture, collector uuid.UUID){
		"another batch has an equal row": func(f *fixture, collector uuid.UUID) {
			f.load(item(collector, now, narrow(collector, "db1", now, 1)))
		},
		"an equal row of another batch stands for one that is gone": func(f *fixture, collector uuid.UUID) {
			f.exec("delete from metrics.narrow where v = 0")
			f.load(item(collector, now, narrow(collector, "db1", now, 1)))
		},
		"a row is gone":     func(f *fixture, _ uuid.UUID) { f.exec("delete from metrics.narrow where v = 4") },
		"a row was changed": func(f *fixture, _ uuid.UUID) { f.exec("update metrics.narrow set v = 44 where v = 4") },
		"a row is there twice": func(f *fixture, _ uuid.UUID) {
			f.exec("insert into metrics.narrow select * from metrics.narrow where v = 4")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := setup(t)
			collector := uuid.New()
			it := item(collector, now, narrow(collector, "db1", now, 5))
			f.load(it)
			spoil(f, collector)
			before := f.counts()
			_, err := f.store.Remove(t.Context(), it.Batch, "", silent)
			require.Equal(t, fault.Conflict, fault.ClassOf(err), "%v", err)
			require.Equal(t, before, f.counts())
		})
	}
}

func TestAnotherBodyUnderTheIDIsNotRemoved(t *testing.T) {
	t.Parallel()
	f := setup(t)
	collector := uuid.New()
	it := item(collector, now, narrow(collector, "db1", now, 5))
	f.load(it)
	other := *it.Batch
	other.Sections = []batch.Section{narrow(collector, "db1", now, 4)}
	other.Seal()
	_, err := f.store.Remove(t.Context(), &other, "", silent)
	require.Equal(t, fault.Conflict, fault.ClassOf(err))
	require.Equal(t, [2]int{1, 5}, f.counts())
}

func TestRowsThatAreAllAlikeAreRemovedTogether(t *testing.T) {
	t.Parallel()
	f := setup(t)
	collector := uuid.New()
	same := section(collector, "db1", "narrow", []batch.Column{column("v", catalogue.BigInt)}, now,
		func(dst []byte) []byte { return batch.AppendInt64(dst, 1) })
	same.Tuples, same.Rows = append(same.Tuples[:len(same.Tuples):len(same.Tuples)], same.Tuples...), 2
	it := item(collector, now, same)
	f.load(it)
	removed, err := f.store.Remove(t.Context(), it.Batch, "", silent)
	require.NoError(t, err)
	require.EqualValues(t, 2, removed[0].Found)
	require.Equal(t, [2]int{0, 0}, f.counts())
}
