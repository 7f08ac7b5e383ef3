package service_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/bus"
	"pganalytics/pkg/cmdline"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/replay"
	"pganalytics/pkg/service"
)

// replayed is a line and what an operator's command needs to reach it.
type replayed struct {
	*line
	service.Installation
	collector uuid.UUID
	sent      []*batch.Batch
}

func newReplayed(t *testing.T, cfg lineConfig) *replayed {
	t.Helper()
	r := &replayed{line: newLine(t, cfg), collector: uuid.New()}
	dir := t.TempDir()
	require.NoError(t, cmdline.Defaults(&r.Installation))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "probe.yaml"), []byte(family), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "url"), []byte(r.url), 0o600))
	r.CatalogueDir, r.Database.URLFile, r.Timeout = []string{dir}, filepath.Join(dir, "url"), 30*time.Second
	r.Installation.NATS.URL = r.nats.URL()
	return r
}

// stored publishes n batches of ten rows of one collector and has them stored.
func (r *replayed) stored(n int) {
	r.t.Helper()
	for range n {
		id := uuid.Must(uuid.NewV7())
		r.sent = append(r.sent, batchOf(r.collector, id, id.String(), 10))
	}
	r.publish(r.sent[len(r.sent)-n:]...)
	stop := r.ingest(settings(), nil)
	r.settled()
	stop()
}

// forget takes from the database all that it has of those batches, as a
// restored backup lacks it.
func (r *replayed) forget(batches ...*batch.Batch) {
	r.t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, r.url)
	require.NoError(r.t, err)
	defer func() { _ = conn.Close(ctx) }()
	for _, b := range batches {
		_, err := conn.Exec(ctx, "delete from ingest.batch where batch_id = $1", b.ID)
		require.NoError(r.t, err)
		_, err = conn.Exec(ctx, "delete from metrics.probe where value = $1", b.ID.String())
		require.NoError(r.t, err)
	}
}

func (r *replayed) replay(req service.ReplayRequest, con service.ReplayConsole) (replay.Plan, replay.Result, error) {
	req.By, con.Stderr = "cli:test", os.Stderr
	return r.Replay(r.t.Context(), req, con)
}

// everything is every batch that was sent, stored once.
func (r *replayed) everything() {
	r.t.Helper()
	require.Equal(r.t, len(r.sent), r.batches())
	require.Equal(r.t, 10*len(r.sent), r.rows())
	require.Equal(r.t, r.rows(), r.number("select count(distinct (value, n)) from metrics.probe"))
}

func (r *replayed) holds() []bus.Hold {
	r.t.Helper()
	holds, err := r.bus.Holds().List(context.Background())
	require.NoError(r.t, err)
	return holds
}

// holdGap holds a gap as an ingester does.
func (r *replayed) holdGap(from, to uint64) {
	r.t.Helper()
	_, err := r.bus.Holds().Take(r.t.Context(), bus.Hold{Name: "rewind", Incarnation: r.status().Incarnation, From: from, To: to})
	require.NoError(r.t, err)
}

// stream is the stream as only an administrator of NATS reaches it.
func (r *replayed) stream() jetstream.Stream {
	r.t.Helper()
	nc, err := nats.Connect(r.nats.URL())
	require.NoError(r.t, err)
	r.t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(r.t, err)
	s, err := js.Stream(r.t.Context(), "BATCHES")
	require.NoError(r.t, err)
	return s
}

func TestAReplayStoresExactlyWhatTheDatabaseLacks(t *testing.T) {
	t.Parallel()
	r := newReplayed(t, lineConfig{})
	r.stored(60)
	r.forget(r.sent[10:30]...)
	require.Equal(t, 40, r.batches())
	held := 0
	plan, res, err := r.replay(service.ReplayRequest{FromSequence: 1}, service.ReplayConsole{
		Agree: func(replay.Plan) error { held = len(r.holds()); return nil },
	})
	require.NoError(t, err)
	require.Equal(t, 1, held, "held before anybody is asked")
	require.EqualValues(t, 60, plan.Selected.Batches)
	require.EqualValues(t, 20, plan.Missing.Batches)
	require.EqualValues(t, 200, plan.Missing.Rows)
	require.Len(t, plan.Collectors, 1)
	require.Equal(t, replay.Done{Stored: replay.Counts{Batches: 20, Rows: 200}, Skipped: 40}, res.Done)
	require.Zero(t, res.Left)
	require.Empty(t, r.holds())
	r.everything()
	require.Equal(t, 1, r.number(`select count(*) from identity.audit where actor = 'cli:test' and action = 'stream.replay'
		and resource_id = $1 and changes #>> '{done,stored,batches}' = '20'`, res.ID))

	_, res, err = r.replay(service.ReplayRequest{FromSequence: 1}, service.ReplayConsole{})
	require.NoError(t, err)
	require.Zero(t, res.Done.Stored)
	r.everything()
}

func TestADryRunAndANoChangeNothing(t *testing.T) {
	t.Parallel()
	r := newReplayed(t, lineConfig{})
	r.stored(10)
	r.forget(r.sent[3:5]...)
	plan, res, err := r.replay(service.ReplayRequest{FromSequence: 1, DryRun: true}, service.ReplayConsole{})
	require.NoError(t, err)
	require.EqualValues(t, 2, plan.Missing.Batches)
	require.Empty(t, res.ID)

	no := errors.New("no")
	_, res, err = r.replay(service.ReplayRequest{FromSequence: 1}, service.ReplayConsole{Agree: func(replay.Plan) error { return no }})
	require.ErrorIs(t, err, no)
	require.Empty(t, res.ID)
	require.Equal(t, 8, r.batches())
	require.Empty(t, r.holds())
	require.Zero(t, r.number("select count(*) from identity.audit"))
}

func TestAReplayTakesTheHeldGapByItselfAndReleasesIt(t *testing.T) {
	t.Parallel()
	r := newReplayed(t, lineConfig{})
	r.stored(30)
	_, _, err := r.replay(service.ReplayRequest{}, service.ReplayConsole{})
	require.ErrorIs(t, err, service.ErrNothingHeld)

	r.forget(r.sent[10:20]...)
	r.holdGap(11, 25)
	plan, res, err := r.replay(service.ReplayRequest{}, service.ReplayConsole{})
	require.NoError(t, err)
	require.Equal(t, []uint64{11, 25}, []uint64{plan.First, plan.Last})
	require.True(t, res.Filled)
	require.Empty(t, r.holds())
	r.everything()
}

func TestAGapIsReleasedOnlyByWhatFillsItWhole(t *testing.T) {
	t.Parallel()
	r := newReplayed(t, lineConfig{})
	r.stored(30)
	r.holdGap(11, 25)
	for name, req := range map[string]service.ReplayRequest{
		"begins later":   {FromSequence: 12},
		"ends before":    {FromSequence: 1, To: r.arrived(24)},
		"one collector":  {FromSequence: 1, Selection: replay.Selection{Collectors: []uuid.UUID{r.collector}}},
		"one family":     {FromSequence: 1, Selection: replay.Selection{Families: []string{"probe"}}},
		"only a dry run": {FromSequence: 1, DryRun: true},
	} {
		_, res, err := r.replay(req, service.ReplayConsole{})
		require.NoError(t, err, name)
		require.False(t, res.Filled, name)
		require.Len(t, r.holds(), 1, name)
	}
	// The database goes back once more while the operator reads the plan.
	r.forget(r.sent[0])
	_, res, err := r.replay(service.ReplayRequest{FromSequence: 1}, service.ReplayConsole{
		Agree: func(replay.Plan) error { r.holdGap(11, 25); return nil },
	})
	require.NoError(t, err)
	require.False(t, res.Filled)
	require.Len(t, r.holds(), 1)
	r.everything()

	_, res, err = r.replay(service.ReplayRequest{FromSequence: 11}, service.ReplayConsole{})
	require.NoError(t, err)
	require.True(t, res.Filled)
	require.Empty(t, r.holds())
}

// arrived is when the message came.
func (r *replayed) arrived(sequence uint64) time.Time {
	r.t.Helper()
	msg, err := r.stream().GetMsg(r.t.Context(), sequence)
	require.NoError(r.t, err)
	return msg.Time
}

func TestASelectionTakesWholeBatchesAndLeavesTheRest(t *testing.T) {
	t.Parallel()
	r := newReplayed(t, lineConfig{})
	r.stored(10)
	other := r.collector
	r.collector = uuid.New()
	r.stored(10)
	r.forget(r.sent...)
	_, res, err := r.replay(service.ReplayRequest{From: time.Now().Add(-time.Hour), Selection: replay.Selection{Families: []string{"pg_stat_database"}}}, service.ReplayConsole{})
	require.NoError(t, err)
	require.Zero(t, res.Done.Stored)
	_, res, err = r.replay(service.ReplayRequest{From: time.Now().Add(-time.Hour), Selection: replay.Selection{Collectors: []uuid.UUID{other}}}, service.ReplayConsole{})
	require.NoError(t, err)
	require.EqualValues(t, 10, res.Done.Stored.Batches)
	require.Equal(t, 10, r.number("select count(*) from ingest.batch where collector_id = $1", other))
	_, res, err = r.replay(service.ReplayRequest{From: r.arrived(12), To: r.arrived(15), Selection: replay.Selection{Families: []string{"probe"}}}, service.ReplayConsole{})
	require.NoError(t, err)
	require.EqualValues(t, 3, res.Done.Stored.Batches)
	require.Equal(t, 130, r.rows())
}

func TestWhatHasLeftTheStreamIsNamedAndEndsTheReplayUnlessAllowed(t *testing.T) {
	t.Parallel()
	r := newReplayed(t, lineConfig{})
	r.stored(30)
	before := r.arrived(1)
	require.NoError(t, r.stream().Purge(t.Context(), jetstream.WithPurgeSequence(6)))
	require.NoError(t, r.stream().DeleteMsg(t.Context(), 20))
	r.forget(r.sent[4:22]...)
	plan, _, err := r.replay(service.ReplayRequest{FromSequence: 3}, service.ReplayConsole{})
	require.ErrorIs(t, err, service.ErrPartial)
	require.Equal(t, []replay.Jump{{From: 3, To: 5}, {From: 20, To: 20}}, plan.Gone)
	plan, _, err = r.replay(service.ReplayRequest{From: before}, service.ReplayConsole{})
	require.ErrorIs(t, err, service.ErrPartial)
	require.True(t, plan.Late)
	_, _, err = r.replay(service.ReplayRequest{FromSequence: 15}, service.ReplayConsole{})
	require.ErrorIs(t, err, service.ErrPartial)
	require.Equal(t, 12, r.batches())
	require.Empty(t, r.holds())
	_, res, err := r.replay(service.ReplayRequest{FromSequence: 6, To: r.arrived(19)}, service.ReplayConsole{})
	require.NoError(t, err, "nothing of this has left")
	require.EqualValues(t, 13, res.Done.Stored.Batches)
	_, res, err = r.replay(service.ReplayRequest{From: before, AllowPartial: true}, service.ReplayConsole{})
	require.NoError(t, err)
	require.EqualValues(t, 3, res.Done.Stored.Batches)
	require.Equal(t, 28, r.batches())
}

func TestAnInterruptedReplayKeepsItsPlaceAndGoesOn(t *testing.T) {
	t.Parallel()
	r := newReplayed(t, lineConfig{})
	r.stored(60)
	r.forget(r.sent...)
	_, _, err := r.replay(service.ReplayRequest{Resume: true}, service.ReplayConsole{})
	require.ErrorIs(t, err, service.ErrNothingOpen)

	ctx, cancel := context.WithCancel(t.Context())
	_, res, err := r.Replay(ctx, service.ReplayRequest{FromSequence: 1, Rate: 100}, service.ReplayConsole{
		Stderr: os.Stderr,
		Tell: func(p replay.Progress) {
			if p.Next > 10 && !p.Planning {
				cancel()
			}
		},
	})
	require.ErrorIs(t, err, context.Canceled)
	require.Greater(t, res.Next, uint64(10))
	require.Less(t, res.Next, uint64(60))
	holds := r.holds()
	require.Len(t, holds, 1)
	require.Equal(t, res.Next, holds[0].From)
	require.Equal(t, int(res.Done.Stored.Batches), r.batches())

	_, again, err := r.replay(service.ReplayRequest{Resume: true}, service.ReplayConsole{})
	require.NoError(t, err)
	require.Equal(t, res.ID, again.ID)
	require.EqualValues(t, 60, again.Done.Stored.Batches)
	require.Zero(t, again.Done.Skipped, "what was done is not read again")
	require.Empty(t, r.holds())
	r.everything()
}

func TestAReplayThatIsResumedBeginsAnewWhenTheDatabaseWentBack(t *testing.T) {
	t.Parallel()
	r := newReplayed(t, lineConfig{})
	r.stored(60)
	r.forget(r.sent...)
	ctx, cancel := context.WithCancel(t.Context())
	_, res, err := r.Replay(ctx, service.ReplayRequest{FromSequence: 1, Rate: 100}, service.ReplayConsole{
		Stderr: os.Stderr, Tell: func(p replay.Progress) {
			if p.Next > 10 && !p.Planning {
				cancel()
			}
		},
	})
	require.ErrorIs(t, err, context.Canceled)
	require.Greater(t, res.Next, uint64(10))
	r.forget(r.sent...)
	_, _, err = r.replay(service.ReplayRequest{Resume: true}, service.ReplayConsole{})
	require.NoError(t, err)
	r.everything()
}

func TestADatabaseThatGoesBackDuringAReplayHasItBeginAnew(t *testing.T) {
	t.Parallel()
	cluster := testdb.StartCluster(t)
	r := newReplayed(t, lineConfig{databaseURL: cluster.URL()})
	r.stored(60)
	r.forget(r.sent...)
	cluster.Stop()
	backup := cluster.Copy()
	cluster.Start()
	gone := false
	_, res, err := r.replay(service.ReplayRequest{FromSequence: 1, Rate: 50}, service.ReplayConsole{
		Tell: func(p replay.Progress) {
			if p.Next > 10 && !p.Planning && !gone {
				gone = true
				cluster.Kill()
				cluster.Restore(backup)
				cluster.Start()
			}
		},
	})
	require.ErrorContains(t, err, "went back")
	require.True(t, gone)
	require.Less(t, r.batches(), 60)
	require.NotEmpty(t, res.ID)
	_, _, err = r.replay(service.ReplayRequest{Resume: true}, service.ReplayConsole{})
	require.NoError(t, err)
	r.everything()
	require.Empty(t, r.holds())
}

func TestADatabaseThatDiesDuringAReplayIsWaitedFor(t *testing.T) {
	t.Parallel()
	cluster := testdb.StartCluster(t)
	r := newReplayed(t, lineConfig{databaseURL: cluster.URL()})
	r.stored(60)
	r.forget(r.sent...)
	died := false
	_, res, err := r.replay(service.ReplayRequest{FromSequence: 1, Rate: 100}, service.ReplayConsole{
		Tell: func(p replay.Progress) {
			if p.Next > 10 && !p.Planning && !died {
				died = true
				cluster.Kill()
				cluster.Start()
			}
		},
	})
	require.NoError(t, err)
	require.True(t, died)
	require.Zero(t, res.Left)
	require.Empty(t, r.holds())
	r.everything()
}

func TestAStreamThatGoesAwayDuringAReplayIsWaitedFor(t *testing.T) {
	t.Parallel()
	r := newReplayed(t, lineConfig{})
	r.stored(60)
	r.forget(r.sent...)
	away, waited := false, false
	_, res, err := r.replay(service.ReplayRequest{FromSequence: 1, Rate: 100}, service.ReplayConsole{
		Tell: func(p replay.Progress) {
			switch {
			case p.Next > 10 && !p.Planning && !away:
				away = true
				r.nats.Stop()
			case away && !waited:
				waited = p.Waiting != ""
				r.nats.Restart()
			}
		},
	})
	require.NoError(t, err)
	require.True(t, waited, "and it tells for what")
	require.Zero(t, res.Left)
	r.everything()
	r.eventually("nothing is held", func() bool { return len(r.holds()) == 0 })
}

func TestWhatTheIngestersHaveInHandIsNotMissing(t *testing.T) {
	t.Parallel()
	r := newReplayed(t, lineConfig{})
	r.stored(10)
	r.forget(r.sent[3])
	slow := settings()
	slow.FetchWait = time.Second // a load waits so long for more
	r.ingest(slow, nil)
	r.publish(newBatch(10))
	plan, _, err := r.replay(service.ReplayRequest{FromSequence: 1, DryRun: true}, service.ReplayConsole{})
	require.NoError(t, err)
	require.EqualValues(t, 11, plan.Selected.Batches)
	require.EqualValues(t, 1, plan.Missing.Batches)
}

func TestTwoReplaysNeverRunAtOnce(t *testing.T) {
	t.Parallel()
	r := newReplayed(t, lineConfig{})
	r.stored(10)
	r.forget(r.sent...)
	r.Timeout = 3 * time.Second
	_, _, err := r.replay(service.ReplayRequest{FromSequence: 1}, service.ReplayConsole{
		Agree: func(replay.Plan) error {
			_, _, err := r.replay(service.ReplayRequest{FromSequence: 1}, service.ReplayConsole{})
			require.ErrorIs(t, err, service.ErrAnotherReplay)
			return nil
		},
	})
	require.NoError(t, err)
	r.everything()
}

func TestWhatCannotBeStoredIsBuriedAgainAndItsNeighboursAreStored(t *testing.T) {
	t.Parallel()
	r := newReplayed(t, lineConfig{})
	r.stored(5)
	r.publish(poison(newBatch(10)))
	r.publishRaw(nil)
	r.stored(5)
	require.Len(t, r.letters(), 2)
	r.forget(r.sent...)
	plan, res, err := r.replay(service.ReplayRequest{FromSequence: 1}, service.ReplayConsole{})
	require.NoError(t, err)
	require.EqualValues(t, 1, plan.Unreadable)
	require.EqualValues(t, 1, res.Done.Buried)
	require.EqualValues(t, 1, res.Done.Unreadable)
	require.Len(t, r.letters(), 2, "the same letters")
	r.everything()
}

func TestAReplayWithoutStreamOrDatabaseSaysSoInOneLine(t *testing.T) {
	t.Parallel()
	r := newReplayed(t, lineConfig{})
	r.Timeout = 2 * time.Second
	away := r.Installation
	away.NATS.URL = "nats://127.0.0.1:1"
	_, _, err := away.Replay(t.Context(), service.ReplayRequest{FromSequence: 1}, service.ReplayConsole{Stderr: os.Stderr})
	require.ErrorContains(t, err, "connect to nats")
	require.NotContains(t, err.Error(), "\n")

	file := filepath.Join(t.TempDir(), "url")
	require.NoError(t, os.WriteFile(file, []byte("postgres://x@127.0.0.1:1/x"), 0o600))
	away = r.Installation
	away.Database.URLFile = file
	_, _, err = away.Replay(t.Context(), service.ReplayRequest{FromSequence: 1}, service.ReplayConsole{Stderr: os.Stderr})
	require.ErrorContains(t, err, "database")
	require.NotContains(t, err.Error(), "\n")
	require.Empty(t, r.holds())
}

func TestLiveBatchesGoOnDuringAReplay(t *testing.T) {
	t.Parallel()
	r := newReplayed(t, lineConfig{})
	r.stored(40)
	r.forget(r.sent...)
	r.ingest(settings(), nil)
	live := 0
	_, _, err := r.replay(service.ReplayRequest{FromSequence: 1, Rate: 200}, service.ReplayConsole{
		Tell: func(replay.Progress) {
			id := uuid.Must(uuid.NewV7())
			r.sent = append(r.sent, batchOf(r.collector, id, id.String(), 10))
			r.publish(r.sent[len(r.sent)-1])
			live++
		},
	})
	require.NoError(t, err)
	require.Positive(t, live)
	r.settled()
	r.everything()
}
