package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/jsonpush"
	"pganalytics/pkg/batch/native"
	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/catalogue"
)

func TestPushBaselineAndBacklogHaveTheSameRows(t *testing.T) {
	t.Parallel()
	cat, err := catalogue.Load(catalogueFiles())
	require.NoError(t, err)
	for _, sh := range shapes {
		id := uuid.New()
		p := sh.payload(3, rand.New(rand.NewPCG(1, 2)))
		at := time.Now().UTC().Truncate(time.Microsecond)
		pushed, report, err := decode(t, cat, id, sh, p, at)
		require.NoError(t, err)
		require.Empty(t, report.Rejected)
		require.Len(t, pushed.Sections, 1)
		section := pushed.Sections[0]
		require.Equal(t, sh.rows, section.Rows)
		require.Equal(t, p.tuples(at, batch.ServerID(id, p.server)), section.Tuples)

		filled, err := sh.batch(id, p, at)
		require.NoError(t, err)
		require.Equal(t, pushed.Sections, filled.Sections)
	}
}

// decode makes a push of the payload and decodes it as the gateway does.
func decode(t *testing.T, cat *catalogue.Catalogue, id uuid.UUID, sh shape, p payload, at time.Time) (*batch.Batch, *push.Report, error) {
	t.Helper()
	if !sh.native {
		body, err := pushBody(nil, id, sh, p, at)
		require.NoError(t, err)
		return jsonpush.Decode(bytes.NewReader(body), id, cat, push.DefaultLimits(), time.Now())
	}
	p.after = 0
	bodies, err := sh.bodies(id, []payload{p}, at)
	require.NoError(t, err)
	body, err := zstd.NewReader(bytes.NewReader(bodies[0]))
	require.NoError(t, err)
	defer body.Close()
	return native.Decode(body, id, cat, push.DefaultLimits(), time.Now())
}

func TestQuantilesAreThoseOfTheNearestRank(t *testing.T) {
	t.Parallel()
	v := []float64{5, 1, 4, 2, 3}
	require.Equal(t, 3.0, median(v))
	require.Equal(t, 2.5, median([]float64{1, 2, 3, 4}))
	require.Equal(t, 5.0, quantile(v, .99))
	require.Equal(t, 3.0, quantile(v, .5))
}

func TestCPUTimeOfAProcessIsSeen(t *testing.T) {
	t.Parallel()
	before, err := cpuTime(os.Getpid())
	require.NoError(t, err)
	for deadline := time.Now().Add(time.Minute); ; {
		after, err := cpuTime(os.Getpid())
		require.NoError(t, err)
		if after-before > 10*time.Millisecond {
			return
		}
		require.True(t, time.Now().Before(deadline))
	}
}
