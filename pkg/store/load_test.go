package store_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/fault"
	"pganalytics/pkg/store"
)

func TestBatchTwiceInOneLoadIsStoredOnce(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	one := item(c, now, narrow(c, "db1", now, 3))
	require.Equal(t, []batch.Outcome{batch.Stored, batch.AlreadyStored}, f.load(one, one))
	require.Equal(t, [2]int{1, 3}, f.counts())
}

func TestBatchInTwoLoadsIsStoredOnce(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	one, two := item(c, now, narrow(c, "db1", now, 3)), item(c, now, narrow(c, "db2", now, 4))
	require.Equal(t, []batch.Outcome{batch.Stored}, f.load(one))
	require.Equal(t, []batch.Outcome{batch.AlreadyStored, batch.Stored}, f.load(one, two))
	require.Equal(t, [2]int{2, 7}, f.counts())
	require.NoError(t, testutil.GatherAndCompare(f.reg, strings.NewReader(`
# HELP pganalytics_store_batches_total Batches by the outcome of a load that committed.
# TYPE pganalytics_store_batches_total counter
pganalytics_store_batches_total{outcome="already_stored"} 1
pganalytics_store_batches_total{outcome="stored"} 2
# HELP pganalytics_store_rows_total Rows stored.
# TYPE pganalytics_store_rows_total counter
pganalytics_store_rows_total 7
`), "pganalytics_store_batches_total", "pganalytics_store_rows_total"))
}

func TestBatchInConcurrentLoadsIsStoredOnce(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	const rounds, loaders, batches = 5, 8, 24
	for round := range rounds { // the first makes the chunks, one loader after the other
		items := make([]batch.Item, batches)
		for i := range items {
			items[i] = item(c, now.Add(time.Duration(i%3)*time.Second),
				narrow(c, fmt.Sprint("db", i%5), now, 2), text(c, now, int64(i%4), fmt.Sprint("select ", round)))
		}
		outcomes := make([][]batch.Outcome, loaders)
		var g errgroup.Group
		for l := range loaders {
			g.Go(func() error {
				mine := make([]batch.Item, batches) // each in an order of its own
				for i := range mine {
					mine[i] = items[(i*5+l*3)%batches]
				}
				got, err := f.store.Load(t.Context(), mine)
				outcomes[l] = got
				return err
			})
		}
		require.NoError(t, g.Wait(), "nor did they lock one another out")
		stored := 0
		for _, outcome := range slices.Concat(outcomes...) {
			if outcome == batch.Stored {
				stored++
			} else {
				require.Equal(t, batch.AlreadyStored, outcome)
			}
		}
		require.Equal(t, batches, stored)
	}
	require.Equal(t, [2]int{rounds * batches, 2 * rounds * batches}, f.counts())
	require.Equal(t, 4*rounds, ask[int](f, "select count(*) from metrics.texts"))
}

func TestCollectorsMayUseTheSameBatchID(t *testing.T) {
	t.Parallel()
	f := setup(t)
	a, b := uuid.New(), uuid.New()
	one, two := item(a, now, narrow(a, "db1", now, 1)), item(b, now, narrow(b, "db1", now, 1))
	two.ID = one.ID
	two.Seal()
	require.Equal(t, []batch.Outcome{batch.Stored, batch.Stored}, f.load(one, two))
	require.Equal(t, [2]int{2, 2}, f.counts())
}

func TestOtherBatchUnderAUsedIDDiffersAndTheFirstIsKept(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	one, two := item(c, now, narrow(c, "db1", now, 1)), item(c, now, narrow(c, "db1", now, 5))
	two.ID = one.ID
	two.Seal()
	require.Equal(t, []batch.Outcome{batch.Stored, batch.Differs, batch.AlreadyStored}, f.load(one, two, one), "in one load")
	require.Equal(t, []batch.Outcome{batch.Differs, batch.AlreadyStored}, f.load(two, one), "in a later load")
	require.Equal(t, [2]int{1, 1}, f.counts())
}

func TestEmptyBatchIsInTheLedger(t *testing.T) {
	t.Parallel()
	f := setup(t)
	it := item(uuid.New(), now)
	it.Epoch, it.Batch.Sequence = uuid.Must(uuid.NewV7()), 4
	it.Previous = batch.Mark{Epoch: uuid.Must(uuid.NewV7()), Sequence: 9}
	it.Refused = []uint64{2, 3}
	it.Seal()
	require.Equal(t, []batch.Outcome{batch.Stored}, f.load(it))
	var epoch, previous uuid.UUID
	var sequence, previousSequence, rows, streamSeq int64
	var refused []int64
	var sections, incarnation string
	require.NoError(t, f.conn.QueryRow(t.Context(), `
		select epoch, sequence, previous_epoch, previous_sequence, refused, row_count, sections::text, stream_seq, stream_incarnation
		from ingest.batch`).Scan(&epoch, &sequence, &previous, &previousSequence, &refused, &rows, &sections, &streamSeq, &incarnation))
	require.Equal(t, it.Epoch, epoch)
	require.Equal(t, it.Previous.Epoch, previous)
	require.Equal(t, []int64{4, 9, 0, 7}, []int64{sequence, previousSequence, rows, streamSeq})
	require.Equal(t, []int64{2, 3}, refused)
	require.Equal(t, "[]", sections)
	require.Equal(t, "first", incarnation)
}

func TestRowsOfEveryTypeArriveAsSent(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	s := section(c, "db1", "keyed", []batch.Column{column("v", catalogue.DoublePrecision), column("name", catalogue.Text)}, now,
		func(dst []byte) []byte { return batch.AppendText(batch.AppendFloat64(dst, 1.5), "größe") },
		func(dst []byte) []byte { return batch.AppendText(batch.AppendNull(dst), "") })
	f.load(item(c, now, s))
	type row struct {
		Time     time.Time
		ServerID uuid.UUID
		Name     string
		V        *float64
	}
	rows, err := f.conn.Query(t.Context(), "select time, server_id, name, v from metrics.keyed order by time")
	require.NoError(t, err)
	got, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	require.NoError(t, err)
	require.Len(t, got, 2)
	require.True(t, now.Equal(got[0].Time))
	require.Equal(t, batch.ServerID(c, "db1"), got[0].ServerID)
	require.Equal(t, "größe", got[0].Name)
	require.Equal(t, 1.5, *got[0].V)
	require.Nil(t, got[1].V)
}

// A load that cannot be stored leaves nothing of itself, has the class that
// says what to do with it, and leaves the store in working order.
func TestFailedLoadLeavesNothing(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	bad := func(change func(*batch.Section)) batch.Section {
		s := narrow(c, "db1", now, 3)
		change(&s)
		return s
	}
	for name, test := range map[string]struct {
		section batch.Section
		class   fault.Class
		state   string
		says    string
	}{
		"more rows claimed":   {bad(func(s *batch.Section) { s.Rows++ }), fault.Invalid, "", "5 rows where the batches claim 6"},
		"fewer rows claimed":  {bad(func(s *batch.Section) { s.Rows-- }), fault.Invalid, "", ""},
		"tuple cut short":     {bad(func(s *batch.Section) { s.Tuples = s.Tuples[:len(s.Tuples)-3] }), fault.Invalid, "22P04", ""},
		"field count wrong":   {bad(func(s *batch.Section) { s.Tuples[1]++ }), fault.Invalid, "22P04", ""},
		"field length wrong":  {bad(func(s *batch.Section) { s.Tuples[5]-- }), fault.Invalid, "08P01", ""},
		"trailer inside":      {bad(func(s *batch.Section) { s.Tuples = append(s.Tuples, 0xff, 0xff) }), fault.Invalid, "22P04", ""},
		"null in a key":       {section(c, "db1", "keyed", []batch.Column{column("name", catalogue.Text)}, now, batch.AppendNull), fault.Invalid, "23502", ""},
		"text that is not":    {section(c, "db1", "keyed", []batch.Column{column("name", catalogue.Text)}, now, func(d []byte) []byte { return batch.AppendText(d, "\xff") }), fault.Invalid, "22021", ""},
		"unknown family":      {bad(func(s *batch.Section) { s.Family = "nobody" }), fault.Behind, "", `unknown family "nobody"`},
		"unknown column":      {bad(func(s *batch.Section) { s.Columns = []batch.Column{column("w", catalogue.BigInt)} }), fault.Behind, "", `family narrow: unknown column "w"`},
		"type not the column": {bad(func(s *batch.Section) { s.Columns = []batch.Column{column("v", catalogue.Text)} }), fault.Invalid, "", "is bigint, not text"},
	} {
		good := item(c, now, narrow(c, "db2", now, 2))
		_, err := f.store.Load(t.Context(), []batch.Item{good, item(c, now, test.section)})
		require.Error(t, err, name)
		require.Zero(t, ask[int](f, `select count(*) from pg_stat_activity
			where datname = current_database() and application_name = 'pganalytics-store' and state like 'idle in transaction%'`), "%s: no lock stays behind", name)
		require.Equal(t, test.class, fault.ClassOf(err), "%s: %v", name, err)
		require.Equal(t, test.state, store.SQLState(err), "%s: %v", name, err)
		require.ErrorContains(t, err, test.says, name)
		require.Equal(t, [2]int{0, 0}, f.counts(), name)
		require.Equal(t, 0, ask[int](f, "select count(*) from metrics.server"), name)
	}
	require.NoError(t, f.store.Probe(t.Context()))
	require.Equal(t, []batch.Outcome{batch.Stored}, f.load(item(c, now, narrow(c, "db2", now, 2))))
	require.Equal(t, [2]int{1, 2}, f.counts())
}

func TestColumnThatTheDatabaseLacksIsBehind(t *testing.T) {
	t.Parallel()
	f := setup(t)
	f.exec("alter table metrics.narrow rename column v to w")
	c := uuid.New()
	it := item(c, now, narrow(c, "db1", now, 1))
	_, err := f.store.Load(t.Context(), []batch.Item{it})
	require.Equal(t, fault.Behind, fault.ClassOf(err), "%v", err)
	require.Equal(t, "42703", store.SQLState(err))
	require.Equal(t, []batch.Outcome{batch.Stored}, f.load(it), "by then it is there")
}

func TestBatchBelowTheFloorIsNotStored(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	floor := now.Add(-time.Hour)
	known := item(c, floor.Add(-time.Minute), narrow(c, "db1", now, 1))
	f.load(known)
	f.exec("update ingest.floor set sent_at = $1", floor)
	below := item(c, floor.Add(-time.Microsecond), narrow(c, "db1", now, 1))
	at := item(c, floor, narrow(c, "db1", now, 1))
	require.Equal(t, []batch.Outcome{batch.BelowFloor, batch.Stored, batch.AlreadyStored, batch.BelowFloor}, f.load(below, at, known, below),
		"what the ledger still knows is told as it is")
	require.Equal(t, [2]int{2, 2}, f.counts())
}

// Whatever order a load has its batches in: else two could wait for each other.
func TestLedgerIsEnteredInTheOrderOfItsKey(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	const batches, held = 12, 6
	items := make([]batch.Item, batches)
	for i := range items {
		items[i] = item(c, now.Add(time.Duration(i)*time.Microsecond))
	}
	f.load(item(c, now)) // the chunk is there
	enter := func(i int) error {
		_, err := f.conn.Exec(t.Context(), `insert into ingest.batch (sent_at, collector_id, batch_id, stream_seq, stream_incarnation, digest, row_count, sections)
			values ($1, $2, $3, 1, '', $4, 0, '[]')`, items[i].SentAt, c, items[i].ID, items[i].Digest[:])
		return err
	}
	f.exec("set lock_timeout = '50ms'")
	f.exec("begin")
	require.NoError(t, enter(held))
	blocked, cancel := untilBlocked(f)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := f.store.Load(t.Context(), items)
		done <- err
	}()
	<-blocked.Done()
	for i := range items {
		if i != held {
			f.exec("savepoint before")
			require.Equal(t, i < held, enter(i) != nil, "batch %d while the load waits for batch %d", i, held)
			f.exec("rollback to before")
		}
	}
	f.exec("rollback")
	require.NoError(t, <-done)
}

func TestEndedContextStoresNothing(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	it := item(c, now, narrow(c, "db1", now, 1))
	f.load(item(c, now, narrow(c, "db1", now, 1)))
	blocker, err := f.conn.Begin(t.Context())
	require.NoError(t, err)
	_, err = blocker.Exec(t.Context(), "lock table metrics.narrow in access exclusive mode")
	require.NoError(t, err)
	ctx, cancel := untilBlocked(f)
	defer cancel()
	_, err = f.store.Load(ctx, []batch.Item{it})
	require.Equal(t, fault.Unavailable, fault.ClassOf(err), "%v", err)
	require.NoError(t, blocker.Rollback(t.Context()))
	require.Equal(t, [2]int{1, 1}, f.counts())
	require.Equal(t, []batch.Outcome{batch.Stored}, f.load(it))
}

func TestServersAreKept(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	instance := func(at time.Time, version int32, standby bool) batch.Section {
		return section(c, "db1", "pg_instance", []batch.Column{
			column("version_num", catalogue.Integer), column("in_recovery", catalogue.Boolean), column("system_identifier", catalogue.Text),
		}, at, func(dst []byte) []byte {
			return batch.AppendText(batch.AppendBool(batch.AppendInt32(dst, version), standby), "7391")
		})
	}
	type server struct {
		CollectorID      uuid.UUID
		Name             string
		SystemIdentifier *string
		Version          *int
		Role             string
		Labels           map[string]string
		FirstSeen        time.Time
		LastSeen         time.Time
	}
	read := func() server {
		rows, err := f.conn.Query(t.Context(), `
			select collector_id, name, system_identifier, version, role, labels, first_seen, last_seen
			from metrics.server where server_id = $1`, batch.ServerID(c, "db1"))
		require.NoError(t, err)
		s, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[server])
		require.NoError(t, err)
		s.FirstSeen, s.LastSeen = s.FirstSeen.UTC(), s.LastSeen.UTC()
		return s
	}
	f.load(item(c, now, narrow(c, "db1", now, 1)))
	want := server{CollectorID: c, Name: "db1", Role: "unknown", Labels: map[string]string{"env": "test"}, FirstSeen: now, LastSeen: now}
	require.Equal(t, want, read())

	f.load(item(c, now.Add(time.Second), narrow(c, "db1", now, 1)))
	require.Equal(t, want, read(), "not written for every batch")

	sysid, version := "7391", 170005
	f.load(item(c, now.Add(2*time.Second), instance(now.Add(time.Second), 170005, true), instance(now, 160001, false)))
	want.SystemIdentifier, want.Version, want.Role, want.LastSeen = &sysid, &version, "standby", now.Add(2*time.Second)
	require.Equal(t, want, read(), "the newest row counts")

	f.load(item(c, now.Add(-time.Hour), instance(now.Add(-time.Hour), 150000, false)))
	require.Equal(t, want, read(), "what is late changes nothing")

	f.load(item(c, now.Add(2*time.Minute), narrow(c, "db1", now, 1)))
	want.LastSeen = now.Add(2 * time.Minute)
	require.Equal(t, want, read(), "a batch without an instance row forgets nothing")
}

func TestDimensionIsStoredOnceAndItsLastSeenMovesForward(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	seen := func(query string) [2]time.Time {
		var first, last time.Time
		require.NoError(t, f.conn.QueryRow(t.Context(), "select first_seen, last_seen from metrics.texts where query = $1", query).Scan(&first, &last))
		return [2]time.Time{first.UTC(), last.UTC()}
	}
	f.load(item(c, now, text(c, now, 1, "select 1"), text(c, now.Add(time.Minute), 1, "select 1"), text(c, now, 1, "select 2"), text(c, now, 2, "select 2")))
	require.Equal(t, 3, ask[int](f, "select count(*) from metrics.texts"))
	require.Equal(t, [2]time.Time{now, now.Add(time.Minute)}, seen("select 1"))

	f.load(item(c, now, text(c, now.Add(30*time.Minute), 1, "select 1")))
	require.Equal(t, now.Add(time.Minute), seen("select 1")[1], "by an hour or not at all")
	later := now.Add(3 * time.Hour)
	f.load(item(c, now, text(c, later, 1, "select 1")))
	require.Equal(t, [2]time.Time{now, later}, seen("select 1"))
	f.load(item(c, now, text(c, now.Add(-3*time.Hour), 1, "select 1")))
	require.Equal(t, [2]time.Time{now, later}, seen("select 1"), "never back")
	require.Equal(t, 3, ask[int](f, "select count(*) from metrics.texts"))
}

// Two loads that meet at a row which neither has seen.
func TestLastSeenDoesNotMoveBackWhenLoadsMeet(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	f.load(item(c, now, text(c, now, 1, "select 1")))
	later := now.Add(3 * time.Hour)
	f.exec("create temporary table other as table metrics.texts")
	f.exec("delete from metrics.texts")
	f.exec("update other set last_seen = $1", later)
	f.exec("begin; insert into metrics.texts table other")
	blocked, cancel := untilBlocked(f)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := f.store.Load(t.Context(), []batch.Item{item(c, now, text(c, now, 1, "select 1"))})
		done <- err
	}()
	<-blocked.Done()
	f.exec("commit")
	require.NoError(t, <-done)
	require.Equal(t, later, ask[time.Time](f, "select last_seen from metrics.texts").UTC())
}

func TestRowsAndLedgerAgree(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	it := item(c, now, narrow(c, "db1", now, 5), narrow(c, "db2", now.Add(time.Second), 2), text(c, now, 1, "select 1"), text(c, now, 1, "select 1"))
	f.load(it, item(uuid.New(), now))
	sum, err := f.store.Summary(t.Context())
	require.NoError(t, err)
	require.Equal(t, int64(2), sum.Batches)
	require.Equal(t, int64(9), sum.LedgerRows)
	require.Equal(t, now.Add(time.Second+time.Millisecond), sum.Newest)
	require.Equal(t, []store.FamilySummary{
		{Name: "keyed"},
		{Name: "narrow", Rows: 7, LedgerRows: 7, Newest: now.Add(time.Second + time.Millisecond)},
		{Name: "pg_instance"},
		{Name: "texts", Dimension: true, Rows: 1, LedgerRows: 2, Newest: now},
	}, sum.Families)
	stored, err := f.store.StoredBatches(t.Context(), c)
	require.NoError(t, err)
	require.Equal(t, map[uuid.UUID]store.StoredBatch{it.ID: {SentAt: now, Rows: 9, Digest: it.Digest}}, stored)
}
