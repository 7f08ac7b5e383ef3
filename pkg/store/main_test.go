package store_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/store"
)

func TestMain(m *testing.M) {
	if os.Getenv(freezeVariable) != "" {
		loadAndFreeze() // this is another process of a test
		return
	}
	goleak.VerifyTestMain(m)
}

// The families of these tests.
const (
	narrowYAML = `
name: narrow
description: One value, and a quote ' in its description.
scope: instance
interval: 60s
retention: 30d
chunk: 1d
columns:
  - {name: v, type: bigint, kind: counter, unit: things, help: A value.}
`
	keyedYAML = `
name: keyed
description: Rows with a key.
scope: instance
interval: 60s
retention: 10d
chunk: 1d
key: [name]
columns:
  - {name: name, type: text}
  - {name: v, type: double precision, kind: gauge}
`
	textsYAML = `
name: texts
description: Statement texts.
kind: dimension
scope: instance
interval: 60s
retention: 30d
key: [queryid]
columns:
  - {name: queryid, type: bigint}
  - {name: query, type: text, kind: info}
`
	instanceYAML = `
name: pg_instance
description: What a server is.
scope: instance
interval: 60s
retention: 30d
chunk: 1d
columns:
  - {name: version_num, type: integer, kind: gauge}
  - {name: in_recovery, type: boolean, kind: gauge}
  - {name: system_identifier, type: text, kind: info}
`
)

func families(tb testing.TB, yaml ...string) *catalogue.Catalogue {
	tb.Helper()
	cat, err := catalogue.Load(catalogueFiles(yaml...))
	require.NoError(tb, err)
	return cat
}

func catalogueFiles(yaml ...string) fstest.MapFS {
	files := fstest.MapFS{}
	for i, text := range yaml {
		files[fmt.Sprintf("%d.yaml", i)] = &fstest.MapFile{Data: []byte(text)}
	}
	return files
}

func allFamilies(tb testing.TB) *catalogue.Catalogue {
	tb.Helper()
	return families(tb, narrowYAML, keyedYAML, textsYAML, instanceYAML)
}

// fixture is a migrated database, a store on it and a session beside it.
type fixture struct {
	testing.TB
	url   string
	store *store.Store
	reg   *prometheus.Registry
	conn  *pgx.Conn
}

func setup(tb testing.TB, change ...func(*store.Config)) *fixture {
	tb.Helper()
	url := testdb.Empty(tb)
	migrate(tb, url, allFamilies(tb))
	return open(tb, url, allFamilies(tb), change...)
}

func migrate(tb testing.TB, url string, cat *catalogue.Catalogue) {
	tb.Helper()
	require.NoError(tb, store.Migrate(tb.Context(), url))
	require.NoError(tb, store.EnsureSchema(tb.Context(), url, cat))
}

func open(tb testing.TB, url string, cat *catalogue.Catalogue, change ...func(*store.Config)) *fixture {
	tb.Helper()
	f := &fixture{TB: tb, url: url, reg: prometheus.NewRegistry(), conn: connect(tb, url)}
	cfg := store.Config{URL: url, MaxConns: 10}
	for _, c := range change {
		c(&cfg)
	}
	var err error
	f.store, err = store.Open(tb.Context(), cfg, cat, slog.New(slog.DiscardHandler), f.reg)
	require.NoError(tb, err)
	tb.Cleanup(f.store.Close)
	return f
}

func connect(tb testing.TB, url string) *pgx.Conn {
	tb.Helper()
	conn, err := pgx.Connect(tb.Context(), url)
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// load loads items that must all get through.
func (f *fixture) load(items ...batch.Item) []batch.Outcome {
	f.Helper()
	outcomes, err := f.store.Load(f.Context(), items)
	require.NoError(f, err)
	require.Len(f, outcomes, len(items))
	return outcomes
}

// ask returns the single value of a query.
func ask[T any](f *fixture, query string, args ...any) T {
	f.Helper()
	var v T
	require.NoError(f, f.conn.QueryRow(f.Context(), query, args...).Scan(&v))
	return v
}

func (f *fixture) exec(sql string, args ...any) {
	f.Helper()
	_, err := f.conn.Exec(f.Context(), sql, args...)
	require.NoError(f, err)
}

// counts returns the rows in the ledger and in metrics.narrow.
func (f *fixture) counts() [2]int {
	f.Helper()
	return [2]int{ask[int](f, "select count(*) from ingest.batch"), ask[int](f, "select count(*) from metrics.narrow")}
}

// now is the time of the tests' batches, as exact as the database.
var now = time.Now().UTC().Truncate(time.Microsecond)

// column of a section.
func column(name string, typ catalogue.Type) batch.Column { return batch.Column{Name: name, Type: typ} }

// section of rows, each of which is appended by its function.
func section(collector uuid.UUID, server, family string, columns []batch.Column, at time.Time, rows ...func([]byte) []byte) batch.Section {
	s := batch.Section{
		Family: family, Server: server, ServerID: batch.ServerID(collector, server), Columns: columns,
		Rows: len(rows), MinTime: at, MaxTime: at,
	}
	for i, row := range rows {
		s.MaxTime = at.Add(time.Duration(i) * time.Millisecond)
		s.Tuples = row(batch.AppendTuple(s.Tuples, batch.LeadFields+len(columns), s.MaxTime, s.ServerID))
	}
	return s
}

// narrow is a section of n rows of the family narrow.
func narrow(collector uuid.UUID, server string, at time.Time, n int) batch.Section {
	rows := make([]func([]byte) []byte, n)
	for i := range rows {
		rows[i] = func(dst []byte) []byte { return batch.AppendInt64(dst, int64(i)) }
	}
	return section(collector, server, "narrow", []batch.Column{column("v", catalogue.BigInt)}, at, rows...)
}

// text is a section of one row of the dimension texts.
func text(collector uuid.UUID, at time.Time, queryid int64, query string) batch.Section {
	return section(collector, "db1", "texts",
		[]batch.Column{column("queryid", catalogue.BigInt), column("query", catalogue.Text)}, at,
		func(dst []byte) []byte { return batch.AppendText(batch.AppendInt64(dst, queryid), query) })
}

// item is a sealed batch as the stream would hand it out.
func item(collector uuid.UUID, sentAt time.Time, sections ...batch.Section) batch.Item {
	b := &batch.Batch{
		CollectorID: collector, ID: uuid.Must(uuid.NewV7()), SentAt: sentAt, ReceivedAt: sentAt,
		Labels: []batch.Label{{Name: "env", Value: "test"}}, Sections: sections,
	}
	b.Seal()
	return batch.Item{Batch: b, Position: batch.Position{Sequence: 7, Incarnation: "first"}}
}

// untilBlocked returns a context that ends when a session of the store waits
// for a lock.
func untilBlocked(f *fixture) (context.Context, context.CancelFunc) {
	f.Helper()
	ctx, cancel := context.WithCancel(f.Context())
	watcher := connect(f, f.url)
	go func() {
		defer cancel()
		for ctx.Err() == nil {
			var blocked bool
			err := watcher.QueryRow(ctx, `select exists (select from pg_stat_activity
				where datname = current_database() and application_name = 'pganalytics-store' and wait_event_type = 'Lock')`).Scan(&blocked)
			if err != nil || blocked {
				return
			}
		}
	}()
	return ctx, cancel
}
