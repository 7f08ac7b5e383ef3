package service_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/bus"
)

// when makes the database do something to every row whose value is word.
func (l *line) when(word, do string) {
	l.t.Helper()
	conn, err := pgx.Connect(l.t.Context(), l.url)
	require.NoError(l.t, err)
	defer func() { _ = conn.Close(l.t.Context()) }()
	_, err = conn.Exec(l.t.Context(), `
		create sequence metrics.tries;
		create function metrics.hinder() returns trigger language plpgsql as $$ begin `+do+` return new; end $$;
		create trigger hinder before insert on metrics.probe for each row when (new.value = '`+word+`') execute function metrics.hinder()`)
	require.NoError(l.t, err)
}

func word(text string) *batch.Batch { return batchOf(uuid.New(), uuid.Must(uuid.NewV7()), text, 1) }

func TestABatchThatNoLoadFinishesHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	l := newLine(t, lineConfig{bus: bus.Config{AckWait: time.Second}})
	l.when("slow", "perform pg_sleep(60);")
	slow := word("slow")
	l.publish(slow, newBatch(10), newBatch(10))
	cfg := settings()
	cfg.Loaders, cfg.LoadTimeout = 1, 200*time.Millisecond
	cfg.UnresolvedFor, cfg.UnresolvedTry = time.Millisecond, 2
	l.ingest(cfg, nil)
	l.eventually("its neighbours are stored", func() bool { return l.rows() == 20 })
	l.publish(newBatch(10))
	l.settled()
	letters := l.letters()
	require.Len(t, letters, 1)
	require.Equal(t, "unresolved", letters[0].Reason)
	require.Equal(t, slow.ID, letters[0].BatchID)
	require.Equal(t, 30, l.rows())
}

func TestADiskThatIsFullForOneTableIsTriedSlowlyAndBuriesNothing(t *testing.T) {
	t.Parallel()
	l := newLine(t, lineConfig{bus: bus.Config{AckWait: time.Second}})
	l.when("large", "perform nextval('metrics.tries'); raise exception 'no space left' using errcode = 'disk_full';")
	l.publish(word("large"), newBatch(10))
	cfg := settings()
	cfg.Loaders, cfg.UnresolvedFor, cfg.UnresolvedTry = 1, time.Millisecond, 1
	l.ingest(cfg, nil)
	begin := time.Now()
	l.eventually("its neighbour is stored", func() bool { return l.rows() == 10 })
	l.publish(newBatch(10))
	l.eventually("what comes later is stored", func() bool { return l.rows() == 20 })
	l.eventually("it is tried again and again", func() bool { return l.number("select last_value from metrics.tries") > 15 })
	require.Greater(t, time.Since(begin), 2*time.Second, "without waiting in between")
	require.Empty(t, l.letters())
	require.Less(t, l.status().AckFloor, l.status().LastSequence)
}

func TestALongLockBuriesNothing(t *testing.T) {
	t.Parallel()
	l := newLine(t, lineConfig{bus: bus.Config{AckWait: time.Second}})
	l.when("locked", "perform nextval('metrics.tries'); raise exception 'lock timeout' using errcode = 'lock_not_available';")
	l.publish(word("locked"))
	cfg := settings()
	cfg.UnresolvedFor, cfg.UnresolvedTry = time.Millisecond, 1
	l.ingest(cfg, nil)
	tried := func(more int) func() bool {
		// A load of it is tried 22 times before anything is decided.
		return func() bool { return l.number("select last_value from metrics.tries") > 22*more }
	}
	l.eventually("it is set aside and tried again", tried(1))
	l.publish(newBatch(10))
	l.eventually("others are stored meanwhile", func() bool { return l.rows() == 10 })
	l.eventually("it is tried again and again", tried(4))
	require.Empty(t, l.letters())
}

func TestALockedTableHoldsUpNoOtherFamily(t *testing.T) {
	t.Parallel()
	l := newLine(t, lineConfig{bus: bus.Config{AckWait: time.Second}, lockTimeout: 50 * time.Millisecond})
	l.publish(newBatch(10)) // so that its chunk is there
	cfg := settings()
	cfg.Loaders = 1 // all of them in one load
	stop := l.ingest(cfg, nil)
	l.settled()
	stop()

	conn, err := pgx.Connect(t.Context(), l.url)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	_, err = conn.Exec(t.Context(), "begin; lock table metrics.probe in access exclusive mode")
	require.NoError(t, err)
	for range 10 {
		l.publish(newBatch(10), ofFamily(newBatch(1), "pg_stat_wal"))
	}
	l.ingest(cfg, nil)
	l.eventually("the other family is stored", func() bool { return l.number("select count(*) from metrics.pg_stat_wal") == 10 })
	require.Equal(t, 11, l.batches())
	_, err = conn.Exec(t.Context(), "rollback")
	require.NoError(t, err)
	l.settled()
	require.Equal(t, 110, l.rows())
	require.Equal(t, 21, l.batches())
	require.Empty(t, l.letters())
}

// ofFamily makes the rows those of another family, with nothing but their
// times.
func ofFamily(b *batch.Batch, family string) *batch.Batch {
	s := &b.Sections[0]
	s.Family, s.Columns = family, nil
	s.Tuples = batch.AppendTuple(nil, batch.LeadFields, s.MinTime, s.ServerID)
	b.Seal()
	return b
}
