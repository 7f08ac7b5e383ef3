package store

import (
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"pganalytics/pkg/catalogue"
)

// change is what one family's table or its rates need, as statements of one transaction.
type change struct{ family, sql string }

// quote returns a family's table or a column as an SQL identifier.
func quote(parts ...string) string { return pgx.Identifier(parts).Sanitize() }

// literal returns s as an SQL string whatever standard_conforming_strings is.
func literal(s string) string {
	return "E'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\x00", "").Replace(s) + "'"
}

func interval(d time.Duration) string {
	return fmt.Sprintf("interval '%d seconds'", int64(d.Seconds()))
}

// create returns the statements that make the family's table.
func create(f *catalogue.Family) change {
	name := quote("metrics", f.Name)
	var sql strings.Builder
	if f.Dimension {
		fmt.Fprintf(&sql, "create table %s (server_id uuid not null", name)
	} else {
		fmt.Fprintf(&sql, "create table %s (time timestamptz not null, server_id uuid not null", name)
	}
	for _, c := range f.Columns {
		fmt.Fprintf(&sql, ", %s %s", quote(c.Name), c.Type)
		if c.NotNull {
			sql.WriteString(" not null")
		}
	}
	if f.Dimension {
		fmt.Fprintf(&sql, ", content_hash bytea not null, first_seen timestamptz not null, last_seen timestamptz not null, primary key (%s));\n",
			strings.Join(dimensionKey(f), ", "))
	} else {
		// No unique key, no foreign key, no trigger: each costs COPY its fast
		// path. The ledger keeps rows from coming twice.
		sql.WriteString(");\n")
		fmt.Fprintf(&sql, "select create_hypertable(%s, by_range('time', %s), create_default_indexes => false);\n", literal(name), interval(f.Chunk))
		fmt.Fprintf(&sql, "create index on %s (server_id, time desc);\n", name)
	}
	if f.Description != "" {
		fmt.Fprintf(&sql, "comment on table %s is %s;\n", name, literal(f.Description))
	}
	comment(&sql, name, f.Columns)
	return change{f.Name, sql.String()}
}

// extend returns the statements that bring an existing table to the
// catalogue's columns and chunks; false means that none are needed. New
// columns may be null: the rows before them have nothing else.
func extend(f *catalogue.Family, t relation) (change, bool) {
	name := quote("metrics", f.Name)
	var sql strings.Builder
	var added []catalogue.Column
	for _, c := range f.Columns {
		if _, exists := t.columns[c.Name]; !exists {
			added = append(added, c)
		}
	}
	for i, c := range added {
		if i == 0 {
			fmt.Fprintf(&sql, "alter table %s", name)
		} else {
			sql.WriteString(",")
		}
		fmt.Fprintf(&sql, " add column if not exists %s %s", quote(c.Name), c.Type)
	}
	if len(added) > 0 {
		sql.WriteString(";\n")
	}
	comment(&sql, name, added)
	if !f.Dimension && t.chunk != f.Chunk { // of chunks to come
		fmt.Fprintf(&sql, "select set_chunk_time_interval(%s, %s);\n", literal(name), interval(f.Chunk))
	}
	return change{f.Name, sql.String()}, sql.Len() > 0
}

func comment(sql *strings.Builder, name string, columns []catalogue.Column) {
	for _, c := range columns {
		text := c.Help
		if c.Unit != "" {
			text = strings.TrimSpace(text + " [" + c.Unit + "]")
		}
		if text != "" {
			fmt.Fprintf(sql, "comment on column %s.%s is %s;\n", name, quote(c.Name), literal(text))
		}
	}
}

// dimensionKey returns the quoted columns of a dimension's primary key.
func dimensionKey(f *catalogue.Family) []string {
	key := []string{"server_id"}
	for _, k := range f.Key {
		key = append(key, quote(k))
	}
	return append(key, "content_hash")
}
