package manual

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/catalogue"
)

// make generate runs the tests with -update.
var update = flag.Bool("update", false, "write docs/metrics.md and the table of presets in docs/collector.md")

// docs returns the file of a page.
func docs(name string) string { return filepath.Join("..", "..", "..", "docs", name) }

func requirePage(t *testing.T, name, page string) {
	t.Helper()
	if *update {
		require.NoError(t, os.WriteFile(docs(name), []byte(page), 0o600))
	}
	committed, err := os.ReadFile(docs(name))
	require.NoError(t, err)
	require.Equal(t, string(committed), page, "docs/%s is out of date: run make generate", name)
}

func TestThePageOfMetricsIsWhatTheCatalogueSays(t *testing.T) {
	t.Parallel()
	c, err := catalogue.Default()
	require.NoError(t, err)
	requirePage(t, "metrics.md", Metrics(c))
}

func TestTheTableOfPresetsIsWhatTheCatalogueSays(t *testing.T) {
	t.Parallel()
	c, err := catalogue.Default()
	require.NoError(t, err)
	const begin, end = "<!-- presets: written by make generate -->\n", "<!-- presets end -->\n"
	page, err := os.ReadFile(docs("collector.md"))
	require.NoError(t, err)
	before, rest, found := strings.Cut(string(page), begin)
	require.True(t, found)
	_, after, found := strings.Cut(rest, end)
	require.True(t, found)
	requirePage(t, "collector.md", before+begin+Presets(c)+end+after)
}

func TestEveryFamilyAndColumnIsOnThePage(t *testing.T) {
	t.Parallel()
	c, err := catalogue.Default()
	require.NoError(t, err)
	page := Metrics(c)
	for _, f := range c.Families() {
		_, part, found := strings.Cut(page, "\n### "+f.Name+"\n")
		require.True(t, found, f.Name)
		part, _, _ = strings.Cut(part, "\n#")
		for _, col := range f.Columns {
			require.Contains(t, part, "`"+col.Name+"`", f.Name)
		}
	}
}

func TestAFamilySaysWhatItNeedsAndWhatIsSent(t *testing.T) {
	t.Parallel()
	c, err := catalogue.Load(fstest.MapFS{"orders.yaml": {Data: []byte(`
name: orders
description: "Orders | per status."
scope: database
preset: exhaustive
requires: {extension: shop, function: pganalytics.orders}
setup: select 1
interval: 90s
retention: 36h
chunk: 1h
key: [status]
changed_by: [total]
columns:
  - {name: status, type: text}
  - {name: total, type: bigint, kind: counter, unit: orders, help: "Orders ever."}
  - {name: query, type: text, kind: info, query_text: true}
queries:
  - {min_version: 15, sql: select 1}
`)}})
	require.NoError(t, err)
	page := Metrics(c)
	for _, want := range []string{
		`Orders \| per status.`,
		"Once per database, every 90 s; kept for 36 h.",
		"only when one of `total` changed, with the row before, and at least hourly",
		"Needs PostgreSQL 15, extension `shop`, `collector setup-sql`.",
		"| **`status`** | text | label |  |  |",
		"| `total` | bigint | counter | orders | Orders ever. |",
		"Query text: as `query_text` says.",
		"| [orders](metrics.md#orders) |  |  | 90 s |",
	} {
		require.Contains(t, page, want)
	}
}
