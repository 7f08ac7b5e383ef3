package store_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/fault"
	"pganalytics/pkg/store"
)

const day = 24 * time.Hour

func TestRetentionDropsOnlyOurOldChunks(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	keyed := func(at time.Time) batch.Section {
		return section(c, "db1", "keyed", []batch.Column{column("name", catalogue.Text)}, at, func(dst []byte) []byte { return batch.AppendText(dst, "k") })
	}
	f.load(item(c, now, narrow(c, "db1", now.Add(-40*day), 1), narrow(c, "db1", now.Add(-20*day), 1), narrow(c, "db1", now, 1),
		keyed(now.Add(-20*day)), keyed(now), text(c, now.Add(-40*day), 1, "old"), text(c, now, 2, "new")))
	for _, foreign := range []string{"public.narrow", "metrics.foreign"} {
		f.exec("create table " + foreign + " (time timestamptz not null)")
		f.exec("select create_hypertable('" + foreign + "', by_range('time', interval '1 day'))")
		f.exec("insert into " + foreign + " values (now() - interval '400 days')")
	}
	m, err := f.store.Maintain(t.Context(), time.Time{})
	require.NoError(t, err)
	require.Equal(t, store.Maintenance{
		Chunks: map[string]int{"narrow": 1, "keyed": 1}, DimensionRows: map[string]int64{"texts": 1},
	}, m)
	require.Equal(t, 2, ask[int](f, "select count(*) from metrics.narrow"))
	require.Equal(t, 1, ask[int](f, "select count(*) from metrics.keyed"))
	require.Equal(t, "new", ask[string](f, "select query from metrics.texts"))
	require.Equal(t, 1, ask[int](f, "select count(*) from public.narrow"))
	require.Equal(t, 1, ask[int](f, "select count(*) from metrics.foreign"))
	m, err = f.store.Maintain(t.Context(), time.Time{})
	require.NoError(t, err)
	require.Empty(t, m.Chunks)
}

func TestOneFamilyThatCannotBeDoneDoesNotStopTheOthers(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	old := now.Add(-40 * day)
	f.load(item(c, old.Add(-20*day), narrow(c, "db1", old, 1), text(c, old, 1, "old"),
		section(c, "db1", "keyed", []batch.Column{column("name", catalogue.Text)}, old, func(dst []byte) []byte { return batch.AppendText(dst, "k") })))
	reader, err := f.conn.Begin(t.Context())
	require.NoError(t, err)
	_, err = reader.Exec(t.Context(), "select * from metrics.keyed")
	require.NoError(t, err)
	m, err := f.store.Maintain(t.Context(), now)
	require.ErrorContains(t, err, "keyed")
	require.Equal(t, fault.Contended, fault.ClassOf(err))
	require.Equal(t, map[string]int{"narrow": 1}, m.Chunks)
	require.Equal(t, map[string]int64{"texts": 1}, m.DimensionRows)
	require.Equal(t, 1, m.LedgerChunks)
	require.NoError(t, reader.Rollback(t.Context()))
	m, err = f.store.Maintain(t.Context(), now)
	require.NoError(t, err)
	require.Equal(t, map[string]int{"keyed": 1}, m.Chunks)
}

func TestPruningMovesTheFloorAndReopensNoDuplicate(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	// Kept: 30 d + the replay window of 3 d + 7 d.
	old, kept := item(c, now.Add(-42*day), narrow(c, "db1", now, 1)), item(c, now.Add(-39*day), narrow(c, "db1", now, 1))
	f.load(old, kept)
	for name, oldest := range map[string]time.Time{"not known": {}, "still on the stream": now.Add(-43 * day)} {
		m, err := f.store.Maintain(t.Context(), oldest)
		require.NoError(t, err)
		require.Zero(t, m.LedgerChunks, name)
		require.Equal(t, []batch.Outcome{batch.AlreadyStored}, f.load(old), name)
	}
	m, err := f.store.Maintain(t.Context(), now)
	require.NoError(t, err)
	require.Equal(t, 1, m.LedgerChunks)
	floor := ask[time.Time](f, "select sent_at from ingest.floor")
	require.True(t, floor.After(old.SentAt) && !floor.After(now.Add(-40*day)), "%v", floor)
	require.Equal(t, []batch.Outcome{batch.BelowFloor, batch.AlreadyStored}, f.load(old, kept))
	require.Equal(t, [2]int{1, 2}, f.counts())

	m, err = f.store.Maintain(t.Context(), now.Add(-45*day))
	require.NoError(t, err)
	require.Zero(t, m.LedgerChunks)
	require.Equal(t, floor, ask[time.Time](f, "select sent_at from ingest.floor"), "never back")
}

func TestFloorMovesOnlyWithThePruning(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	old := item(c, now.Add(-50*day), narrow(c, "db1", now, 1))
	f.load(old)
	floor := ask[time.Time](f, "select sent_at from ingest.floor")
	reader, err := f.conn.Begin(t.Context())
	require.NoError(t, err)
	_, err = reader.Exec(t.Context(), "select * from ingest.batch")
	require.NoError(t, err)
	_, err = f.store.Maintain(t.Context(), now)
	require.Equal(t, fault.Contended, fault.ClassOf(err), "%v", err)
	require.NoError(t, reader.Rollback(t.Context()))
	require.Equal(t, floor, ask[time.Time](f, "select sent_at from ingest.floor"))
	require.Equal(t, []batch.Outcome{batch.AlreadyStored}, f.load(old))
}

// A load that has passed the floor must finish before the floor moves: its
// batch could be one whose row is just being pruned.
func TestPruningWaitsForLoadsUnderWay(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	f.load(item(c, now.Add(-50*day), narrow(c, "db1", now, 1)), item(c, now))
	blocker, err := f.conn.Begin(t.Context())
	require.NoError(t, err)
	_, err = blocker.Exec(t.Context(), "lock table metrics.narrow in access exclusive mode")
	require.NoError(t, err)
	blocked, cancel := untilBlocked(f)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := f.store.Load(t.Context(), []batch.Item{item(c, now, narrow(c, "db1", now, 1))})
		done <- err
	}()
	<-blocked.Done()
	// The family that is blocked fails too, so the ledger's part is told by the floor.
	m, err := f.store.Maintain(t.Context(), now)
	require.Equal(t, fault.Contended, fault.ClassOf(err), "%v", err)
	require.ErrorContains(t, err, "ledger: contended: lock the floor")
	require.Zero(t, m.LedgerChunks)
	require.NoError(t, blocker.Rollback(t.Context()))
	require.NoError(t, <-done)
	m, err = f.store.Maintain(t.Context(), now)
	require.NoError(t, err)
	require.Equal(t, 1, m.LedgerChunks)
}

func TestOneOfManyMaintains(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	f.load(item(c, now.Add(-50*day), narrow(c, "db1", now.Add(-40*day), 1)))
	f.exec("select pg_advisory_lock(x'70676103'::bigint)")
	m, err := f.store.Maintain(t.Context(), now)
	require.NoError(t, err)
	require.True(t, m.Skipped)
	require.Equal(t, [2]int{1, 1}, f.counts())
	f.exec("select pg_advisory_unlock(x'70676103'::bigint)")
	for range 2 { // the first gives the lock back
		m, err = f.store.Maintain(t.Context(), now)
		require.NoError(t, err)
		require.False(t, m.Skipped)
	}
	require.Equal(t, [2]int{0, 0}, f.counts())
}

func TestNothingIsDroppedWhileTheClocksDisagree(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	f.load(item(c, now.Add(-50*day), narrow(c, "db1", now.Add(-40*day), 1)))
	// A clock that is wrong, to sessions opened from now on.
	f.exec(`create schema wrong;
		create function wrong.clock_timestamp() returns timestamptz language sql as $$ select pg_catalog.clock_timestamp() + interval '11 minutes' $$`)
	f.exec("do $$ begin execute format('alter database %I set search_path = wrong, pg_catalog, public', current_database()); end $$")
	wrong := open(t, f.url, allFamilies(t))
	m, err := wrong.store.Maintain(t.Context(), now)
	require.ErrorContains(t, err, "clock is off by 11m")
	require.Empty(t, m.Chunks)
	require.Equal(t, [2]int{1, 1}, f.counts())
}

// Repeats of batches from before the floor, while the floor moves under them.
func TestPruningAmongRepeatsStoresNothingTwice(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	const days = 12
	items := make([]batch.Item, days) // one to each chunk of the ledger
	for i := range items {
		items[i] = item(c, now.Add(-time.Duration(54-i)*day), narrow(c, "db1", now, 1))
	}
	f.load(items...)
	loading := inBackground(t, 8, func(worker int) error {
		outcomes, err := loadThrough(t.Context(), f.store, items[worker], items[(worker+5)%days])
		for _, o := range outcomes {
			if o != batch.AlreadyStored && o != batch.BelowFloor {
				return fmt.Errorf("a batch that was stored long ago is %v", o)
			}
		}
		return err
	})
	pruned := 0
	for i := 0; i <= days && loading.goesOn(); {
		m, err := f.store.Maintain(t.Context(), now.Add(-time.Duration(53-i)*day))
		if fault.ClassOf(err) == fault.Contended {
			continue // the loads come first
		}
		require.NoError(t, err)
		pruned += m.LedgerChunks
		i++
	}
	require.Positive(t, loading.stop())
	require.Equal(t, days, pruned)
	for i, o := range f.load(items...) {
		require.Equal(t, batch.BelowFloor, o, i)
	}
	require.Equal(t, [2]int{0, days}, f.counts())
}

// A late row wants the very chunk that is just being dropped. It may outlive
// the round or not, but the load goes through and its other rows are there.
func TestLateRowsMeetTheDroppingOfTheirChunk(t *testing.T) {
	t.Parallel()
	f := setup(t)
	loading := inBackground(t, 4, func(worker int) error {
		c := uuid.New()
		outcomes, err := loadThrough(t.Context(), f.store, item(c, now, narrow(c, "late", now.Add(-32*day), 2), narrow(c, "fresh", now, 3)))
		if err == nil && outcomes[0] != batch.Stored {
			return fmt.Errorf("a new batch is %v", outcomes[0])
		}
		return err
	})
	dropped := 0
	for dropped < 20 && loading.goesOn() {
		m, err := f.store.Maintain(t.Context(), time.Time{})
		if err != nil {
			require.Equal(t, fault.Contended, fault.ClassOf(err), "%v", err)
		}
		dropped += m.Chunks["narrow"]
	}
	loads := loading.stop()
	require.Equal(t, loads, ask[int](f, "select count(*) from ingest.batch"))
	require.Equal(t, 3*loads, ask[int](f, "select count(*) from metrics.narrow where time >= $1", now))
	_, err := f.store.Maintain(t.Context(), time.Time{})
	require.NoError(t, err)
	require.Equal(t, 3*loads, ask[int](f, "select count(*) from metrics.narrow"))
}
