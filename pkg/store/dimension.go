package store

import (
	"fmt"
	"slices"
	"strings"

	"pganalytics/pkg/catalogue"
)

// stage is the temporary table that takes a load's rows of a dimension. Its
// name is no relation's of PostgreSQL: a temporary table hides those.
func stage(f *catalogue.Family) string { return quote("pg_temp", "load_"+f.Name) }

// stageTables returns the statements that make the stages of a new session.
// Their columns are those of the tuples, time and server_id in front.
func stageTables(cat *catalogue.Catalogue) string {
	var sql strings.Builder
	for _, f := range cat.Families() {
		if !f.Dimension {
			continue
		}
		fmt.Fprintf(&sql, "create table %s (time timestamptz not null, server_id uuid not null", stage(f))
		for _, c := range f.Columns {
			fmt.Fprintf(&sql, ", %s %s", quote(c.Name), c.Type)
			if c.NotNull {
				sql.WriteString(" not null")
			}
		}
		sql.WriteString(") on commit delete rows;\n")
	}
	return sql.String()
}

// settleStatement returns the statement that moves staged rows of a dimension
// into its table. Content is immutable. A known one is left alone unless its
// last_seen moves forward by an hour or more, so that repeating it costs a
// look-up and no lock. Rows go in the order of the key, the same in every
// session: two loads may wait for one another, but never in a circle.
func settleStatement(f *catalogue.Family) string {
	var content []string
	for _, c := range f.Columns {
		if !slices.Contains(f.Key, c.Name) {
			content = append(content, quote(c.Name))
		}
	}
	key := dimensionKey(f)
	var named []string // what is not content, as names in an array
	for _, k := range append([]string{"time", "server_id"}, f.Key...) {
		named = append(named, literal(k))
	}
	// Nulls are left out of what is hashed, so that a column added later does
	// not give content without it another hash.
	return fmt.Sprintf(`
insert into %[1]s as t (%[2]s, first_seen, last_seen)
select distinct on (%[3]s) %[2]s, n.first_seen, n.last_seen
from (select h.*, min(h.time) over same as first_seen, max(h.time) over same as last_seen
      from (select s.*, sha256(convert_to(jsonb_strip_nulls(to_jsonb(s) - array[%[4]s])::text, 'UTF8')) as content_hash
            from %[5]s s) h
      window same as (partition by %[3]s)) n
where not exists (select from %[1]s o where (%[6]s) = (%[7]s) and n.last_seen < o.last_seen + interval '1 hour')
order by %[3]s
on conflict (%[3]s) do update set last_seen = excluded.last_seen
where excluded.last_seen >= t.last_seen + interval '1 hour'`,
		quote("metrics", f.Name),
		strings.Join(slices.Concat(key, content), ", "),
		strings.Join(key, ", "),
		strings.Join(named, ", "),
		stage(f),
		qualified("o", key), qualified("n", key))
}

func qualified(alias string, columns []string) string {
	return alias + "." + strings.Join(columns, ", "+alias+".")
}
