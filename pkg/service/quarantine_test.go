package service

import (
	"net/http"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
)

func TestACollectorOverItsQuotaOfDeadLettersIsToldToWait(t *testing.T) {
	t.Parallel()
	n := splitTown(t)
	client, gateway := n.client(&n.certificate), n.endpoints[1].Collectors
	push := func() int {
		status, _, err := n.request(client, gateway, http.MethodPost, "/api/v1/metrics/push", n.collectorToken(), "{}")
		require.NoError(t, err)
		return status
	}
	n.eventually(func() bool { return push() == http.StatusBadRequest }) // known, and its body is read
	for range 100 {                                                      // the default
		letter := batch.Letter{CollectorID: n.collector, BatchID: uuid.New(), Payload: []byte("x")}
		require.NoError(t, n.bus.DeadLetters().Bury(t.Context(), letter))
	}
	n.eventually(func() bool { return push() == http.StatusTooManyRequests })
}
