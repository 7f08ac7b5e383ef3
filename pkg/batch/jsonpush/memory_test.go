package jsonpush_test

import (
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch/jsonpush"
	"pganalytics/pkg/fault"
)

// A sender may not make us hold what no batch has room for.
func TestOneHugeTokenIsRefusedBeforeItIsHeld(t *testing.T) { // not parallel: it measures the process's allocations
	head := body([]string{good}, batchID(now))
	for name, huge := range map[string]io.Reader{
		"white space": io.MultiReader(strings.NewReader(head[:1]), flood{' '}),
		"string":      io.MultiReader(strings.NewReader(`{"hostname": "`), flood{'x'}),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _, err := jsonpush.Decode(io.LimitReader(huge, 30<<20), collector, families(t), jsonpush.DefaultLimits(), now)
		runtime.ReadMemStats(&after)
		require.Equal(t, fault.TooLarge, fault.ClassOf(err), name)
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(40<<20), name)
	}
}

type flood struct{ b byte }

func (e flood) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = e.b
	}
	return len(p), nil
}
