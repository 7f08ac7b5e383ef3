package store_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/store"
)

const quickly = 300 * time.Millisecond

func waitQuickly(cfg *store.Config) { cfg.KeyTimeout, cfg.LockTimeout = quickly, eventually }

// hold enters the items in a transaction that it leaves open.
func (f *fixture) hold(items ...batch.Item) pgx.Tx {
	f.Helper()
	tx, err := connect(f, f.url).Begin(f.Context())
	require.NoError(f, err)
	for _, it := range items {
		_, err = tx.Exec(f.Context(), `insert into ingest.batch (sent_at, collector_id, batch_id, stream_seq, stream_incarnation, digest, row_count, sections)
			values ($1, $2, $3, 1, '', $4, 0, '[]')`, it.SentAt, it.CollectorID, it.ID, it.Digest[:])
		require.NoError(f, err)
	}
	return tx
}

func TestBatchesThatNobodyHoldsAreStoredWithoutTheOthers(t *testing.T) {
	t.Parallel()
	for name, held := range map[string][]int{
		"none": {}, "the first": {0}, "the last": {40}, "one": {17}, "a few": {3, 4, 20, 39}, "all but one": slices.Concat(to(0, 30), to(31, 41)), "all": to(0, 41),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := setup(t, waitQuickly)
			c := uuid.New()
			items := make([]batch.Item, 41)
			for i := range items {
				items[i] = item(c, now.Add(time.Duration(i)*time.Microsecond), narrow(c, "db1", now, 1))
			}
			known := item(c, now.Add(20*time.Microsecond), narrow(c, "db1", now, 1))
			f.load(known) // and the chunk is there
			var blocked []batch.Item
			want := slices.Repeat([]batch.Outcome{batch.Stored}, len(items))
			for _, i := range held {
				blocked = append(blocked, items[i])
				want[i] = batch.Contested
			}
			tx := f.hold(blocked...)
			start := time.Now()
			require.Equal(t, append(want, batch.AlreadyStored), f.load(slices.Concat(items, []batch.Item{known})...))
			require.Less(t, time.Since(start), eventually, "it does not wait as long as for other locks")
			require.Equal(t, [2]int{1 + len(items) - len(held), 1 + len(items) - len(held)}, f.counts())
			require.NoError(t, tx.Rollback(t.Context()))
			for i := range want {
				want[i] = batch.AlreadyStored
			}
			for _, i := range held {
				want[i] = batch.Stored
			}
			require.Equal(t, want, f.load(items...))
		})
	}
}

func to(from, end int) (list []int) {
	for i := from; i < end; i++ {
		list = append(list, i)
	}
	return list
}

func TestBatchThatIsHeldForAMomentIsWaitedFor(t *testing.T) {
	t.Parallel()
	f := setup(t, func(cfg *store.Config) { cfg.KeyTimeout = eventually })
	it := item(uuid.New(), now)
	f.load(item(uuid.New(), now))
	tx := f.hold(it)
	blocked, cancel := untilBlocked(f)
	defer cancel()
	outcomes := make(chan []batch.Outcome, 1)
	go func() {
		got, err := f.store.Load(t.Context(), []batch.Item{it})
		if err != nil {
			t.Error(err)
		}
		outcomes <- got
	}()
	<-blocked.Done()
	require.NoError(t, tx.Commit(t.Context()))
	require.Equal(t, []batch.Outcome{batch.AlreadyStored}, <-outcomes)
}

// The statements after the ledger wait for their locks as ever.
func TestContestedLoadWaitsForTablesAsLongAsOthersDo(t *testing.T) {
	t.Parallel()
	f := setup(t, waitQuickly)
	c := uuid.New()
	held, free := item(c, now, narrow(c, "db1", now, 1)), item(c, now, narrow(c, "db1", now, 1))
	f.load(item(c, now, narrow(c, "db1", now, 1)))
	f.hold(held)
	f.exec("begin; lock table metrics.narrow in access exclusive mode")
	start := time.Now()
	outcomes := make(chan []batch.Outcome, 1)
	go func() {
		got, err := f.store.Load(t.Context(), []batch.Item{held, free})
		if err != nil {
			t.Error(err)
		}
		outcomes <- got
	}()
	watcher := connect(t, f.url)
	require.Eventually(t, func() bool {
		var blocked bool
		require.NoError(t, watcher.QueryRow(t.Context(), `select exists (select from pg_stat_activity where datname = current_database()
			and application_name = 'pganalytics-store' and wait_event = 'relation' and clock_timestamp() - query_start > $1)`, quickly).Scan(&blocked))
		return blocked
	}, eventually, tick)
	require.Greater(t, time.Since(start), 2*quickly)
	f.exec("rollback")
	require.Equal(t, []batch.Outcome{batch.Contested, batch.Stored}, <-outcomes)
}

// A frozen process: this binary again, stopped in the middle of a COPY.
const (
	freezeVariable = "STORE_TEST_FREEZE"
	freezeRows     = 1_000_000
)

type freeze struct {
	URL       string
	Collector uuid.UUID
	SentAt    time.Time
}

// items of the frozen load: the last is so large that it can be stopped in the
// middle.
func (z freeze) items() []batch.Item {
	items := make([]batch.Item, 20)
	for i := range items {
		items[i] = item(z.Collector, z.SentAt.Add(time.Duration(i)*time.Microsecond), narrow(z.Collector, "db1", z.SentAt, 1))
		items[i].ID = uuid.NewSHA1(z.Collector, []byte{byte(i)})
		items[i].Seal()
	}
	return items
}

func loadAndFreeze() {
	var z freeze
	err := json.Unmarshal([]byte(os.Getenv(freezeVariable)), &z)
	if err == nil {
		err = z.load()
	}
	fmt.Println(err) // it is ended, or its load is
}

func (z freeze) load() error {
	cat, err := catalogue.Load(catalogueFiles(narrowYAML, keyedYAML, textsYAML, instanceYAML))
	if err != nil {
		return err
	}
	s, err := store.Open(context.Background(), store.Config{URL: z.URL}, cat, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		return err
	}
	defer s.Close()
	rows := narrow(z.Collector, "db1", z.SentAt, 1)
	rows.Tuples, rows.Rows = bytes.Repeat(rows.Tuples, freezeRows), freezeRows
	large := item(z.Collector, z.SentAt, rows)
	_, err = s.Load(context.Background(), append(z.items(), large))
	return err
}

func TestFrozenLoaderIsEndedAndItsBatchesAreStored(t *testing.T) {
	t.Parallel()
	f := setup(t, waitQuickly)
	z := freeze{URL: f.url, Collector: uuid.New(), SentAt: now}
	f.load(item(z.Collector, now, narrow(z.Collector, "db1", now, 1)))
	config, err := json.Marshal(z)
	require.NoError(t, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), freezeVariable+"="+string(config))
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })

	copying := func(wait string) func() bool {
		return func() bool {
			return ask[bool](f, `select exists (select from pg_stat_activity where datname = current_database()
				and query like 'copy %' and state = 'active' and coalesce(wait_event, '') like $1)`, wait)
		}
	}
	require.Eventually(t, copying("%"), eventually, time.Millisecond)
	require.NoError(t, cmd.Process.Signal(syscall.SIGSTOP))
	require.Eventually(t, copying("ClientRead"), eventually, tick, "it waits for the next rows")

	free := item(z.Collector, now, narrow(z.Collector, "db1", now, 1))
	outcomes := f.load(append(z.items(), free)...)
	require.Equal(t, append(slices.Repeat([]batch.Outcome{batch.Contested}, 20), batch.Stored), outcomes, "younger than a frozen one")
	impatient := open(t, f.url, allFamilies(t), waitQuickly, func(cfg *store.Config) { cfg.FrozenAfter = quickly })
	require.Eventually(t, func() bool { outcomes = impatient.load(z.items()...); return outcomes[0] != batch.Contested }, eventually, tick)
	require.Equal(t, slices.Repeat([]batch.Outcome{batch.Stored}, 20), outcomes)
	require.Equal(t, [2]int{22, 22}, f.counts())
	require.InDelta(t, 1, counter(t, impatient.reg, "pganalytics_store_frozen_loaders_ended_total"), 0)

	require.NoError(t, cmd.Process.Signal(syscall.SIGCONT))
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, line, "unavailable", "it is told, or finds its connection closed")
	require.Equal(t, [2]int{22, 22}, f.counts(), "and stores nothing twice")
}

// Others that hold a batch are none of our business.
func TestSessionThatIsNoLoaderIsNotEnded(t *testing.T) {
	t.Parallel()
	f := setup(t, waitQuickly, func(cfg *store.Config) { cfg.FrozenAfter = time.Millisecond })
	it := item(uuid.New(), now)
	f.load(item(uuid.New(), now))
	tx := f.hold(it)
	require.Equal(t, []batch.Outcome{batch.Contested}, f.load(it))
	require.NoError(t, tx.Commit(t.Context()))
}

func counter(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	n, err := testutil.GatherAndCount(reg, name)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, family := range families {
		if family.GetName() == name {
			return family.Metric[0].GetCounter().GetValue()
		}
	}
	return -1
}
