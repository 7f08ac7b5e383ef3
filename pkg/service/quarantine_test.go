package service

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/replay/repair"
)

func TestACollectorOverItsQuotaOfDeadLettersIsToldToWaitUntilTheyAreDealtWith(t *testing.T) {
	t.Parallel()
	n := splitTown(t)
	client, gateway := n.client(&n.certificate), n.endpoints[1].Collectors
	push := func() int {
		status, _, err := n.request(client, gateway, http.MethodPost, "/api/v1/metrics/push", n.collectorToken(), "{}")
		require.NoError(t, err)
		return status
	}
	n.eventually(func() bool { return push() == http.StatusBadRequest }) // known, and its body is read
	for i := range 100 {                                                 // the default
		letter := batch.Letter{CollectorID: n.collector, BatchID: uuid.New(), Payload: []byte("x")}
		if i > 0 { // the others can be decoded
			b := &batch.Batch{CollectorID: n.collector, ID: letter.BatchID, SentAt: time.Now().UTC().Truncate(time.Microsecond)}
			b.Seal()
			payload, err := b.Marshal()
			require.NoError(t, err)
			letter.Digest, letter.Payload = b.Digest, payload
		}
		require.NoError(t, n.bus.DeadLetters().Bury(t.Context(), letter))
	}
	n.eventually(func() bool { return push() == http.StatusTooManyRequests })

	file := filepath.Join(t.TempDir(), "url")
	require.NoError(t, os.WriteFile(file, []byte(n.database), 0o600))
	i := Installation{NATS: StreamFlags{URL: n.nats}, Database: DatabaseFlags{URLFile: file}, Timeout: time.Minute}
	bench, end, err := i.Repair(t.Context(), "cli:test", io.Discard)
	require.NoError(t, err)
	defer end()
	heads, _, err := bench.List(t.Context(), repair.Selection{Collector: &n.collector, Limit: 1})
	require.NoError(t, err)
	require.NoError(t, bench.Discard(t.Context(), heads, repair.Discarding{Reason: "a faulty sender", Undecodable: true}, func(repair.Result) {}))
	n.eventually(func() bool { return push() == http.StatusBadRequest })
}
