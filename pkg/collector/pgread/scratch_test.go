package pgread

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLargeResultsAreReadOneAtATime(t *testing.T) {
	t.Parallel()
	var (
		own             = make(turns, 1)
		holders, shared atomic.Int32
		all             sync.WaitGroup
	)
	for range 10 {
		all.Go(func() {
			defer own.take(t.Context())()
			if holders.Add(1) > 1 {
				shared.Add(1)
			}
			for range 100 {
				runtime.Gosched() // to whoever waits
			}
			holders.Add(-1)
		})
	}
	all.Wait()
	require.Zero(t, shared.Load())
}

func TestATurnThatDoesNotEndHoldsUpTheOthersForAMomentOnly(t *testing.T) {
	t.Parallel()
	own := make(turns, 1)
	end := own.take(t.Context())
	began, through := time.Now(), make(chan struct{})
	go func() {
		defer close(through)
		own.take(context.Background())()
	}()
	select {
	case <-through:
		require.GreaterOrEqual(t, time.Since(began), turnWait)
	case <-time.After(time.Minute):
		require.Fail(t, "still waits")
	}
	end()
	require.Empty(t, own, "who gave up waiting ended nobody else's turn")
}
