package store_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/fault"
	"pganalytics/pkg/store"
)

// loadThrough loads as an ingester does, again at once when it was Contended,
// and returns the outcomes.
func loadThrough(ctx context.Context, s *store.Store, items ...batch.Item) ([]batch.Outcome, error) {
	for {
		outcomes, err := s.Load(ctx, items)
		if err == nil || fault.ClassOf(err) != fault.Contended {
			return outcomes, err
		}
	}
}

// background is work that goes on meanwhile.
type background struct {
	t     *testing.T
	ctx   context.Context // ends with it, also when it fails
	end   context.CancelFunc
	group *errgroup.Group
	times atomic.Int64
}

// inBackground runs f in n goroutines, over and over.
func inBackground(t *testing.T, n int, f func(worker int) error) *background {
	t.Helper()
	b := &background{t: t}
	var ctx context.Context
	ctx, b.end = context.WithCancel(t.Context())
	b.group, b.ctx = errgroup.WithContext(ctx)
	for worker := range n {
		b.group.Go(func() error {
			for b.ctx.Err() == nil {
				if err := f(worker); err != nil {
					return err
				}
				b.times.Add(1)
			}
			return nil
		})
	}
	return b
}

// goesOn is false once it failed.
func (b *background) goesOn() bool { return b.ctx.Err() == nil }

// stop returns how often it ran.
func (b *background) stop() int {
	b.t.Helper()
	b.end()
	require.NoError(b.t, b.group.Wait())
	return int(b.times.Load())
}

// grown is the catalogue some releases later.
func grown(tb testing.TB, releases int) *catalogue.Catalogue {
	tb.Helper()
	wider, more := narrowYAML, []string{keyedYAML, textsYAML, instanceYAML}
	for n := range releases {
		wider += fmt.Sprintf("  - {name: w%d, type: bigint, kind: counter}\n", n)
		more = append(more, strings.Replace(narrowYAML, "name: narrow", fmt.Sprintf("name: extra%d", n), 1))
	}
	return families(tb, append(more, wider)...)
}

func TestGrowthUnderLoadFailsNoLoad(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	loading := inBackground(t, 8, func(worker int) error {
		_, err := loadThrough(t.Context(), f.store, item(c, now, narrow(c, fmt.Sprint("db", worker), now, 5), text(c, now, 1, "select 1")))
		return err
	})
	const releases = 4
	for n := 1; n <= releases && loading.goesOn(); n++ {
		var g errgroup.Group
		for _, cat := range []*catalogue.Catalogue{grown(t, n), grown(t, n), allFamilies(t), grown(t, n-1)} {
			g.Go(func() error { return store.EnsureSchema(t.Context(), f.url, cat) })
		}
		require.NoError(t, g.Wait())
		newest := section(c, "db1", "narrow", []batch.Column{column("v", catalogue.BigInt), column(fmt.Sprint("w", n-1), catalogue.BigInt)}, now,
			func(dst []byte) []byte { return batch.AppendInt64(batch.AppendInt64(dst, 1), 99) })
		extra := narrow(c, "db1", now, 1)
		extra.Family = fmt.Sprint("extra", n-1)
		outcomes, err := loadThrough(t.Context(), open(t, f.url, grown(t, n)).store, item(c, now, newest, extra))
		require.NoError(t, err)
		require.Equal(t, []batch.Outcome{batch.Stored}, outcomes)
	}
	loads := loading.stop()
	require.Equal(t, [2]int{loads + releases, 5*loads + releases}, f.counts())
	for n := range releases {
		require.Equal(t, 1, ask[int](f, fmt.Sprintf("select count(*) from metrics.narrow where w%d = 99", n)))
		require.Equal(t, 1, ask[int](f, fmt.Sprintf("select count(*) from metrics.extra%d", n)))
		require.True(t, ask[bool](f, fmt.Sprintf("select count(w%d) >= 0 from metrics.narrow_rates", n)))
	}
}

// A query of an hour must not stop the loads behind a column that waits for it.
func TestALongReaderHoldsUpTheGrowthAndNotTheLoads(t *testing.T) {
	t.Parallel()
	f := setup(t, func(cfg *store.Config) { cfg.LockTimeout = 5 * time.Second })
	c := uuid.New()
	f.load(item(c, now, narrow(c, "db1", now, 1)))
	reader := connect(t, f.url)
	_, err := reader.Exec(t.Context(), "begin; select * from metrics.narrow")
	require.NoError(t, err)
	done, wider := make(chan error, 1), grown(t, 1)
	go func() { done <- store.EnsureSchema(t.Context(), f.url, wider) }()
	require.Eventually(t, func() bool {
		return ask[bool](f, `select exists (select from pg_stat_activity where datname = current_database()
			and application_name = 'pganalytics-schema' and wait_event_type = 'Lock')`)
	}, eventually, tick)
	for range 3 {
		f.load(item(c, now, narrow(c, "db1", now, 1)))
	}
	require.Empty(t, done, "the reader is still there")
	_, err = reader.Exec(t.Context(), "rollback")
	require.NoError(t, err)
	require.NoError(t, <-done)
	require.Equal(t, [2]int{4, 4}, f.counts())
}

// A version that is rolled back finds more than it knows, and works with it.
func TestOlderVersionWorksOnTheTablesOfANewerOne(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	wider := families(t, strings.Replace(narrowYAML, "  - {name: v,", "  - {name: w, type: text, kind: label}\n  - {name: v,", 1), keyedYAML, instanceYAML,
		strings.Replace(textsYAML, "  - {name: query,", "  - {name: extra, type: text, kind: info}\n  - {name: query,", 1))
	f.load(item(c, now, text(c, now, 1, "select 1")))
	require.NoError(t, store.EnsureSchema(t.Context(), f.url, wider))
	newer := open(t, f.url, wider)
	extra := section(c, "db1", "texts", []batch.Column{column("queryid", catalogue.BigInt), column("query", catalogue.Text), column("extra", catalogue.Text)}, now,
		func(dst []byte) []byte {
			return batch.AppendText(batch.AppendText(batch.AppendInt64(dst, 1), "select 1"), "more")
		})
	newer.load(item(c, now, extra, text(c, now, 1, "select 1")))
	require.Equal(t, 2, ask[int](f, "select count(*) from metrics.texts"), "what the new column says is other content, its absence is not")

	forbidDDL(f)
	require.NoError(t, store.EnsureSchema(t.Context(), f.url, allFamilies(t)))
	f.exec("drop event trigger forbid")
	older := open(t, f.url, allFamilies(t))
	older.load(item(c, now, narrow(c, "db1", now, 3), text(c, now, 1, "select 1")))
	require.Equal(t, 2, ask[int](f, "select count(*) from metrics.texts"))
	require.Equal(t, 3, ask[int](f, "select count(*) from metrics.narrow where w is null"))
	_, err := older.store.Load(t.Context(), []batch.Item{item(c, now, extra)})
	require.Equal(t, fault.Behind, fault.ClassOf(err), "it waits for the newer version: %v", err)
	_, err = older.store.Maintain(t.Context(), now)
	require.NoError(t, err)
}
