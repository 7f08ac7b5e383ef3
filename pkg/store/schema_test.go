package store_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/fault"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/store"
)

func TestManyMayMigrateAtOnce(t *testing.T) {
	t.Parallel()
	url := testdb.Empty(t)
	conn := connect(t, url)
	_, err := conn.Exec(t.Context(), "drop extension timescaledb")
	require.NoError(t, err)
	var g errgroup.Group
	for range 8 {
		g.Go(func() error {
			if err := store.Migrate(t.Context(), url); err != nil {
				return err
			}
			return store.EnsureSchema(t.Context(), url, allFamilies(t))
		})
	}
	require.NoError(t, g.Wait())
	f := open(t, url, allFamilies(t))
	c := uuid.New()
	require.Equal(t, []batch.Outcome{batch.Stored}, f.load(item(c, now, narrow(c, "db1", now, 1), text(c, now, 1, "select 1"))))
}

func TestNewerDatabaseIsLeftAlone(t *testing.T) {
	t.Parallel()
	f := setup(t)
	f.exec("insert into ingest.migration (version_id, is_applied) values (999, true)")
	require.NoError(t, store.Migrate(t.Context(), f.url))
}

func TestTablesAreWhatTheCatalogueSays(t *testing.T) {
	t.Parallel()
	f := setup(t)
	require.Equal(t, "1 day", ask[string](f, "select time_interval::text from timescaledb_information.dimensions where hypertable_schema = 'metrics' and hypertable_name = 'narrow'"))
	require.Equal(t, []string{"CREATE INDEX narrow_server_id_time_idx ON metrics.narrow USING btree (server_id, \"time\" DESC)"},
		ask[[]string](f, "select array_agg(indexdef) from pg_indexes where schemaname = 'metrics' and tablename = 'narrow'"), "and no unique one")
	require.Equal(t, []string{"time timestamp with time zone NO", "server_id uuid NO", "name text NO", "v double precision YES"},
		ask[[]string](f, `select array_agg(column_name || ' ' || data_type || ' ' || is_nullable order by ordinal_position)
			from information_schema.columns where table_schema = 'metrics' and table_name = 'keyed'`))
	require.Equal(t, "A value. [things]", ask[string](f, "select col_description('metrics.narrow'::regclass, 3)"))
	require.Equal(t, "One value, and a quote ' in its description.", ask[string](f, "select obj_description('metrics.narrow'::regclass)"))
	require.Equal(t, "PRIMARY KEY (server_id, queryid, content_hash)",
		ask[string](f, "select pg_get_constraintdef(oid) from pg_constraint where conrelid = 'metrics.texts'::regclass and contype = 'p'"))
}

func TestUnchangedSchemaNeedsNoStatementThatChangesIt(t *testing.T) {
	t.Parallel()
	f := setup(t)
	forbidDDL(f)
	require.NoError(t, store.EnsureSchema(t.Context(), f.url, allFamilies(t)))
	err := store.EnsureSchema(t.Context(), f.url, families(t, strings.Replace(narrowYAML, "narrow", "another", 1)))
	require.ErrorContains(t, err, "another", "or the trigger proves nothing")
}

func TestColumnIsAddedWhileBatchesAreLoaded(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	f.load(item(c, now, narrow(c, "db1", now, 1)))

	ctx, stop := context.WithCancel(t.Context())
	var g errgroup.Group
	loaded := 0
	g.Go(func() error {
		for ; ctx.Err() == nil; loaded++ {
			if _, err := f.store.Load(t.Context(), []batch.Item{item(c, now, narrow(c, "db1", now, 5))}); err != nil {
				return err
			}
		}
		return nil
	})
	wider := families(t, narrowYAML+"  - {name: w, type: bigint, kind: gauge, help: New.}\n",
		strings.Replace(textsYAML, "  - {name: query,", "  - {name: extra, type: text, kind: info}\n  - {name: query,", 1))
	for range 8 { // all at once, as when a fleet is restarted
		g.Go(func() error { return store.EnsureSchema(t.Context(), f.url, wider) })
	}
	require.Eventually(t, func() bool {
		return ask[bool](f, "select count(*) = 2 from information_schema.columns where table_schema = 'metrics' and column_name in ('w', 'extra')")
	}, eventually, tick)
	newer := open(t, f.url, wider)
	s := section(c, "db1", "narrow", []batch.Column{column("v", catalogue.BigInt), column("w", catalogue.BigInt)}, now,
		func(dst []byte) []byte { return batch.AppendInt64(batch.AppendInt64(dst, 1), 99) })
	newer.load(item(c, now, s, text(c, now, 1, "select 1")))
	f.load(item(c, now, narrow(c, "db1", now, 1), text(c, now, 1, "select 1")))
	stop()
	require.NoError(t, g.Wait())
	require.Equal(t, 1, ask[int](f, "select count(*) from metrics.narrow where w = 99"))
	require.Equal(t, 3+5*loaded, ask[int](f, "select count(*) from metrics.narrow"))
	require.Equal(t, 1, ask[int](f, "select count(*) from metrics.texts"), "a column that is null does not change the hash")
	require.Equal(t, "New.", ask[string](f, "select col_description('metrics.narrow'::regclass, 4)"))
}

func TestChunkIntervalFollowsTheCatalogue(t *testing.T) {
	t.Parallel()
	f := setup(t)
	require.NoError(t, store.EnsureSchema(t.Context(), f.url, families(t, strings.Replace(narrowYAML, "chunk: 1d", "chunk: 6h", 1))))
	require.Equal(t, "06:00:00", ask[string](f, "select time_interval::text from timescaledb_information.dimensions where hypertable_name = 'narrow'"))
}

func TestContradictionsAreAllNamedAndNothingIsChanged(t *testing.T) {
	t.Parallel()
	f := setup(t)
	f.exec("create table metrics.plain (time timestamptz)")
	err := store.EnsureSchema(t.Context(), f.url, families(t,
		strings.Replace(narrowYAML, "bigint", "integer", 1),
		strings.Replace(keyedYAML, "columns:", "columns:\n  - {name: added, type: text, kind: info}", 1),
		strings.Replace(strings.Replace(textsYAML, "[queryid]", "[queryid, db]", 1), "columns:", "columns:\n  - {name: db, type: text}", 1),
		strings.NewReplacer("scope:", "kind: dimension\nscope:", "chunk: 1d", "key: [system_identifier]", ", kind: info", "").Replace(instanceYAML),
		strings.Replace(narrowYAML, "name: narrow", "name: plain", 1)))
	require.ErrorContains(t, err, "family narrow: column v is bigint in the database and integer in the catalogue")
	require.ErrorContains(t, err, "family texts: column db cannot join the key")
	require.ErrorContains(t, err, "family pg_instance: metrics.pg_instance exists and is not a table of this kind")
	require.ErrorContains(t, err, "family plain:")
	require.NotContains(t, err.Error(), "keyed")
	require.Equal(t, 0, ask[int](f, "select count(*) from information_schema.columns where column_name = 'added'"))
}

func TestBuiltInFamiliesCanBeLoaded(t *testing.T) {
	t.Parallel()
	cat, err := catalogue.Default()
	require.NoError(t, err)
	f := open(t, testdb.New(t), cat)
	c := uuid.New()
	it := item(c, now)
	for _, family := range cat.Families() {
		var columns []batch.Column
		for _, c := range family.Columns {
			columns = append(columns, column(c.Name, c.Type))
		}
		it.Sections = append(it.Sections, section(c, "db1", family.Name, columns, now, func(dst []byte) []byte {
			for _, c := range family.Columns {
				dst = appendSome(dst, c.Type)
			}
			return dst
		}))
	}
	it.Seal()
	require.Equal(t, []batch.Outcome{batch.Stored}, f.load(it))
	sum, err := f.store.Summary(t.Context())
	require.NoError(t, err)
	require.Len(t, sum.Families, len(cat.Families()))
	for _, family := range sum.Families {
		require.Equal(t, int64(1), family.Rows, family.Name)
	}
	require.Equal(t, 1, ask[int](f, "select version from metrics.server"), "what a server is comes from pg_instance")
	for _, family := range cat.Families() {
		if len(family.Counters()) > 0 {
			require.Equal(t, 1, ask[int](f, "select count(*) from metrics."+family.Name+"_rates"), family.Name)
			require.Equal(t, 1, ask[int](f, "select count(*) from metrics."+family.Name+"_rates('-infinity')"), family.Name)
		}
	}
}

// appendSome appends a value of the type.
func appendSome(dst []byte, t catalogue.Type) []byte {
	switch t {
	case catalogue.Boolean:
		return batch.AppendBool(dst, true)
	case catalogue.SmallInt:
		return batch.AppendInt16(dst, 1)
	case catalogue.Integer:
		return batch.AppendInt32(dst, 1)
	case catalogue.BigInt:
		return batch.AppendInt64(dst, 1)
	case catalogue.Real:
		return batch.AppendFloat32(dst, 1)
	case catalogue.DoublePrecision:
		return batch.AppendFloat64(dst, 1)
	case catalogue.UUID:
		return batch.AppendUUID(dst, uuid.Nil)
	case catalogue.TimestampTZ:
		return batch.AppendTime(dst, now)
	default:
		return batch.AppendText(dst, "1")
	}
}

// A database restored from before a family or a column was added.
func TestWhatARestoredDatabaseLacksIsMadeByTheNextLoads(t *testing.T) {
	t.Parallel()
	f := setup(t)
	c := uuid.New()
	f.exec("drop table metrics.narrow cascade; alter table metrics.texts drop column query")
	it := item(c, now, narrow(c, "db1", now, 3), text(c, now, 1, "select 1"))
	require.Eventually(t, func() bool {
		outcomes, err := f.store.Load(t.Context(), []batch.Item{it})
		if err != nil {
			require.Equal(t, fault.Behind, fault.ClassOf(err))
			return false
		}
		return outcomes[0] == batch.Stored
	}, 20*time.Second, 10*time.Millisecond)
	require.Equal(t, [2]int{1, 3}, f.counts())
}
