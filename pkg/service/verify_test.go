package service_test

import (
	"context"
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
	"pganalytics/pkg/replay/verify"
	"pganalytics/pkg/service"
)

// verified is a line with a collector that numbers its batches.
type verified struct {
	*line
	service.Installation
	collector, epoch uuid.UUID
}

func newVerified(t *testing.T) *verified {
	t.Helper()
	v := &verified{line: newLine(t, lineConfig{}), collector: uuid.New(), epoch: uuid.Must(uuid.NewV7())}
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "probe.yaml"), []byte(family), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "url"), []byte(v.url), 0o600))
	v.CatalogueDir, v.Database.URLFile, v.Timeout = []string{dir}, filepath.Join(dir, "url"), 30*time.Second
	v.Installation.NATS.URL = v.nats.URL()
	return v
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

// stored ingests what is on the stream.
func (v *verified) stored() {
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

// forget takes batches out of ledger and table at once, as if the database were
// from before them.
func (v *verified) forget(batches ...*batch.Batch) {
	v.t.Helper()
	for _, b := range batches {
		v.exec(`with gone as (delete from ingest.batch where batch_id = $1) delete from metrics.probe where value = $2`, b.ID, b.ID.String())
	}
}

// purge takes what lies before a sequence off the stream.
func (v *verified) purge(before uint64) {
	v.t.Helper()
	nc, err := nats.Connect(v.natsURL)
	require.NoError(v.t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(v.t, err)
	stream, err := js.Stream(v.t.Context(), "BATCHES")
	require.NoError(v.t, err)
	require.NoError(v.t, stream.Purge(v.t.Context(), jetstream.WithPurgeSequence(before)))
}

func (v *verified) verify(change ...func(*verify.Request)) verify.Report {
	v.t.Helper()
	req := verify.Request{List: 100}
	for _, f := range change {
		f(&req)
	}
	r, err := v.Verify(v.t.Context(), req, os.Stderr)
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
	v.stored()
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
	sent := v.send(1, 2)
	three := poison(v.numbered(3))
	v.publish(three)
	sent = append(sent, three)
	sent = append(sent, v.send(4, 5, 6)...)
	eight := v.numbered(8) // 7 was refused
	eight.Refused = []uint64{7}
	eight.Seal()
	v.publish(eight)
	v.stored()
	sent = append(sent, nil, eight)
	v.forget(sent[3], sent[4])            // a database from the past, as far as these go
	v.forget(sent[0], sent[1])            // and these
	v.purge(3)                            // which nobody has any more
	sent = append(sent, v.send(9, 10)...) // nobody is there to store them

	r := v.verify()
	require.False(t, r.Clean())
	require.Equal(t, []verify.Gap{
		v.gap(verify.Lost, 1, 2, nil, three),
		v.gap(verify.DeadLettered, 3, 3, three, three),
		v.gap(verify.Replayable, 4, 5, sent[3], sent[4]),
		v.gap(verify.Refused, 7, 7, sent[5], eight),
		v.gap(verify.InFlight, 9, 10, sent[8], sent[9]),
	}, r.Gaps)
	require.EqualValues(t, 5, r.GapCount)
	require.Len(t, r.Collectors, 1)
	require.Equal(t, verify.Counts{
		verify.Stored: 2, verify.DeadLettered: 1, verify.InFlight: 2, verify.Replayable: 2, verify.Refused: 1, verify.Lost: 2,
	}, r.Collectors[0].Batches)
	require.Equal(t, verify.Number{Epoch: v.epoch, Sequence: 10, SentAt: sent[9].SentAt}, r.Collectors[0].Newest)
	require.EqualValues(t, 4, r.ReplayFrom)
	require.EqualValues(t, 5, r.ReplayTo)
	require.Empty(t, r.Mismatches, "ledger and tables agree all the while")
}

func TestWhatIsOnlyUnderWayIsNoFault(t *testing.T) {
	t.Parallel()
	v := newVerified(t)
	v.send(1)
	v.stored()
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
	v.stored()
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
	v.stored()
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
	v.stored()
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
