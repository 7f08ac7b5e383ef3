package hostread

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"math"
	"os"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var collector = uuid.MustParse("0198c0de-0000-7000-8000-000000000001")

// read starts a reader of every family, hands what comes to take until that
// has had enough, and stops it.
func read(t *testing.T, interval time.Duration, enough func(batch.Section) bool) {
	t.Helper()
	out := make(chan []batch.Section)
	h := New(Config{CollectorID: collector, Name: "db1", Intervals: every(interval)}, families(t),
		slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry()), out)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx); close(out) }()
	met := false
	for sections := range out {
		if !met && slices.ContainsFunc(sections, enough) {
			met = true
			cancel()
		}
	}
	require.NoError(t, <-ended)
	require.True(t, met, "what was waited for did not come")
}

func every(interval time.Duration) map[string]time.Duration {
	m := map[string]time.Duration{"pg_locks": time.Second}
	for _, name := range Families() {
		m[name] = interval
	}
	return m
}

func families(t *testing.T) *catalogue.Catalogue {
	t.Helper()
	cat, err := catalogue.Default()
	require.NoError(t, err)
	return cat
}

// rows returns a section's rows by column name.
func rows(t *testing.T, s batch.Section) []map[string][]byte {
	t.Helper()
	var all []map[string][]byte
	require.NoError(t, s.EachRow(func(_ int, fields [][]byte) error {
		r := map[string][]byte{}
		for i, c := range s.Columns {
			r[c.Name] = slices.Clone(fields[batch.LeadFields+i])
		}
		all = append(all, r)
		return nil
	}))
	return all
}

func integer(v []byte) int64 { return int64(binary.BigEndian.Uint64(v)) }
func float(v []byte) float64 { return math.Float64frombits(binary.BigEndian.Uint64(v)) }

func TestEveryHostFamilyIsReadWithTheCataloguesColumns(t *testing.T) {
	t.Parallel()
	cat := families(t)
	seen := map[string]bool{}
	read(t, 20*time.Millisecond, func(s batch.Section) bool {
		f, ok := cat.Family(s.Family)
		require.True(t, ok)
		require.Equal(t, "db1", s.Server)
		require.Equal(t, batch.ServerID(collector, "db1"), s.ServerID)
		require.Len(t, s.Columns, len(f.Columns))
		found := 0
		require.NoError(t, s.EachRow(func(_ int, fields [][]byte) error {
			found++
			require.Equal(t, s.ServerID[:], fields[1])
			for i, c := range f.Columns {
				require.Equal(t, batch.Column{Name: c.Name, Type: c.Type}, s.Columns[i])
				require.NotNil(t, fields[batch.LeadFields+i], "%s.%s", f.Name, c.Name)
				require.Empty(t, batch.ValueFault(c.Type, fields[batch.LeadFields+i]), "%s.%s", f.Name, c.Name)
			}
			return nil
		}))
		require.Equal(t, s.Rows, found)
		seen[s.Family] = true
		return len(seen) == len(Families())-missingDisks()
	})
}

// missingDisks is 1 where the kernel counts no block device's operations.
func missingDisks() int {
	if found, err := readDisks(context.Background()); err == nil && len(found) == 0 {
		return 1
	}
	return 0
}

func TestSharesOfTheProcessorsAddUpToAllOfTheTime(t *testing.T) {
	t.Parallel()
	read(t, 300*time.Millisecond, func(s batch.Section) bool {
		if s.Family != "host_cpu" {
			return false
		}
		sum := 0.0
		for name, v := range rows(t, s)[0] {
			if name != "cpus" {
				require.GreaterOrEqual(t, float(v), 0.0)
				sum += float(v)
			}
		}
		require.InDelta(t, 100, sum, 0.001)
		return true
	})
}

func TestSharesAreOfTheIntervalAndNotOfAllTime(t *testing.T) {
	t.Parallel()
	before := cpu.TimesStat{User: 1000, System: 500, Idle: 100_000, Iowait: 7}
	got, ok := shares(&before, &cpu.TimesStat{User: 1001, System: 501, Idle: 100_002, Iowait: 6})
	require.True(t, ok)
	require.Equal(t, []float64{25, 0, 25, 50, 0, 0, 0, 0}, got, "what went backwards counts as none")
	_, ok = shares(&before, &before)
	require.False(t, ok)
}

func TestMemoryIsWhatTheKernelSays(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("/proc/meminfo")
	require.NoError(t, err)
	kernel := func(name string) int64 {
		m := regexp.MustCompile(`(?m)^` + name + `:\s+(\d+) kB$`).FindSubmatch(data)
		require.NotNil(t, m, name)
		v, err := strconv.ParseInt(string(m[1]), 10, 64)
		require.NoError(t, err)
		return v << 10
	}
	read(t, 20*time.Millisecond, func(s batch.Section) bool {
		if s.Family != "host_memory" {
			return false
		}
		r := rows(t, s)[0]
		require.Equal(t, kernel("MemTotal"), integer(r["total_bytes"]))
		require.Equal(t, kernel("SwapTotal"), integer(r["swap_total_bytes"]))
		require.Equal(t, kernel("CommitLimit"), integer(r["commit_limit_bytes"]))
		require.InDelta(t, kernel("MemAvailable"), integer(r["available_bytes"]), float64(kernel("MemTotal"))/4)
		return true
	})
}

func TestTheRootsSpaceIsWhatItsFileSystemSays(t *testing.T) {
	t.Parallel()
	var root unix.Statfs_t
	require.NoError(t, unix.Statfs("/", &root))
	read(t, 20*time.Millisecond, func(s batch.Section) bool {
		if s.Family != "host_filesystem" {
			return false
		}
		seen := map[string]bool{}
		for _, r := range rows(t, s) {
			mount := string(r["mount"])
			require.False(t, seen[mount], "%s twice", mount)
			seen[mount] = true
			if mount == "/" {
				require.Equal(t, int64(root.Blocks)*root.Bsize, integer(r["total_bytes"]))
				require.Equal(t, int64(root.Files), integer(r["inodes_total"]))
			}
		}
		require.True(t, seen["/"])
		return true
	})
}

func TestPartitionsAndMemoryAreNoDisks(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"loop0", "ram0", "zram0", "sda1-that-is-not-there"} {
		require.False(t, wholeDevice(name), name)
	}
	entries, err := os.ReadDir("/sys/block")
	require.NoError(t, err)
	for _, e := range entries {
		memory := regexp.MustCompile(`^(loop|z?ram)\d+$`).MatchString(e.Name())
		require.Equal(t, !memory, wholeDevice(e.Name()), e.Name())
	}
}

// setup makes a reader of one family that reads as told.
func setup(t *testing.T, family string, r reading, upTo func() catalogue.Preset) (*Host, *Metrics, chan []batch.Section) {
	t.Helper()
	out, m := make(chan []batch.Section), NewMetrics(prometheus.NewRegistry())
	h := New(Config{CollectorID: collector, Name: "db1", Intervals: map[string]time.Duration{family: time.Millisecond}, UpTo: upTo},
		families(t), slog.New(slog.DiscardHandler), m, out)
	require.Len(t, h.tasks, 1)
	h.tasks[0].read = r
	return h, m, out
}

func TestAFamilyThatCannotBeReadIsCountedAndTriedAgain(t *testing.T) {
	t.Parallel()
	attempts := 0
	h, m, out := setup(t, "host_load", func(ctx context.Context) ([][]byte, error) {
		if attempts++; attempts < 3 {
			return nil, errors.New("no such file")
		}
		return readLoad(ctx)
	}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx); close(out) }()
	require.Len(t, <-out, 1)
	cancel()
	for range out { // until it has ended
	}
	require.NoError(t, <-ended)
	require.Equal(t, 2.0, testutil.ToFloat64(m.errors.WithLabelValues("host_load")))
}

func TestWhatIsNotWantedIsCountedAndNotRead(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	asked := 0
	h, m, _ := setup(t, "host_load", func(context.Context) ([][]byte, error) {
		return nil, errors.New("read although not wanted")
	}, func() catalogue.Preset {
		if asked++; asked == 3 {
			cancel()
		}
		return catalogue.Minimal
	})
	require.NoError(t, h.Run(ctx))
	require.GreaterOrEqual(t, testutil.ToFloat64(m.skipped.WithLabelValues("host_load")), 3.0)
	require.Zero(t, testutil.ToFloat64(m.errors.WithLabelValues("host_load")))
}

func TestATrialTellsWhatEveryFamilyGives(t *testing.T) {
	t.Parallel()
	h := New(Config{CollectorID: collector, Name: "db1", Intervals: every(time.Minute)}, families(t),
		slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry()), nil)
	for _, trial := range h.Try(t.Context()) {
		require.NoError(t, trial.Err, trial.Family)
		require.Equal(t, time.Minute, trial.Interval)
		if trial.Family == "host_memory" {
			require.Equal(t, 1, trial.Rows)
		}
	}
}
