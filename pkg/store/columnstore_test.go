package store_test

import (
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/store"
)

func edition(f *fixture) string {
	f.Helper()
	return ask[string](f, "select current_setting('timescaledb.license')")
}

const policies = "select count(*) from timescaledb_information.jobs where config ? 'compress_after'"

// Of the columnstore, the Apache edition can prove this much: all names and
// arguments are known to it, and only the license is in the way.
func TestApacheEditionIsNotAskedForTheColumnstore(t *testing.T) {
	t.Parallel()
	f := setup(t)
	if edition(f) != "apache" {
		t.Skip("this server runs the community edition")
	}
	m, err := f.store.Maintain(t.Context(), now)
	require.NoError(t, err)
	require.Empty(t, m.Columnstore)
	require.Equal(t, 0, ask[int](f, policies))
	for _, name := range []string{"narrow", "keyed"} {
		family, ok := allFamilies(t).Family(name)
		require.True(t, ok)
		for _, statement := range store.ColumnstoreStatements(family) {
			_, err := f.conn.Exec(t.Context(), statement)
			require.ErrorContains(t, err, `under the current "apache" license`, statement)
			require.Equal(t, "0A000", store.SQLState(err), statement)
		}
	}
}

// The Debian packages that tests install are the Apache edition, so this one
// runs only where TEST_DATABASE_URL names a server of the community edition.
// It was written from TimescaleDB's documentation and has not been run.
func TestCommunityEditionCompressesWhatNoReplayReaches(t *testing.T) {
	t.Parallel()
	url := testdb.Empty(t)
	cat := families(t, busyYAML, narrowYAML, textsYAML, keyedYAML)
	migrate(t, url, cat)
	f := open(t, url, cat)
	if edition(f) != "timescale" {
		t.Skip("needs the community edition of TimescaleDB, and the test server runs the Apache edition")
	}
	after := func(family string) string {
		return ask[string](f, "select config->>'compress_after' from timescaledb_information.jobs where config ? 'compress_after' and hypertable_schema = 'metrics' and hypertable_name = $1", family)
	}
	m, err := f.store.Maintain(t.Context(), now)
	require.NoError(t, err)
	require.Equal(t, []string{"busy", "keyed", "narrow"}, m.Columnstore)
	require.Equal(t, "96:00:00", after("narrow"), "the replay window and a day")
	require.Equal(t, 3, ask[int](f, policies), "the ledger has none")
	require.False(t, ask[bool](f, "select compression_enabled from timescaledb_information.hypertables where hypertable_schema = 'ingest'"))
	require.Equal(t, []string{"server_id", "db", "time"}, ask[[]string](f, `select array_agg(attname::text order by segmentby_column_index, orderby_column_index)
		from timescaledb_information.compression_settings where hypertable_name = 'busy'`))
	m, err = f.store.Maintain(t.Context(), now)
	require.NoError(t, err)
	require.Empty(t, m.Columnstore, "it is as it should be")

	c := uuid.New()
	old := now.Add(-20 * day)
	f.load(item(c, now, narrow(c, "db1", old, 5), narrow(c, "db1", now, 5)))
	f.exec("call run_job((select job_id from timescaledb_information.jobs where config ? 'compress_after' and hypertable_name = 'narrow'))")
	require.Equal(t, 1, ask[int](f, "select count(*) from timescaledb_information.chunks where hypertable_name = 'narrow' and is_compressed"))
	wider := families(t, busyYAML, textsYAML, keyedYAML, narrowYAML+"  - {name: w, type: bigint, kind: gauge}\n")
	require.NoError(t, store.EnsureSchema(t.Context(), url, wider))
	it := item(c, now, narrow(c, "db1", old, 3))
	require.Equal(t, []batch.Outcome{batch.Stored}, f.load(it), "a replay into a compressed chunk")
	require.Equal(t, []batch.Outcome{batch.AlreadyStored}, f.load(it))
	require.Equal(t, 13, ask[int](f, "select count(*) from metrics.narrow"))

	longer := open(t, url, cat, func(cfg *store.Config) { cfg.ReplayWindow = 7 * day })
	m, err = longer.store.Maintain(t.Context(), now)
	require.NoError(t, err)
	require.Equal(t, []string{"busy", "keyed", "narrow"}, m.Columnstore)
	require.Equal(t, "192:00:00", after("narrow"))

	shorter := families(t, busyYAML, textsYAML, keyedYAML, strings.Replace(narrowYAML, "retention: 30d", "retention: 10d", 1))
	m, err = open(t, url, shorter).store.Maintain(t.Context(), now)
	require.NoError(t, err)
	require.Equal(t, 1, m.Chunks["narrow"], "a compressed chunk goes like any other")
	require.Equal(t, 5, ask[int](f, "select count(*) from metrics.narrow"))
}
