package catalogue_test

import (
	_ "embed"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/catalogue"
)

// byOtherMeans are read from the host, not from a server.
var byOtherMeans = []string{"host_cpu", "host_disk", "host_filesystem", "host_load", "host_memory", "pg_log_summary"}

func TestEveryBuiltInFamilyIsSoundAndExplained(t *testing.T) {
	t.Parallel()
	c, err := catalogue.Default()
	require.NoError(t, err)
	names := []string{}
	for _, f := range c.Families() {
		names = append(names, f.Name)
		requireSound(t, f)
		require.Equal(t, slices.Contains(byOtherMeans, f.Name), len(f.Queries) == 0, f.Name)
		require.Regexp(t, `\.$`, f.Description, f.Name)
		for _, col := range f.Columns {
			require.Regexp(t, `^[A-Z].*\.$`, col.Help, "%s.%s", f.Name, col.Name)
			unitless := col.Kind == catalogue.Label || col.Kind == catalogue.Info || col.Type == catalogue.Boolean
			require.Equal(t, unitless, col.Unit == "", "%s.%s", f.Name, col.Name)
		}
	}
	require.Equal(t, []string{"host_cpu", "host_disk", "host_filesystem", "host_load", "host_memory", "pg_bloat_estimate",
		"pg_blocking", "pg_extensions", "pg_instance", "pg_locks", "pg_log_summary", "pg_long_running", "pg_progress",
		"pg_replication_slots", "pg_sequences", "pg_settings", "pg_standby", "pg_stat_activity_summary", "pg_stat_archiver",
		"pg_stat_bgwriter", "pg_stat_checkpointer", "pg_stat_database", "pg_stat_io", "pg_stat_replication", "pg_stat_slru",
		"pg_stat_statements", "pg_stat_statements_text", "pg_stat_user_indexes", "pg_stat_user_tables", "pg_stat_wal",
		"pg_wal_dir", "pg_wraparound"}, names)
}

// A family that disappears with a version, or appears before it can, is a slip.
func TestEverySupportedVersionHasEveryFamilyThatItsViewsAllow(t *testing.T) {
	t.Parallel()
	since := map[string]int{"pg_stat_wal": 14, "pg_stat_io": 16}
	c, err := catalogue.Default()
	require.NoError(t, err)
	for _, f := range c.Families() {
		if slices.Contains(byOtherMeans, f.Name) {
			continue
		}
		for major := catalogue.OldestServer; major <= catalogue.NewestServer; major++ {
			_, ok := f.Query(major)
			require.Equal(t, major >= since[f.Name], ok, "%s on %d", f.Name, major)
		}
	}
}

var (
	literals  = regexp.MustCompile(`'[^']*'`)
	relations = regexp.MustCompile(`\b(?:from|join)\s+([a-z_][a-z0-9_.]*)(\s*\()?`)
	calls     = regexp.MustCompile(`([a-z_][a-z0-9_.]*)\(`)
	ctes      = regexp.MustCompile(`(?:with|,)\s+([a-z_]+) as (?:materialized )?\(`)
)

// An unqualified name could mean what somebody put into a schema of the search
// path, run with the rights of the monitoring role.
func TestQueriesNameTheSchemaOfAllButTheExtension(t *testing.T) {
	t.Parallel()
	extension := []string{"pg_stat_statements", "pg_stat_statements_info"}
	grammar := []string{"coalesce", "greatest", "least", "lateral", "nullif", "extract", "bit"} // no functions that a schema could hold
	for f, q := range everyQuery(t) {
		sql := literals.ReplaceAllString(q.Keys+"\n"+q.SQL, "''")
		own := slices.Concat(extension, grammar)
		for _, m := range ctes.FindAllStringSubmatch(sql, -1) {
			own = append(own, m[1])
		}
		for _, m := range slices.Concat(relations.FindAllStringSubmatch(sql, -1), calls.FindAllStringSubmatch(sql, -1)) {
			ok := strings.HasPrefix(m[1], "pg_catalog.") || m[1] == f.Requires.Function || slices.Contains(own, m[1])
			require.True(t, ok, "%s from %d: %s has no schema", f.Name, q.MinVersion, m[1])
		}
	}
}

//go:embed testdata/views.txt
var viewsText string

// views returns the columns of each view in one version.
func views(t *testing.T, major int) map[string]map[string]bool {
	t.Helper()
	all := map[string]map[string]bool{}
	for line := range strings.Lines(viewsText) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		words := strings.Fields(line)
		var first, last int
		_, err := fmt.Sscanf(words[1], "%d-%d", &first, &last)
		require.NoError(t, err, line)
		if major < first || major > last {
			continue
		}
		if all[words[0]] == nil {
			all[words[0]] = map[string]bool{}
		}
		for _, column := range words[2:] {
			all[words[0]][column] = true
		}
	}
	return all
}

var (
	aliases = regexp.MustCompile(`\b(?:from|join)\s+(?:pg_catalog\.)?([a-z_]+)(?:\((?:true|false)?\))? ([a-z]+)\b`)
	columns = regexp.MustCompile(`\b([a-z]+)\.([a-z_]+)\b`)
)

func TestQueriesReadOnlyColumnsThatTheVersionsViewsHave(t *testing.T) {
	t.Parallel()
	checked := map[string]bool{}
	for f, query := range everyQuery(t) {
		for major := query.MinVersion; major <= catalogue.NewestServer; major++ {
			if q, _ := f.Query(major); q != query {
				break
			}
			documented := views(t, major)
			relation := map[string]string{}
			for _, m := range aliases.FindAllStringSubmatch(query.SQL, -1) {
				if relation[m[2]] == "" {
					relation[m[2]] = m[1]
				}
			}
			for _, m := range columns.FindAllStringSubmatch(query.SQL, -1) {
				view := relation[m[1]]
				if documented[view] == nil {
					continue // a catalogue table or a part of the query
				}
				checked[view] = true
				require.True(t, documented[view][m[2]], "%s on %d: %s has no column %s", f.Name, major, view, m[2])
			}
		}
	}
	require.Equal(t, []string{"pg_locks", "pg_prepared_xacts", "pg_replication_slots", "pg_stat_activity",
		"pg_stat_archiver", "pg_stat_bgwriter", "pg_stat_checkpointer", "pg_stat_database", "pg_stat_database_conflicts",
		"pg_stat_io", "pg_stat_progress_analyze", "pg_stat_progress_basebackup", "pg_stat_progress_cluster",
		"pg_stat_progress_copy", "pg_stat_progress_create_index", "pg_stat_progress_repack", "pg_stat_progress_vacuum",
		"pg_stat_replication", "pg_stat_replication_slots", "pg_stat_slru", "pg_stat_statements", "pg_stat_statements_info",
		"pg_stat_user_indexes", "pg_stat_user_tables", "pg_stat_wal", "pg_stat_wal_receiver", "pg_statio_user_indexes",
		"pg_statio_user_tables"}, slices.Sorted(maps.Keys(checked)))
}

// everyQuery yields each query with its family.
func everyQuery(t *testing.T) func(yield func(*catalogue.Family, catalogue.Query) bool) {
	t.Helper()
	c, err := catalogue.Default()
	require.NoError(t, err)
	return func(yield func(*catalogue.Family, catalogue.Query) bool) {
		for _, f := range c.Families() {
			for _, q := range f.Queries {
				if !yield(f, q) {
					return
				}
			}
		}
	}
}
