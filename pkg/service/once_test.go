package service_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/batchpb"
	"pganalytics/pkg/bus"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/ingester"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/store"
	"pganalytics/schemas"
)

func TestRowsAreStoredOnceWhenTheAckGetsLost(t *testing.T) {
	t.Parallel()
	l := newLine(t, lineConfig{bus: bus.Config{AckWait: time.Second}})
	var lost atomic.Int32
	l.ingest(settings(), func(src ingester.Source) ingester.Source {
		return tap{src, func(d *batch.Delivery) {
			if d.Delivered == 1 { // committed, but the stream never hears of it
				d.Ack = func(context.Context) error { lost.Add(1); return errors.New("connection lost") }
			}
		}}
	})
	for range 20 {
		l.publish(newBatch(10))
	}
	l.eventually("every first acknowledgement is lost", func() bool { return lost.Load() == 20 })
	l.settled()
	require.Equal(t, 200, l.rows())
	require.Equal(t, 20, l.batches())
	require.Empty(t, l.letters())
}

func TestNoMessageIsAcknowledgedBeforeItsRowsAreCommitted(t *testing.T) {
	t.Parallel()
	l := newLine(t, lineConfig{})
	var early atomic.Int32
	l.ingest(settings(), func(src ingester.Source) ingester.Source {
		return tap{src, func(d *batch.Delivery) {
			ack, payload := d.Ack, d.Payload
			d.Ack = func(ctx context.Context) error {
				b, err := batch.Unmarshal(payload)
				if err != nil || l.number("select count(*) from ingest.batch where batch_id = $1", b.ID) != 1 {
					early.Add(1)
				}
				return ack(ctx)
			}
		}}
	})
	for range 20 {
		l.publish(newBatch(10))
	}
	l.settled()
	require.Zero(t, early.Load())
	require.Equal(t, 200, l.rows())
}

func TestSameBatchAfterTheDuplicateWindowIsStoredOnce(t *testing.T) {
	t.Parallel()
	l := newLine(t, lineConfig{bus: bus.Config{DuplicateWindow: 100 * time.Millisecond}})
	l.ingest(settings(), nil)
	b := newBatch(10)
	l.publish(b)
	l.eventually("the first is stored", func() bool { return l.rows() == 10 })
	l.eventually("the stream has forgotten its id", func() bool {
		duplicate, err := l.bus.Publisher().Publish(t.Context(), b)
		require.NoError(t, err)
		return !duplicate
	})
	l.settled()
	require.GreaterOrEqual(t, l.status().LastSequence, uint64(2))
	require.Equal(t, 10, l.rows())
	require.Empty(t, l.letters())
}

func TestSameBatchTwiceInOneLoadIsStoredOnce(t *testing.T) {
	t.Parallel()
	l := newLine(t, lineConfig{bus: bus.Config{DuplicateWindow: 100 * time.Millisecond}})
	b := newBatch(10)
	l.publish(b)
	l.eventually("the stream holds it twice", func() bool {
		_, err := l.bus.Publisher().Publish(t.Context(), b)
		require.NoError(t, err)
		return l.status().Messages >= 2
	})
	one := settings()
	one.Loaders = 1
	l.ingest(one, nil)
	l.settled()
	require.Equal(t, 10, l.rows())
	require.Empty(t, l.letters())
}

func TestTwoCollectorsWithOneBatchIDAreBothStored(t *testing.T) {
	t.Parallel()
	l := newLine(t, lineConfig{})
	l.ingest(settings(), nil)
	id := uuid.Must(uuid.NewV7())
	l.publish(batchOf(uuid.New(), id, "mine", 10), batchOf(uuid.New(), id, "mine", 10))
	l.settled()
	require.Equal(t, 20, l.rows())
	require.Equal(t, 2, l.batches())
	require.Equal(t, 2, l.number("select count(distinct server_id) from metrics.probe"))
}

func TestAnotherBodyUnderAUsedIDIsADeadLetter(t *testing.T) {
	t.Parallel()
	for name, window := range map[string]time.Duration{"within the window": 2 * time.Minute, "after the window": 100 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLine(t, lineConfig{bus: bus.Config{DuplicateWindow: window}})
			l.ingest(settings(), nil)
			collector, id := uuid.New(), uuid.Must(uuid.NewV7())
			first, second := batchOf(collector, id, "first", 10), batchOf(collector, id, "second", 10)
			l.publish(first)
			if window < time.Second {
				l.eventually("the first is stored", func() bool { return l.rows() == 10 })
				<-time.After(2 * window) // the window must pass; nothing signals it
			}
			l.publish(second)
			l.settled()
			// Two loaders may take them at once; then the faster one is the first.
			stored, refused := "first", second
			if l.number("select count(*) from metrics.probe where value = 'second'") > 0 {
				stored, refused = "second", first
			}
			require.Equal(t, 10, l.number("select count(*) from metrics.probe where value = $1", stored))
			require.Equal(t, 10, l.rows())
			letters := l.letters()
			require.Len(t, letters, 1)
			require.Equal(t, "batch_differs", letters[0].Reason)
			require.Equal(t, refused.Digest, letters[0].Digest)
			payload, err := refused.Marshal()
			require.NoError(t, err)
			require.Equal(t, payload, letters[0].Payload, "the original bytes")
		})
	}
}

func TestPoisonedBatchIsADeadLetterOnceAndItsNeighboursAreStored(t *testing.T) {
	t.Parallel()
	l := newLine(t, lineConfig{})
	bad := poison(newBatch(10))
	for i := range 20 {
		if i == 7 {
			l.publish(bad)
		}
		l.publish(newBatch(10))
	}
	one := settings()
	one.Loaders = 1 // all of them in one load
	l.ingest(one, nil)
	l.settled()
	require.Equal(t, 200, l.rows())
	require.Equal(t, 20, l.batches())
	letters := l.letters()
	require.Len(t, letters, 1)
	require.Equal(t, "data_error", letters[0].Reason)
	require.Equal(t, bad.ID, letters[0].BatchID)
	require.Equal(t, 10, letters[0].Rows)
	require.NotEmpty(t, letters[0].SQLState)
}

func TestLostDatabaseCostsNoDeliveryAndNoBatch(t *testing.T) {
	t.Parallel()
	cluster := testdb.StartCluster(t)
	l := newLine(t, lineConfig{databaseURL: cluster.URL(), bus: bus.Config{AckWait: 2 * time.Second}})
	var again atomic.Int32
	l.ingest(settings(), func(src ingester.Source) ingester.Source {
		return tap{src, func(d *batch.Delivery) {
			if d.Delivered > 1 {
				again.Add(1)
			}
		}}
	})
	stop := make(chan struct{})
	sent := make(chan int)
	go func() { // pushes go on all the time
		n := 0
		for {
			select {
			case <-stop:
				sent <- n
				return
			case <-time.After(20 * time.Millisecond):
				if _, err := l.bus.Publisher().Publish(context.Background(), newBatch(5)); err == nil {
					n++
				}
			}
		}
	}()
	l.eventually("rows arrive", func() bool { return l.rows() > 0 })
	cluster.Kill()
	<-time.After(10 * time.Second) // the outage itself
	require.Zero(t, again.Load(), "no message was handed out twice during the outage")
	cluster.Start()
	close(stop)
	n := <-sent
	l.settled()
	require.Zero(t, again.Load(), "no message was handed out twice")
	require.Equal(t, 5*n, l.rows())
	require.Equal(t, n, l.batches())
	require.Empty(t, l.letters())
}

func TestABatchOfAnUnknownFamilyWaitsAndItsNeighboursPass(t *testing.T) {
	t.Parallel()
	l := newLine(t, lineConfig{bus: bus.Config{AckWait: time.Second}})
	strange := newBatch(10)
	strange.Sections[0].Family = "from_tomorrow"
	strange.Seal()
	l.publish(strange, newBatch(10))
	patient := settings()
	stop := l.ingest(patient, nil)
	l.eventually("the neighbour is stored", func() bool { return l.rows() == 10 })
	l.eventually("the strange one is tried again", func() bool { return l.status().Redelivered > 0 })
	require.Empty(t, l.letters())
	stop()

	impatient := settings()
	impatient.UnknownFor = 100 * time.Millisecond
	l.ingest(impatient, nil)
	l.settled()
	letters := l.letters()
	require.Len(t, letters, 1)
	require.Equal(t, "unknown_schema", letters[0].Reason)
	require.Equal(t, strange.ID, letters[0].BatchID)
	require.Equal(t, 10, l.rows())
}

func TestABatchFromANewerGatewayWaits(t *testing.T) {
	t.Parallel()
	l := newLine(t, lineConfig{bus: bus.Config{AckWait: time.Second}})
	l.publishRaw(&batchpb.Batch{Version: 1000})
	l.publish(newBatch(10))
	l.ingest(settings(), nil)
	l.eventually("the neighbour is stored", func() bool { return l.rows() == 10 })
	l.eventually("the new one is tried again", func() bool { return l.status().Redelivered > 0 })
	require.Empty(t, l.letters())
}

// A load holds many messages, of which only one does not expand.
func TestABatchThatDoesNotExpandIsADeadLetterAndItsNeighboursAreStored(t *testing.T) {
	t.Parallel()
	l := newLine(t, lineConfig{})
	damaged := newBatch(500)
	data, err := damaged.Marshal()
	require.NoError(t, err)
	m := &batchpb.Batch{}
	require.NoError(t, proto.Unmarshal(data, m))
	require.NotEmpty(t, m.Sections[0].Packed)
	m.Sections[0].Packed = m.Sections[0].Packed[:len(m.Sections[0].Packed)/2]
	var payload []byte
	for i := range 20 {
		if i == 7 {
			payload = l.publishRaw(m)
		}
		l.publish(newBatch(500))
	}
	one := settings()
	one.Loaders = 1
	l.ingest(one, nil)
	l.settled()
	require.Equal(t, 20*500, l.rows())
	letters := l.letters()
	require.Len(t, letters, 1)
	require.Equal(t, "undecodable", letters[0].Reason)
	require.Equal(t, damaged.ID, letters[0].BatchID)
	require.Equal(t, payload, letters[0].Payload, "the original bytes")
}

// publishRaw publishes an envelope that the publisher would not write.
func (l *line) publishRaw(m *batchpb.Batch) []byte {
	l.t.Helper()
	payload, err := proto.Marshal(m)
	require.NoError(l.t, err)
	nc, err := nats.Connect(l.natsURL)
	require.NoError(l.t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(l.t, err)
	_, err = js.Publish(l.t.Context(), "pganalytics.batch."+uuid.NewString(), payload)
	require.NoError(l.t, err)
	return payload
}

func TestWhatTheDeadLettersDoNotTakeStaysOnTheStream(t *testing.T) {
	t.Parallel()
	l := newLine(t, lineConfig{bus: bus.Config{AckWait: time.Second}})
	l.publish(poison(newBatch(10)), newBatch(10))
	consumer, err := l.bus.Consumer(t.Context())
	require.NoError(t, err)
	full := &fullLetters{DeadLetters: l.bus.DeadLetters()}
	full.full.Store(true)
	l.ingestWith(settings(), consumer, full)
	l.eventually("the neighbour is stored and the bad one refused", func() bool { return l.rows() == 10 && full.refused.Load() > 1 })
	require.Less(t, l.status().AckFloor, l.status().LastSequence)
	require.Empty(t, l.letters())
	full.full.Store(false)
	l.settled()
	require.Len(t, l.letters(), 1)
}

// fullLetters are dead letters that take nothing while full.
type fullLetters struct {
	ingester.DeadLetters
	full    atomic.Bool
	refused atomic.Int32
}

func (f *fullLetters) Bury(ctx context.Context, letter batch.Letter) error {
	if f.full.Load() {
		f.refused.Add(1)
		return errors.New("full")
	}
	return f.DeadLetters.Bury(ctx, letter)
}

// A gateway of the next version sends a column that no ingester knows yet.
func TestABatchWithANewColumnWaitsForTheIngesterThatKnowsIt(t *testing.T) {
	t.Parallel()
	l := newLine(t, lineConfig{bus: bus.Config{AckWait: time.Second}})
	b := newBatch(1)
	s := &b.Sections[0]
	s.Columns = append(s.Columns, batch.Column{Name: "added", Type: catalogue.Integer})
	s.Tuples = batch.AppendTuple(nil, 5, s.MinTime, s.ServerID)
	s.Tuples = batch.AppendInt32(batch.AppendText(batch.AppendInt32(s.Tuples, 0), "x"), 42)
	b.Seal()
	l.publish(b, newBatch(10))
	l.ingest(settings(), nil)
	l.eventually("the neighbour is stored", func() bool { return l.rows() == 10 })
	l.eventually("the new one is tried again", func() bool { return l.status().Redelivered > 0 })

	grown := strings.Replace(family, "queries:", "  - {name: added, type: integer, kind: gauge, help: New.}\nqueries:", 1)
	cat, err := catalogue.Load(schemas.Metrics, fstest.MapFS{"probe.yaml": {Data: []byte(grown)}})
	require.NoError(t, err)
	require.NoError(t, store.EnsureSchema(t.Context(), l.url, cat))
	newer, err := store.Open(t.Context(), store.Config{URL: l.url}, cat, quiet(), prometheus.NewRegistry())
	require.NoError(t, err)
	t.Cleanup(newer.Close)
	l.store = newer // of the ingester to come; the old one goes on beside it
	l.ingest(settings(), nil)
	l.settled()
	require.Equal(t, 1, l.number("select count(*) from metrics.probe where added = 42"))
	require.Equal(t, 11, l.rows())
	require.Empty(t, l.letters())
}
