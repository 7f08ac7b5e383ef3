package e2e

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/bus"
	"pganalytics/pkg/internal/testnats"
)

func wrongBatch(t *testing.T, b *book) {
	s, c := sender(t, "")
	s.pushed(c, 2)
	wrong := uuid.Must(uuid.NewV7()).String()
	// Unlike the others, whose rows nobody can tell apart.
	body := fmt.Appendf(nil, `{"collector_id": %q, "hostname": "h", "timestamp": %q, "version": "test", "batch_id": %q, "metrics_count": 1,
"metrics": [{"type": "pg_settings", "columns": ["name", "setting"], "rows": [["a", "1"], ["b", "2"], ["c", "3"], ["d", "4"], ["e", "5"]]}]}`,
		c.id.CollectorID, time.Now().UTC().Format(time.RFC3339), wrong)
	require.Equal(t, http.StatusAccepted, c.post("/api/v1/metrics/push", body).StatusCode)
	s.stored(3)
	p := s.page(b, "A wrong batch is removed and replayed", "COLLECTOR", c.id.CollectorID.String(), "BATCH", wrong)
	out, status := p.run(0)
	require.Zero(t, status, out)
	s.stored(2)
	require.Zero(t, s.number("select count(*) from ingest.batch where batch_id = $1", wrong))

	out, status = p.run(1)
	require.Zero(t, status, out)
	s.stored(3)
	require.Equal(t, 1, s.number("select count(*) from ingest.batch where batch_id = $1", wrong))
}

func deadLetters(t *testing.T, b *book) {
	s := newParts(t, testnats.Start(t).URL(), bus.Config{})
	s.serve = s.run("ingester", "--nats-url", s.url, "--admin-listen", "127.0.0.1:0")
	list, behind := s.page(b, "Dead letters"), s.page(b, "An ingester was rolled back a version")
	for _, retry := range []func() (string, int){
		func() (string, int) { return list.run(1) },
		func() (string, int) { return behind.run(0) },
	} {
		letter := s.letter("unknown_schema")
		require.NoError(t, s.bus.DeadLetters().Bury(t.Context(), letter))
		out, status := list.run(0)
		require.Zero(t, status, out)
		require.Contains(t, out, "unknown_schema")
		out, status = s.page(b, "").run(0)
		require.Equal(t, 2, status)
		require.Contains(t, out, "1 batches lie in the dead letters")

		out, status = retry()
		require.Zero(t, status, out)
		require.Equal(t, 1, s.number("select count(*) from ingest.batch where batch_id = $1", letter.BatchID))
		left, err := s.bus.DeadLetters().Count(t.Context())
		require.NoError(t, err)
		require.Zero(t, left)
	}
}

// letter is a batch without rows, buried although nothing is wrong with it any
// more.
func (p *parts) letter(reason string) batch.Letter {
	p.t.Helper()
	b := emptyBatch(10)
	payload, err := b.Marshal()
	require.NoError(p.t, err)
	return batch.Letter{
		CollectorID: b.CollectorID, BatchID: b.ID, Digest: b.Digest, Reason: reason, Detail: "a test",
		Position: batch.Position{Sequence: 1, Incarnation: "of before", StoredAt: time.Now()}, Payload: payload,
	}
}
