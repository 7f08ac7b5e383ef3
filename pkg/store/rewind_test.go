package store_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/store"
)

// rewinds hands each call of OnRewind to the test and waits for its answer.
type rewinds struct {
	calls   chan store.Rewind
	answers chan error
}

func (r rewinds) listen(cfg *store.Config) {
	cfg.OnRewind = func(ctx context.Context, rewind store.Rewind) error {
		r.calls <- rewind
		select {
		case err := <-r.answers:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func newRewinds() rewinds { return rewinds{make(chan store.Rewind, 1), make(chan error)} }

// numbered is an item of one row with its place on the stream.
func numbered(c uuid.UUID, sequence uint64) batch.Item {
	it := item(c, now, narrow(c, "db1", now, 1))
	it.Position.Sequence = sequence
	return it
}

func TestRestoredDatabaseIsNotLoadedBeforeWhatItLacksIsTakenCareOf(t *testing.T) {
	t.Parallel()
	cluster := testdb.StartCluster(t)
	migrate(t, cluster.URL(), allFamilies(t))
	r := newRewinds()
	f := open(t, cluster.URL(), allFamilies(t), r.listen)
	c := uuid.New()
	kept, lost, late := numbered(c, 11), numbered(c, 12), numbered(c, 13)
	f.store.NoteAckFloor("first", 10)
	f.load(kept)
	cluster.Stop()
	backup := cluster.Copy()
	cluster.Start()
	f.untilLoaded(numbered(c, 5))
	f.store.NoteAckFloor("first", 11)
	f.load(lost)
	f.store.NoteAckFloor("first", 12)
	f.load(numbered(c, 6))
	cluster.Kill()
	cluster.Restore(backup)
	cluster.Start()
	f.conn = connect(t, cluster.URL())

	const loaders = 4
	results := make(chan error, 2*loaders)
	loadAll := func() {
		for range loaders {
			go func() {
				_, err := f.store.Load(t.Context(), []batch.Item{late})
				results <- err
			}()
		}
	}
	// Sessions that the kill ended fail by themselves, before any is made.
	require.Eventually(t, func() bool {
		go loadAll()
		for range loaders {
			select {
			case err := <-results:
				require.Error(t, err)
			case call := <-r.calls:
				require.Equal(t, store.Rewind{Incarnation: "first", From: 11}, call)
				return true
			}
		}
		return false
	}, eventually, tick)
	require.Equal(t, [2]int{1, 1}, f.counts(), "while nobody has taken care of it")
	r.answers <- errors.New("no hold yet")
	require.Equal(t, store.Rewind{Incarnation: "first", From: 11}, <-r.calls, "so it is asked again")
	require.Equal(t, [2]int{1, 1}, f.counts())
	close(r.answers)

	require.Equal(t, []batch.Outcome{batch.AlreadyStored}, f.untilLoaded(kept))
	f.untilLoaded(late)
	missing, err := f.store.Missing(t.Context(), []batch.Item{kept, lost, late})
	require.NoError(t, err)
	require.Equal(t, []int{1}, missing)
	require.Empty(t, r.calls, "asked once for all sessions")
	require.Equal(t, []batch.Outcome{batch.Stored}, f.load(lost), "as a replay does")
}

// untilLoaded loads an item, if need be again after sessions that were lost.
func (f *fixture) untilLoaded(it batch.Item) (outcomes []batch.Outcome) {
	f.Helper()
	require.Eventually(f, func() (done bool) {
		var err error
		outcomes, err = f.store.Load(f.Context(), []batch.Item{it})
		return err == nil
	}, eventually, tick)
	return outcomes
}

// endSessions ends the store's sessions that sit idle and returns when they
// are gone.
func (f *fixture) endSessions() {
	f.Helper()
	f.exec(`select pg_terminate_backend(pid, 10000) from pg_stat_activity
		where datname = current_database() and application_name = 'pganalytics-store' and state = 'idle'`)
}

func from(sequence uint64) store.Rewind {
	return store.Rewind{Incarnation: "first", From: sequence}
}

// The slot of probes is idle while loads go through.
func TestIdleSlotTellsOfARewindToo(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change string
		want   store.Rewind
	}{
		"behind":                          {"update ingest.progress set commits = 0 where slot = 0", from(6)},
		"missing":                         {"delete from ingest.progress where slot = 0", from(6)},
		"all of another stream":           {"update ingest.progress set commits = 0, stream_incarnation = 'other'", from(0)},
		"the most that a row vouches for": {"update ingest.progress set commits = 0, ack_floor = 3 + slot", from(5)},
		"all missing":                     {"delete from ingest.progress", from(0)},
		"all missing but those of others": {`with mine as (delete from ingest.progress)
			insert into ingest.progress values (gen_random_uuid(), 1, 1, 'first', 3, now() - interval '1 hour'),
			                                   (gen_random_uuid(), 1, 1, 'first', 9, now())`, from(4)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRewinds()
			f := setup(t, r.listen)
			c := uuid.New()
			f.store.NoteAckFloor("first", 5)
			require.NoError(t, f.store.Probe(t.Context()))
			f.load(numbered(c, 6))
			f.load(numbered(c, 8))
			f.exec(test.change)
			f.endSessions()
			close(r.answers)
			require.Eventually(t, func() bool { return f.store.Probe(t.Context()) == nil }, eventually, tick)
			require.Len(t, r.calls, 1)
			require.Equal(t, test.want, <-r.calls)
			f.endSessions()
			f.untilLoaded(numbered(c, 9))
			require.Empty(t, r.calls, "what was taken care of is over")
			require.Equal(t, max(int(test.want.From), 1)-1, ask[int](f, "select max(ack_floor) from ingest.progress where commits > 0 and slot > 0 and stream_incarnation = 'first' and ack_floor < 9 and at > now() - interval '5 minutes'"),
				"the database vouches for no more than before")
		})
	}
}

func TestRewindThatNobodyTakesCareOfIsAnOutage(t *testing.T) {
	t.Parallel()
	f := setup(t)
	f.load(numbered(uuid.New(), 1))
	f.exec("delete from ingest.progress")
	f.endSessions()
	for range 3 {
		err := f.store.Probe(t.Context())
		require.Equal(t, fault.Unavailable, fault.ClassOf(err), "%v", err)
	}
	require.ErrorContains(t, f.store.Probe(t.Context()), "gone back in time")
}

func TestCommitOfUnknownOutcomeIsNoRewind(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		cut    func(*testing.T, string, string) string
		stored int
	}{"done": {cutAfter, 2}, "not done": {cutBefore, 1}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := setup(t)
			c := uuid.New()
			var called atomic.Int32
			way := open(t, test.cut(t, f.url, lastWord), allFamilies(t), func(cfg *store.Config) {
				cfg.OnRewind = func(context.Context, store.Rewind) error { called.Add(1); return nil }
			})
			for i := range 3 {
				way.load(numbered(c, 1))
				way.store.NoteAckFloor(lastWord, 1)
				_, err := way.store.Load(t.Context(), []batch.Item{numbered(c, 2)})
				require.Equal(t, fault.Unavailable, fault.ClassOf(err), "%v", err)
				require.Equal(t, fault.Unavailable, fault.ClassOf(way.store.Probe(t.Context())))
				way.store.NoteAckFloor("first", 2)
				n := test.stored * (i + 1)
				require.Eventually(t, func() bool { return f.counts() == [2]int{n, n} }, eventually, tick)
			}
			require.Zero(t, called.Load())
		})
	}
}

// A database that was replaced may still be there for those who were connected.
func TestLoadIntoTheDatabaseOfBeforeTheRewindIsNotDone(t *testing.T) {
	t.Parallel()
	r := newRewinds()
	f := setup(t, r.listen)
	c := uuid.New()
	f.load(numbered(c, 1))
	blocked, cancel := untilBlocked(f)
	defer cancel()
	f.exec("begin; lock table metrics.narrow in access exclusive mode")
	done := make(chan error, 1)
	go func() {
		_, err := f.store.Load(t.Context(), []batch.Item{numbered(c, 2)})
		done <- err
	}()
	<-blocked.Done()
	other := connect(t, f.url)
	_, err := other.Exec(t.Context(), "delete from ingest.progress")
	require.NoError(t, err)
	close(r.answers)
	require.NoError(t, f.store.Probe(t.Context()), "on a new session")
	require.Len(t, r.calls, 1)
	f.exec("rollback")
	err = <-done
	require.Equal(t, fault.Unavailable, fault.ClassOf(err), "%v", err)
	require.Equal(t, [2]int{1, 1}, f.counts())
}

// What it reads may be of the database of before.
func TestSessionOfBeforeTheRewindIsNotUsedAgain(t *testing.T) {
	t.Parallel()
	r := newRewinds()
	f := setup(t, r.listen)
	it := numbered(uuid.New(), 1)
	f.load(it)
	blocked, cancel := untilBlocked(f)
	defer cancel()
	f.exec("begin; lock table ingest.batch in access exclusive mode")
	done := make(chan error, 1)
	go func() {
		_, err := f.store.Missing(t.Context(), []batch.Item{it})
		done <- err
	}()
	<-blocked.Done()
	old := ask[int](f, "select pid from pg_stat_activity where datname = current_database() and application_name = 'pganalytics-store'")
	_, err := connect(t, f.url).Exec(t.Context(), "delete from ingest.progress")
	require.NoError(t, err)
	close(r.answers)
	require.NoError(t, f.store.Probe(t.Context()), "on a new session")
	require.Len(t, r.calls, 1)
	f.exec("rollback")
	require.NoError(t, <-done)
	_, _, err = f.store.AckFloor(t.Context(), "first") // the session that was released last would be the first to be used
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		return ask[int](f, "select count(*) from pg_stat_activity where pid = $1", old) == 0
	}, eventually, tick)
}

func TestAckFloorOfAStreamIsTheHighestThatALoadWroteDown(t *testing.T) {
	t.Parallel()
	f := setup(t)
	floor := func(incarnation string) any {
		n, known, err := f.store.AckFloor(t.Context(), incarnation)
		require.NoError(t, err)
		if !known {
			return "unknown"
		}
		return n
	}
	require.Equal(t, "unknown", floor("first"))
	f.store.NoteAckFloor("first", 7)
	require.Equal(t, "unknown", floor("first"))
	f.load(numbered(uuid.New(), 8))
	require.Equal(t, uint64(7), floor("first"))
	f.store.NoteAckFloor("second", 3)
	f.load(numbered(uuid.New(), 9))
	other := open(t, f.url, allFamilies(t))
	other.store.NoteAckFloor("second", 2)
	other.load(numbered(uuid.New(), 9))
	require.Equal(t, uint64(3), floor("second"))
}

func TestBatchBelowTheFloorIsNotMissing(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	stored, below, above := numbered(c, 1), numbered(c, 2), numbered(c, 3)
	f.load(stored)
	below.SentAt = now.Add(-2 * time.Hour)
	f.exec("update ingest.floor set sent_at = $1", now.Add(-time.Hour))
	missing, err := f.store.Missing(t.Context(), []batch.Item{above, below, stored, above})
	require.NoError(t, err)
	require.Equal(t, []int{0, 3}, missing)
	missing, err = f.store.Missing(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, missing)
}

func TestProgressOfDeadProcessesGoesOnceALiveOneKnowsAsMuch(t *testing.T) {
	t.Parallel()
	f := setup(t)
	dead := func(incarnation string, floor int) {
		f.exec(`insert into ingest.progress values
			(gen_random_uuid(), 1, 1, $1, $2, now() - interval '8 days')`, incarnation, floor)
	}
	for _, floor := range []int{4, 5, 6} {
		dead("first", floor)
	}
	dead("", 0)
	f.store.NoteAckFloor("first", 5)
	f.load(numbered(uuid.New(), 6))
	f.exec("update ingest.progress set at = now() - interval '8 days' where at >= now() - interval '7 days'")
	require.NoError(t, f.store.Probe(t.Context()))
	maintain := func() []string {
		_, err := f.store.Maintain(t.Context(), time.Time{})
		require.NoError(t, err)
		return ask[[]string](f, "select array_agg(slot || ' ' || ack_floor order by slot, ack_floor) from ingest.progress")
	}
	require.Equal(t, []string{"0 5", "1 5", "1 6"}, maintain(), "an idle slot of a live process stays")
	f.store.NoteAckFloor("second", 1)
	require.NoError(t, f.store.Probe(t.Context()))
	require.Equal(t, []string{"0 1", "1 5"}, maintain())
}
