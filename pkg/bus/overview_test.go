package bus

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAnOverviewTellsWhatWaitsWhatIsHeldAndWhatComesIn(t *testing.T) {
	t.Parallel()
	w := setup(t)
	o, err := w.Overview(t.Context())
	require.NoError(t, err)
	require.Zero(t, o.Inflow)
	require.Zero(t, o.Unstored)
	require.Empty(t, o.Holds)

	w.publish(10, 1000)
	w.store(w.consumer(), 6, 6)
	mine, err := w.Holds().Take(t.Context(), Hold{Name: "mine", Incarnation: w.status().Incarnation, From: 3, To: 4, Reason: "a test", By: "t"})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		o, err = w.Overview(t.Context())
		return err == nil && o.AckFloor == 6
	}, patience, 10*time.Millisecond)
	require.Equal(t, []Hold{mine}, o.Holds)
	require.Positive(t, o.Unstored)
	require.WithinDuration(t, time.Now(), o.At, time.Minute)
	require.Empty(t, o.Behind)
	require.Equal(t, 1, o.Replicas)
	// All of it came in within the time that is looked at.
	over := max(time.Second, o.At.Sub(o.FirstTime)).Seconds()
	require.InEpsilon(t, float64(o.Bytes)/over, o.Inflow, 0.01)
}
