package jsonpush_test

import (
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch/jsonpush"
	"pganalytics/pkg/batch/push"
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
		_, _, err := jsonpush.Decode(io.LimitReader(huge, 30<<20), collector, families(t), push.DefaultLimits(), now)
		runtime.ReadMemStats(&after)
		require.Equal(t, fault.TooLarge, fault.ClassOf(err), name)
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(40<<20), name)
	}
}

func TestARowIsBoundedAsAWhole(t *testing.T) {
	t.Parallel()
	space := strings.Repeat(" ", 3<<20)
	row := func(parts ...string) string {
		return body([]string{good, `{"type": "narrow", "columns": ["time", "v"], "rows": [` + strings.Join(parts, space) + `]}`})
	}
	_, _, err := decode(t, row(`["2026-03-04T05:06:00Z",`, `1`, `]`))
	require.NoError(t, err)
	_, _, err = decode(t, row(`["2026-03-04T05:06:00Z"`, `,`, `1`, `]`))
	_ = requireFault(t, err, fault.TooLarge, "body_too_large")
	_, _, err = decode(t, row(`[`, `true,`, `1`, `]`))
	_ = requireFault(t, err, fault.TooLarge, "body_too_large")
}

func TestWhatIsPassedOverIsNotHeld(t *testing.T) { // not parallel: it measures the process's allocations
	rows := strings.Repeat(`[1, "text", {"a": {"b": [null]}}],`, 50_000)
	for name, item := range map[string]string{
		"unknown family":  `{"type": "none", "rows": [` + rows + `[]]}`,
		"refused row":     `{"type": "narrow", "columns": ["v"], "rows": [[true],` + rows + `[]]}`,
		"row behind it":   `{"type": "narrow", "columns": ["v"], "rows": [[true], [` + rows + `[]]]}`,
		"value in a row":  `{"type": "narrow", "columns": ["v"], "rows": [[[` + rows + `[]]]]}`,
		"value by a name": `{"type": "narrow", "rows": [{"v": [` + rows + `[]]}]}`,
		"unknown member":  `{"type": "narrow", "x": [` + rows + `[]]}`,
	} {
		sent := strings.NewReader(body([]string{good, item}))
		cat := families(t)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, report, err := jsonpush.Decode(sent, collector, cat, push.DefaultLimits(), now)
		runtime.ReadMemStats(&after)
		require.NoError(t, err, name)
		require.Len(t, report.Rejected, 1, name)
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(512<<10), name)
	}
}

// The memory that decoding took is used again; a batch has its own.
func TestABatchDoesNotChangeWithTheNextBody(t *testing.T) {
	t.Parallel()
	first, _, err := decode(t, body([]string{good, all("s", `"the first"`)}, `"labels": {"a": "b"}`))
	require.NoError(t, err)
	before, err := first.Marshal()
	require.NoError(t, err)
	for range 10 {
		_, _, err := decode(t, body([]string{all("s", `"`+strings.Repeat("other", 2000)+`"`)}, `"labels": {"x": "y"}`))
		require.NoError(t, err)
	}
	after, err := first.Marshal()
	require.NoError(t, err)
	require.Equal(t, before, after)
	require.True(t, first.Intact())
}

type flood struct{ b byte }

func (e flood) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = e.b
	}
	return len(p), nil
}
