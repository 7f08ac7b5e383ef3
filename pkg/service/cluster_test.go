package service_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/bus"
	"pganalytics/pkg/internal/testnats"
)

// Senders repeat what is not confirmed, so the stream holds some batches twice
// by the end; the ledger does not.
func TestBatchesAreStoredOnceAlthoughTheStreamsLeaderIsKilled(t *testing.T) {
	t.Parallel()
	cluster := testnats.StartCluster(t)
	l := newLine(t, lineConfig{natsURL: cluster.URL(), bus: bus.Config{
		Replicas: 3, RequestTimeout: 2 * time.Second, AckWait: 5 * time.Second, DuplicateWindow: 100 * time.Millisecond,
	}})
	l.ingest(settings(), nil)
	const senders, each, rows = 4, 100, 20
	killAt := make(chan struct{}, senders) // one for each sender, so that none waits
	var group errgroup.Group
	for range senders {
		group.Go(func() error {
			for i := range each {
				if i == each/4 {
					killAt <- struct{}{}
				}
				l.deliver(newBatch(rows))
			}
			return nil
		})
	}
	<-killAt
	leader := cluster.Leader("BATCHES")
	cluster.Kill(leader)
	require.NoError(t, group.Wait())
	cluster.Start(leader)
	l.eventually("every message is acknowledged", func() bool {
		s, err := l.bus.Status(t.Context())
		return err == nil && s.AckFloor == s.LastSequence
	})
	require.Equal(t, senders*each*rows, l.rows())
	require.Equal(t, senders*each, l.batches())
	require.Empty(t, l.letters())
}

// deliver publishes until the stream confirms, as a collector does.
func (l *line) deliver(b *batch.Batch) {
	for {
		if _, err := l.bus.Publisher().Publish(l.t.Context(), b); err == nil || l.t.Context().Err() != nil {
			return
		}
		<-time.After(20 * time.Millisecond)
	}
}
