// Package manual writes the parts of the documentation that come from the
// catalogue: the page of metrics and the table of presets. It says nothing
// that does not stand in the catalogue.
package manual

import (
	"fmt"
	"strings"
	"time"

	"pganalytics/pkg/catalogue"
)

var presets = []catalogue.Preset{catalogue.Minimal, catalogue.Standard, catalogue.Exhaustive}

const head = `# Metrics

<!-- Written by make generate from schemas/metrics. Do not edit. -->

Each family is a table in the schema ` + "`metrics`" + `, with the columns ` + "`time`" + ` (the collector's clock, just before the reading) and ` + "`server_id`" + ` before those listed here; how to query them is told in [reading.md](reading.md). A family belongs to the preset that it stands under and to all after it; [collector.md](collector.md) tells how to choose. Intervals are those of a collector that is not told otherwise.

Kinds: a *counter* only grows, until a reset, and has a rate in ` + "`metrics.<family>_rates`" + `; a *gauge* goes up and down; a *label* tells rows apart or groups them (in bold: the key of one row at one time); *info* describes.

`

// Metrics returns the page of all families, in Markdown.
func Metrics(c *catalogue.Catalogue) string {
	var b strings.Builder
	b.WriteString(head)
	b.WriteString(Presets(c))
	for _, p := range presets {
		fmt.Fprintf(&b, "\n## Preset %s\n", p)
		for _, f := range c.Families() {
			if f.Preset == p {
				family(&b, f)
			}
		}
	}
	return b.String()
}

// Presets returns the table of families by preset, in Markdown.
func Presets(c *catalogue.Catalogue) string {
	var b strings.Builder
	b.WriteString("| family | minimal | standard | exhaustive | needs |\n|---|---|---|---|---|\n")
	for _, p := range presets {
		for _, f := range c.Families() {
			if f.Preset != p {
				continue
			}
			fmt.Fprintf(&b, "| [%s](metrics.md#%s) |", f.Name, f.Name)
			for _, in := range presets {
				cell := ""
				if in >= p {
					cell = span(f.Interval)
				}
				fmt.Fprintf(&b, " %s |", cell)
			}
			fmt.Fprintf(&b, " %s |\n", strings.Join(needs(f), ", "))
		}
	}
	return b.String()
}

func family(b *strings.Builder, f *catalogue.Family) {
	fmt.Fprintf(b, "\n### %s\n\n%s\n\n", f.Name, escape(f.Description))
	fmt.Fprintf(b, "%s; kept for %s.", read(f), span(f.Retention))
	if f.Dimension {
		b.WriteString(" Contents are stored once by key.")
	}
	if len(f.ChangedBy) > 0 {
		fmt.Fprintf(b, " A row is sent only when one of %s changed%s.", code(f.ChangedBy), unless(f))
	}
	if n := needs(f); len(n) > 0 {
		fmt.Fprintf(b, " Needs %s.", strings.Join(n, ", "))
	}
	b.WriteString("\n\n| column | type | kind | unit | |\n|---|---|---|---|---|\n")
	keys := map[string]bool{}
	for _, name := range f.Key {
		keys[name] = true
	}
	for _, c := range f.Columns {
		name, help := "`"+c.Name+"`", escape(c.Help)
		if keys[c.Name] {
			name = "**" + name + "**"
		}
		if c.QueryText {
			help = strings.TrimSpace(help + " Query text: as `query_text` says.")
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s |\n", name, c.Type, c.Kind, c.Unit, help)
	}
}

// read says where and how often.
func read(f *catalogue.Family) string {
	where := "Once per server"
	if f.Scope == catalogue.Database {
		where = "Once per database"
	}
	return where + ", every " + span(f.Interval)
}

// unless tells of the rows that are sent although nothing changed.
func unless(f *catalogue.Family) string {
	if len(f.Counters()) > 0 {
		return ", with the row before, and at least hourly"
	}
	return ", and at least daily"
}

// needs lists what a server must be and have.
func needs(f *catalogue.Family) []string {
	var list []string
	if len(f.Queries) > 0 && f.Queries[0].MinVersion > catalogue.OldestServer {
		list = append(list, fmt.Sprintf("PostgreSQL %d", f.Queries[0].MinVersion))
	}
	if f.Requires.Extension != "" {
		list = append(list, "extension `"+f.Requires.Extension+"`")
	}
	if f.Setup != "" {
		list = append(list, "`collector setup-sql`")
	}
	return list
}

func code(names []string) string { return "`" + strings.Join(names, "`, `") + "`" }

// escape keeps a text within its cell.
func escape(s string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "\n", " ").Replace(strings.TrimSpace(s))
}

// span writes a duration as the catalogue's files do.
func span(d time.Duration) string {
	switch {
	case d >= 24*time.Hour && d%(24*time.Hour) == 0:
		return fmt.Sprintf("%d d", d/(24*time.Hour))
	case d >= time.Hour && d%time.Hour == 0:
		return fmt.Sprintf("%d h", d/time.Hour)
	case d >= time.Minute && d%time.Minute == 0 && d != time.Minute:
		return fmt.Sprintf("%d min", d/time.Minute)
	}
	return fmt.Sprintf("%d s", d/time.Second)
}
