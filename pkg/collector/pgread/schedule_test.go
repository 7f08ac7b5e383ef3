package pgread

import (
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/catalogue"
)

func TestReadingGoesOnWhenTheClockIsSetBack(t *testing.T) {
	t.Parallel()
	cfg := Config{Name: "one", Conninfo: "host=/nowhere"}
	cat := load(t, family("number", "instance", number))
	s, err := NewServer(cfg, cat, slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry()), nil)
	require.NoError(t, err)
	tasks := s.tasks(catalogue.Instance)
	// The reading of the monotonic clock, which alone compares and subtracts
	// rightly across a step, shows in no other way.
	require.Contains(t, tasks[0].due.String(), " m=")
	require.Zero(t, tasks[0].due.Nanosecond())
	s.wait(t.Context(), tasks)
	require.Contains(t, tasks[0].due.String(), " m=")
}
