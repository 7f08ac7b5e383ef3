package service_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/bus"
	"pganalytics/pkg/fault"
	"pganalytics/pkg/policy/pulled"
	"pganalytics/pkg/replay"
	"pganalytics/pkg/replay/verify"
	"pganalytics/pkg/service"
	"pganalytics/pkg/store"
)

// verified is a line with a collector that numbers its batches.
type verified struct {
	*replayed
	epoch uuid.UUID
}

func newVerified(t *testing.T) *verified {
	t.Helper()
	return &verified{newReplayed(t, lineConfig{}), uuid.Must(uuid.NewV7())}
}

// numbered is a batch of ten rows, not sealed.
func (v *verified) numbered(sequence uint64) *batch.Batch {
	id := uuid.Must(uuid.NewV7())
	b := batchOf(v.collector, id, id.String(), 10)
	b.Epoch, b.Sequence = v.epoch, sequence
	return b
}

// send publishes sealed batches with those numbers.
func (v *verified) send(numbers ...uint64) []*batch.Batch {
	v.t.Helper()
	var sent []*batch.Batch
	for _, n := range numbers {
		b := v.numbered(n)
		b.Seal()
		sent = append(sent, b)
	}
	v.publish(sent...)
	return sent
}

// ingested stores what is on the stream.
func (v *verified) ingested() {
	v.t.Helper()
	stop := v.ingest(settings(), nil)
	v.settled()
	stop()
}

func (v *verified) exec(sql string, args ...any) {
	v.t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, v.url)
	require.NoError(v.t, err)
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, sql, args...)
	require.NoError(v.t, err)
}

// purge takes what lies before a sequence off the stream.
func (v *verified) purge(before uint64) {
	v.t.Helper()
	require.NoError(v.t, v.stream().Purge(v.t.Context(), jetstream.WithPurgeSequence(before)))
}

// verifier is the one of the command, to be changed.
func (v *verified) verifier() verify.Verifier { return service.Verifier(v.bus, v.store) }

func (v *verified) verify(change ...func(*verify.Request)) verify.Report {
	v.t.Helper()
	req := verify.Request{List: 100}
	for _, f := range change {
		f(&req)
	}
	r, _, err := v.Verify(v.t.Context(), service.VerifyRequest{Request: req}, service.ReplayConsole{Stderr: os.Stderr})
	require.NoError(v.t, err)
	return r
}

func (v *verified) gap(class verify.Class, first, last uint64, from, to *batch.Batch) verify.Gap {
	g := verify.Gap{Collector: v.collector, Epoch: v.epoch, First: first, Last: last, Class: class}
	if from != nil {
		g.From = from.SentAt
	}
	if to != nil {
		g.To = to.SentAt
	}
	return g
}

func TestAReportOnWhatIsWholeIsClean(t *testing.T) {
	t.Parallel()
	v := newVerified(t)
	sent := v.send(1, 2, 3)
	other := batchOf(uuid.New(), uuid.Must(uuid.NewV7()), "x", 10) // of a sender that does not number
	v.publish(other)
	v.ingested()
	r := v.verify()
	require.True(t, r.Clean())
	require.Empty(t, r.Gaps)
	require.Empty(t, r.Mismatches)
	require.Len(t, r.Collectors, 2)
	for _, c := range r.Collectors {
		if c.ID == v.collector {
			require.Equal(t, verify.Collector{
				ID: v.collector, Epochs: 1, Batches: verify.Counts{verify.Stored: 3},
				Newest: verify.Number{Epoch: v.epoch, Sequence: 3, SentAt: sent[2].SentAt},
			}, c)
			continue
		}
		require.Equal(t, verify.Collector{
			ID: other.CollectorID, Batches: verify.Counts{verify.Stored: 1}, Unnumbered: 1,
			Newest: verify.Number{SentAt: other.SentAt},
		}, c)
	}
	for _, f := range r.Families {
		if f.Name == "probe" {
			require.EqualValues(t, 40, f.LedgerRows)
			require.EqualValues(t, 40, f.TableRows)
		}
	}
}

func TestEveryNumberIsWhereTheReportSays(t *testing.T) {
	t.Parallel()
	v := newVerified(t)
	began := time.Now().Add(-time.Minute)
	sent := v.send(1, 2)
	three := poison(v.numbered(3))
	v.publish(three)
	sent = append(sent, three)
	sent = append(sent, v.send(4, 5, 6)...)
	eight := v.numbered(8) // 7 was refused
	eight.Refused = []uint64{7}
	eight.Seal()
	v.publish(eight)
	v.ingested()
	sent = append(sent, nil, eight)
	v.forget(sent[3], sent[4])            // a database from the past, as far as these go
	v.forget(sent[0], sent[1])            // and these
	v.purge(3)                            // which nobody has any more
	sent = append(sent, v.send(9, 10)...) // nobody is there to store them

	r := v.verify()
	require.False(t, r.Clean())
	want := []verify.Gap{
		v.gap(verify.Lost, 1, 2, nil, three),
		v.gap(verify.DeadLettered, 3, 3, three, three),
		v.gap(verify.Replayable, 4, 5, sent[3], sent[4]),
		v.gap(verify.Refused, 7, 7, sent[5], eight),
		v.gap(verify.InFlight, 9, 10, sent[8], sent[9]),
	}
	require.Equal(t, want, r.Gaps)
	require.EqualValues(t, 5, r.GapCount)
	require.Len(t, r.Collectors, 1)
	require.Equal(t, verify.Counts{
		verify.Stored: 2, verify.DeadLettered: 1, verify.InFlight: 2, verify.Replayable: 2, verify.Refused: 1, verify.Lost: 2,
	}, r.Collectors[0].Batches)
	require.Equal(t, verify.Number{Epoch: v.epoch, Sequence: 10, SentAt: sent[9].SentAt}, r.Collectors[0].Newest)
	require.EqualValues(t, 4, r.ReplayFrom)
	require.EqualValues(t, 5, r.ReplayTo)
	require.Empty(t, r.Mismatches, "ledger and tables agree all the while")

	v.purge(4) // the message of what is a letter now
	require.Equal(t, want, v.verify().Gaps)
	require.Equal(t, want, v.verify(func(req *verify.Request) { req.From = began }).Gaps, "all of it was sent since")
	require.Len(t, v.verify(func(req *verify.Request) { req.List = 2 }).Gaps, 2)
}

func TestWhatIsOnlyUnderWayIsNoFault(t *testing.T) {
	t.Parallel()
	v := newVerified(t)
	v.send(1)
	v.ingested()
	v.send(2, 4)
	b := v.numbered(5)
	b.Refused = []uint64{3}
	b.Seal()
	v.publish(b)
	r := v.verify()
	require.True(t, r.Clean())
	require.Equal(t, verify.Counts{verify.Stored: 1, verify.InFlight: 3, verify.Refused: 1}, r.Collectors[0].Batches)
}

func TestANewEpochTellsHowTheOneBeforeEnded(t *testing.T) {
	t.Parallel()
	v := newVerified(t)
	sent := v.send(1, 2, 3)
	ended := v.epoch
	v.epoch = uuid.Must(uuid.NewV7())
	first := v.numbered(1)
	first.Previous = batch.Mark{Epoch: ended, Sequence: 5}
	first.Seal()
	v.publish(first)
	v.ingested()
	r := v.verify()
	require.False(t, r.Clean())
	v.epoch = ended
	require.Equal(t, []verify.Gap{v.gap(verify.Lost, 4, 5, sent[2], first)}, r.Gaps)
	require.Equal(t, 2, r.Collectors[0].Epochs)
}

func TestAWindowJudgesOnlyWhatItSees(t *testing.T) {
	t.Parallel()
	v := newVerified(t)
	sent := v.send(2, 3)
	four := v.numbered(4)
	four.SentAt = four.SentAt.Add(time.Second)
	four.Seal()
	v.publish(four)
	v.ingested()
	r := v.verify(func(req *verify.Request) { req.From = four.SentAt })
	require.True(t, r.Clean(), "1 may have been sent before")
	require.Equal(t, verify.Counts{verify.Stored: 1}, r.Collectors[0].Batches)
	r = v.verify(func(req *verify.Request) { req.To = sent[1].SentAt })
	require.Equal(t, verify.Counts{verify.Stored: 2, verify.Lost: 1}, r.Collectors[0].Batches, "1 was never stored")
	r = v.verify(func(req *verify.Request) { req.Collectors = []uuid.UUID{uuid.New()} })
	require.Empty(t, r.Collectors)
}

func TestRowsThatAreNotTheLedgersAreNamed(t *testing.T) {
	t.Parallel()
	v := newVerified(t)
	b := v.send(1)[0]
	v.ingested()
	hour := b.SentAt.Truncate(time.Hour)
	want := verify.Mismatch{
		Family: "probe", ServerID: b.Sections[0].ServerID, Server: "db1", CollectorID: v.collector,
		From: hour, To: hour.Add(time.Hour), LedgerRows: 10, TableRows: 9,
	}
	v.exec("delete from metrics.probe where n = 3")
	r := v.verify()
	require.False(t, r.Clean())
	require.Equal(t, []verify.Mismatch{want}, r.Mismatches)

	v.exec("insert into metrics.probe select p.* from metrics.probe p, generate_series(1, 2) where n = 4")
	want.TableRows = 11
	require.Equal(t, []verify.Mismatch{want}, v.verify().Mismatches)
}

func TestAClockThatWasPutBackLosesNothing(t *testing.T) {
	t.Parallel()
	v := newVerified(t)
	var sent []*batch.Batch
	for n, at := range []time.Duration{0, -time.Hour, time.Second} {
		b := v.numbered(uint64(n) + 1)
		b.SentAt = b.SentAt.Add(at)
		b.Seal()
		sent = append(sent, b)
	}
	v.publish(sent...)
	v.ingested()
	v.purge(4)
	r := v.verify(func(req *verify.Request) { req.From = sent[0].SentAt })
	require.True(t, r.Clean())
	require.Empty(t, r.Gaps)
}

// moving is a ledger that something happens to after it was read first.
type moving struct {
	*store.Store
	then func()
}

func (m *moving) Numbers(ctx context.Context, from, to time.Time, of []uuid.UUID, f func(*batch.Batch, bool) error) (time.Time, error) {
	floor, err := m.Store.Numbers(ctx, from, to, of, f)
	if m.then != nil {
		m.then()
	}
	m.then = nil
	return floor, err
}

func TestWhatIsStoredAndTrimmedMeanwhileIsNotLost(t *testing.T) {
	t.Parallel()
	v := newVerified(t)
	v.send(1, 3)
	v.ingested()
	v.send(2) // handed out once more, say, after 3
	verifier := v.verifier()
	verifier.Ledger = &moving{v.store, func() {
		v.ingested()
		v.purge(4)
	}}
	r, err := verifier.Run(t.Context(), verify.Request{List: 100})
	require.NoError(t, err)
	require.Empty(t, r.Gaps)
	require.True(t, r.Clean())
}

func TestAStreamThatIsMadeAnewMeanwhileIsNoticed(t *testing.T) {
	t.Parallel()
	v := newVerified(t)
	v.send(1)
	verifier := v.verifier()
	verifier.Ledger = &moving{v.store, func() {
		nc, err := nats.Connect(v.natsURL)
		require.NoError(t, err)
		defer nc.Close()
		js, err := jetstream.New(nc)
		require.NoError(t, err)
		require.NoError(t, js.DeleteStream(t.Context(), "BATCHES"))
		require.NoError(t, v.bus.EnsureStreams(t.Context()))
	}}
	_, err := verifier.Run(t.Context(), verify.Request{})
	require.Equal(t, fault.Conflict, fault.ClassOf(err), "%v", err)
}

// What is acknowledged out of turn is above the floor, but it is not in flight.
func TestWhatWasAcknowledgedOutOfTurnAndLostIsNoticed(t *testing.T) {
	t.Parallel()
	v := newVerified(t)
	sent := v.send(1, 2, 3)
	consumer, err := v.bus.Consumer(t.Context())
	require.NoError(t, err)
	got, err := consumer.Fetch(t.Context(), 3, 16<<20, time.Second)
	require.NoError(t, err)
	require.Len(t, got, 3)
	r := v.verify()
	require.True(t, r.Clean(), "all may be under way")

	require.NoError(t, got[1].Ack(t.Context()))
	require.NoError(t, got[2].Ack(t.Context()))
	r = v.verify()
	require.False(t, r.Clean())
	require.EqualValues(t, 2, r.AckedInFlight)
	require.EqualValues(t, 1, r.ReplayFrom)
	require.Equal(t, []verify.Gap{v.gap(verify.InFlight, 1, 3, sent[0], sent[2])}, r.Gaps)
}

func TestFixStoresWhatIsReplayable(t *testing.T) {
	t.Parallel()
	v := newVerified(t)
	sent := v.send(1, 2, 3)
	v.ingested()
	v.forget(sent[1])
	fix := service.VerifyRequest{Request: verify.Request{List: 100}, Fix: true, By: "cli:test"}
	no := errors.New("no")
	r, res, err := v.Verify(t.Context(), fix, service.ReplayConsole{Stderr: os.Stderr, Agree: func(p replay.Plan) error {
		require.EqualValues(t, 1, p.Missing.Batches)
		return no
	}})
	require.ErrorIs(t, err, no)
	require.Empty(t, res.ID)
	require.Equal(t, []verify.Gap{v.gap(verify.Replayable, 2, 2, sent[1], sent[1])}, r.Gaps)
	require.Equal(t, 2, v.batches(), "nothing was done")

	r, res, err = v.Verify(t.Context(), fix, service.ReplayConsole{Stderr: os.Stderr})
	require.NoError(t, err)
	require.EqualValues(t, 1, res.Done.Stored.Batches)
	require.True(t, r.Clean())
	require.Equal(t, verify.Counts{verify.Stored: 3}, r.Collectors[0].Batches)
	require.Equal(t, 30, v.rows())
	require.Equal(t, 1, v.number("select count(*) from identity.audit where action = 'stream.replay' and actor = 'cli:test'"))
	require.Empty(t, v.holds())
}

func TestVerifySaysInOneLineWhoIsAway(t *testing.T) {
	t.Parallel()
	v := newVerified(t)
	say := func() string {
		_, _, err := v.Verify(t.Context(), service.VerifyRequest{}, service.ReplayConsole{Stderr: os.Stderr})
		require.Error(t, err)
		require.NotContains(t, err.Error(), "\n")
		return err.Error()
	}
	v.Timeout = 2 * time.Second
	require.NoError(t, os.WriteFile(v.Database.URLFile, []byte("postgres://nobody@127.0.0.1:1/nothing?sslmode=disable"), 0o600))
	require.Contains(t, say(), "database=nothing")
	v.nats.Stop()
	require.Contains(t, say(), "connect to nats")
}

// Batches come in, are stored and trimmed all the while.
func TestNothingUnderWayLooksWrong(t *testing.T) {
	t.Parallel()
	v := newVerified(t)
	v.ingest(settings(), nil)
	ctx, cancel := context.WithCancel(t.Context())
	var g errgroup.Group
	g.Go(func() error {
		return v.bus.Trimmer(bus.TrimConfig{ReplayWindow: time.Millisecond, HighWater: 0.8, Interval: 5 * time.Millisecond}, v.store.Probe).Run(ctx)
	})
	for range 4 {
		collector, epoch := uuid.New(), uuid.Must(uuid.NewV7())
		g.Go(func() error {
			for n := uint64(1); ctx.Err() == nil; n++ {
				id := uuid.Must(uuid.NewV7())
				b := batchOf(collector, id, id.String(), 10)
				b.Epoch, b.Sequence = epoch, n
				b.Seal()
				if _, err := v.bus.Publisher().Publish(context.WithoutCancel(ctx), b); err != nil {
					return err
				}
			}
			return nil
		})
	}
	inFlight := uint64(0)
	for range 15 {
		r := v.verify()
		require.True(t, r.Clean(), "%+v", r)
		for _, c := range r.Collectors {
			inFlight += c.Batches[verify.InFlight]
		}
	}
	cancel()
	require.NoError(t, g.Wait())
	require.NotZero(t, inFlight, "it was never looked at in between")
	require.Greater(t, v.status().FirstSequence, uint64(1), "nothing was trimmed")
	v.settled()
	r := v.verify()
	require.True(t, r.Clean())
	require.Empty(t, r.Gaps)
}

func TestWhatWasDiscardedIsNotCalledStored(t *testing.T) {
	t.Parallel()
	v := newVerified(t)
	sent := v.send(1)
	given := v.numbered(2)
	given.Seal()
	v.publish(given)
	nobody := func(context.Context, *pgx.Conn) error { return nil }
	_, err := v.store.Discard(t.Context(), batch.Item{Batch: given}, "it was wrong", nobody)
	require.NoError(t, err)
	sent = append(sent, v.send(3)...)
	v.ingested()
	r := v.verify()
	require.True(t, r.Clean())
	require.Equal(t, []verify.Gap{v.gap(verify.Discarded, 2, 2, given, given)}, r.Gaps)
	require.Equal(t, verify.Counts{verify.Stored: 2, verify.Discarded: 1}, r.Collectors[0].Batches)
	require.Equal(t, 10*len(sent), v.rows())
}

func TestFixAsksCollectorsForWhatIsLost(t *testing.T) {
	t.Parallel()
	v := newVerified(t)
	v.send(1, 4, 6)
	v.ingested()
	fix := func() verify.Report {
		r, res, err := v.Verify(t.Context(), service.VerifyRequest{Request: verify.Request{List: 100}, Fix: true, By: "cli:test"}, service.ReplayConsole{Stderr: os.Stderr})
		require.NoError(t, err)
		require.Empty(t, res.ID, "nothing is replayable")
		return r
	}
	require.Empty(t, v.verify().Asked, "a look changes nothing")
	asked := fix().Asked
	require.Len(t, asked, 1)
	require.Equal(t, v.collector, asked[0].Collector)
	require.EqualValues(t, 3, asked[0].Numbers)
	require.Nil(t, asked[0].Before)
	require.Equal(t, asked[0].Request, fix().Asked[0].Request, "asked already")

	snapshot := pulled.NewSnapshot(v.bus.ConfigBucket())
	value, err := v.bus.ConfigBucket().Get(t.Context(), "resend."+v.collector.String())
	require.NoError(t, err)
	require.NoError(t, snapshot.Apply("resend."+v.collector.String(), value))
	answer, _ := snapshot.Answer(v.collector)
	require.Equal(t, []pulled.Range{{Epoch: v.epoch, First: 2, Last: 3}, {Epoch: v.epoch, First: 5, Last: 5}}, answer.Resend.Ranges)

	// The collector still had two of the three.
	require.NoError(t, snapshot.Report(t.Context(), v.collector, pulled.State{Resent: &pulled.Resent{ID: asked[0].Request, Found: 2, Missing: 1}}))
	v.send(2, 3)
	v.ingested()
	again := fix().Asked
	require.NotEqual(t, asked[0].Request, again[0].Request)
	require.EqualValues(t, 1, again[0].Numbers)
	require.Equal(t, &pulled.Resent{ID: asked[0].Request, Found: 2, Missing: 1}, again[0].Before)
	v.send(5)
	v.ingested()
	r := fix()
	require.True(t, r.Clean())
	require.Empty(t, r.Asked)
}
