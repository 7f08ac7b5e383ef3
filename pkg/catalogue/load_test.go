package catalogue_test

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/catalogue"
	"pganalytics/schemas"
)

var update = flag.Bool("update", false, "write the golden files anew")

const minimal = `name: minimal
description: The least that a family needs.
scope: instance
interval: 60s
retention: 30d
chunk: 1d
columns:
  - {name: n, type: bigint, kind: gauge}
`

func files(pairs ...string) fs.FS {
	m := fstest.MapFS{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = &fstest.MapFile{Data: []byte(pairs[i+1])}
	}
	return m
}

func TestEveryFaultOfEveryFileIsReportedAtOnceWithItsLine(t *testing.T) {
	t.Parallel()
	const golden = "testdata/faulty.golden"
	c, err := catalogue.Load(os.DirFS("testdata/faulty"))
	require.Nil(t, c)
	require.Error(t, err)
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(err.Error()+"\n"), 0o644))
	}
	want, err2 := os.ReadFile(golden)
	require.NoError(t, err2)
	require.Equal(t, string(want), err.Error()+"\n")
}

func TestAFamilySaysHowItIsRead(t *testing.T) {
	t.Parallel()
	c, err := catalogue.Load(files("texts.yaml", `name: texts
description: Texts by their id.
kind: dimension
scope: database
preset: exhaustive
requires: {extension: pg_stat_statements, function: monitor.texts}
setup: create function monitor.texts() returns void language sql as ''
interval: 60s
retention: 30d
key: [id]
columns:
  - {name: id, type: bigint}
  - {name: query, type: text, kind: info, query_text: true}
queries:
  - {min_version: 13, keys: "select id from t limit $1", sql: "select id, query from t where id = any($1)"}
`), files("minimal.yaml", minimal))
	require.NoError(t, err)
	f, _ := c.Family("texts")
	require.Equal(t, catalogue.Exhaustive, f.Preset)
	require.Equal(t, catalogue.Requires{Extension: "pg_stat_statements", Function: "monitor.texts"}, f.Requires)
	require.Equal(t, "create function monitor.texts() returns void language sql as ''", f.Setup)
	require.True(t, f.Columns[1].QueryText)
	require.Equal(t, "select id from t limit $1", f.Queries[0].Keys)
	f, _ = c.Family("minimal")
	require.Equal(t, catalogue.Standard, f.Preset, "a family belongs to the standard preset unless it says otherwise")
}

func TestAFamilyOfALaterFileSystemNeverReplacesABuiltInOne(t *testing.T) {
	t.Parallel()
	own := strings.Replace(minimal, "minimal", "pg_locks", 1)
	_, err := catalogue.Load(schemas.Metrics, files("own.yaml", own))
	require.EqualError(t, err, "own.yaml:1: family pg_locks is already defined in metrics/pg_locks.yaml:1")

	c, err := catalogue.Load(schemas.Metrics, files("own.yaml", minimal))
	require.NoError(t, err)
	_, ok := c.Family("minimal")
	require.True(t, ok)
}

func TestAMissingDirectoryIsAFault(t *testing.T) {
	t.Parallel()
	_, err := catalogue.Load(os.DirFS("testdata/no such directory"))
	require.ErrorContains(t, err, "no such file or directory")
}

func TestAFamilyHasAtMost800Columns(t *testing.T) {
	t.Parallel()
	columns := func(n int) string {
		s := minimal
		for i := 1; i < n; i++ {
			s += fmt.Sprintf("  - {name: n%d, type: bigint, kind: gauge}\n", i)
		}
		return s
	}
	_, err := catalogue.Load(files("wide.yaml", columns(800)))
	require.NoError(t, err)
	_, err = catalogue.Load(files("wide.yaml", columns(801)))
	require.EqualError(t, err, "wide.yaml:8: 801 columns, a family has at most 800")
}

func TestLoadReadsEveryPartOfAFamily(t *testing.T) {
	t.Parallel()
	c, err := catalogue.Load(files("metrics/tables.yaml", `name: tables
description: Tables.
scope: database
interval: 5m
retention: 90d
chunk: 12h
key: [datname, relname]
changed_by: [n_tup_ins]
columns:
  - {name: datname, type: text}
  - {name: relname, type: text, kind: label, help: Its name.}
  - {name: n_tup_ins, type: bigint, kind: counter, unit: rows, help: Rows inserted.}
queries:
  - {min_version: 13, sql: " select 1 "}
  - {min_version: 18, sql: select 2}
`, "texts.yaml", `name: a_text
description: Texts.
kind: dimension
scope: instance
interval: 60s
retention: 90d
key: [id]
columns: [{name: id, type: uuid}, {name: body, type: text, kind: info}]
`))
	require.NoError(t, err)
	require.Len(t, c.Families(), 2)

	text := c.Families()[0] // sorted by name
	require.Equal(t, "a_text", text.Name)
	require.True(t, text.Dimension)
	require.Zero(t, text.Chunk)
	require.Empty(t, text.Queries)

	f, ok := c.Family("tables")
	require.True(t, ok)
	require.Equal(t, "Tables.", f.Description)
	require.False(t, f.Dimension)
	require.Equal(t, catalogue.Database, f.Scope)
	require.Equal(t, 5*time.Minute, f.Interval)
	require.Equal(t, 90*24*time.Hour, f.Retention)
	require.Equal(t, 12*time.Hour, f.Chunk)
	require.Equal(t, []string{"datname", "relname"}, f.Key)
	require.Equal(t, []string{"n_tup_ins"}, f.ChangedBy)
	require.Equal(t, []catalogue.Column{
		{Name: "datname", Type: catalogue.Text, Kind: catalogue.Label, NotNull: true},
		{Name: "relname", Type: catalogue.Text, Kind: catalogue.Label, Help: "Its name.", NotNull: true},
		{Name: "n_tup_ins", Type: catalogue.BigInt, Kind: catalogue.Counter, Unit: "rows", Help: "Rows inserted."},
	}, f.Columns)

	i, ok := f.Column("n_tup_ins")
	require.True(t, ok)
	require.Equal(t, 2, i)
	_, ok = f.Column("time")
	require.False(t, ok)

	for major, want := range map[int]string{13: "select 1", 17: "select 1", 18: "select 2", 19: "select 2", 25: "select 2"} {
		q, ok := f.Query(major)
		require.True(t, ok)
		require.Equal(t, want, q.SQL, "version %d", major)
	}
	_, ok = f.Query(12)
	require.False(t, ok)
}

// FuzzLoad promises that no file makes Load panic and that whatever it accepts
// can become a table.
func FuzzLoad(f *testing.F) {
	f.Add([]byte(minimal))
	for _, dir := range []fs.FS{schemas.Metrics, os.DirFS("testdata/faulty")} {
		require.NoError(f, fs.WalkDir(dir, ".", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := fs.ReadFile(dir, path)
			f.Add(data)
			return err
		}))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := catalogue.Load(files("fuzz.yaml", string(data)))
		if err != nil {
			require.Nil(t, c)
			for _, line := range strings.Split(err.Error(), "\n") {
				require.Regexp(t, `^fuzz\.yaml:[1-9][0-9]*: .`, line)
			}
			return
		}
		require.Len(t, c.Families(), 1)
		requireSound(t, c.Families()[0])
	})
}

// requireSound checks what store, decoders and collector take for granted.
func requireSound(t *testing.T, f *catalogue.Family) {
	t.Helper()
	const identifier = `^[a-z_][a-z0-9_]{0,62}$`
	require.Regexp(t, identifier, f.Name+"_rates")
	require.NotContains(t, []string{"server", "samples", "series"}, f.Name)
	require.NotEmpty(t, f.Description)
	require.Contains(t, []catalogue.Scope{catalogue.Instance, catalogue.Database}, f.Scope)
	require.Positive(t, f.Interval)
	require.GreaterOrEqual(t, f.Retention, f.Interval)
	require.GreaterOrEqual(t, f.Retention, f.Chunk)
	require.Equal(t, f.Dimension, f.Chunk <= 0)
	if f.Dimension {
		require.NotEmpty(t, f.Key)
		require.Empty(t, f.ChangedBy)
	}
	require.NotEmpty(t, f.Columns)
	require.LessOrEqual(t, len(f.Columns), 800)
	for i, c := range f.Columns {
		require.Regexp(t, identifier, c.Name)
		require.NotContains(t, []string{"time", "server_id"}, c.Name)
		require.True(t, f.Dimension || c.Name != "seconds")
		require.True(t, c.Type.Valid())
		require.Contains(t, []catalogue.Kind{catalogue.Counter, catalogue.Gauge, catalogue.Label, catalogue.Info}, c.Kind)
		require.Equal(t, slices.Contains(f.Key, c.Name), c.NotNull)
		at, ok := f.Column(c.Name) // and so no name stands twice
		require.True(t, ok)
		require.Equal(t, i, at)
	}
	for _, name := range slices.Concat(f.Key, f.ChangedBy) {
		_, ok := f.Column(name)
		require.True(t, ok, name)
	}
	last := 0
	for _, q := range f.Queries {
		require.Greater(t, q.MinVersion, last)
		require.GreaterOrEqual(t, q.MinVersion, catalogue.OldestServer)
		require.LessOrEqual(t, q.MinVersion, catalogue.NewestServer)
		require.NotEmpty(t, q.SQL)
		last = q.MinVersion
	}
}
