package gateway_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/bus"
)

func TestACollectorInQuarantineIsRefusedBeforeItsBodyIsRead(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{quota: 2, bus: bus.Config{ConfirmEvery: 50 * time.Millisecond}})
	good, bad := s.enrol(), s.enrol()
	status, _, text := bad.push(bad.body(rows(1)))
	require.Equal(t, http.StatusAccepted, status, text)
	for range 2 {
		letter := batch.Letter{CollectorID: bad.id, BatchID: uuid.New(), Reason: "data_error", Payload: []byte("x")}
		require.NoError(t, s.bus.DeadLetters().Bury(t.Context(), letter))
	}
	require.Eventually(t, func() bool { return s.value("pganalytics_bus_quarantined_collectors") == 1 }, 10*time.Second, time.Millisecond)

	before := s.value("pganalytics_gateway_received_bytes_total", "wire")
	status, header, text := bad.send(bad.request(t.Context(), neverEnding{}))
	golden(t, "quarantined", status, header, text)
	require.Equal(t, before, s.value("pganalytics_gateway_received_bytes_total", "wire"), "the body was read")
	require.EqualValues(t, 1, s.value("pganalytics_gateway_batches_total", "throttled"))

	status, _, text = good.push(good.body(rows(1)))
	require.Equal(t, http.StatusAccepted, status, "%s", text)
	s.batches(2)
}
