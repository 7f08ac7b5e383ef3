package store

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/fault"
)

// copying is one COPY: sections of one family with the same columns.
type copying struct {
	family   *catalogue.Family
	columns  []batch.Column
	sections []*batch.Section
	rows     int
}

// arrange groups the sections of all items into as few COPYs as possible,
// ordered by family. Names come from the catalogue: Behind names what it does
// not hold.
func (s *Store) arrange(items []batch.Item) ([]*copying, error) {
	groups := map[string]*copying{}
	for i := range items {
		for j := range items[i].Sections {
			section := &items[i].Sections[j]
			k := groupKey(section)
			g, ok := groups[k]
			if !ok {
				var err error
				if g, err = s.check(section); err != nil {
					return nil, fmt.Errorf("batch %s: %w", items[i].ID, err)
				}
				groups[k] = g
			}
			g.sections = append(g.sections, section)
			g.rows += section.Rows
		}
	}
	keys := make([]string, 0, len(groups))
	for k := range groups {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	copies := make([]*copying, len(keys))
	for i, k := range keys {
		copies[i] = groups[k]
	}
	return copies, nil
}

// groupKey sorts by family first; a name never holds a zero byte.
func groupKey(s *batch.Section) string {
	k := make([]byte, 0, 256)
	k = append(append(k, s.Family...), 0)
	for _, c := range s.Columns {
		k = append(append(k, c.Name...), 0, byte(c.Type))
	}
	return string(k)
}

// check compares a section's columns with the catalogue's.
func (s *Store) check(section *batch.Section) (*copying, error) {
	family, ok := s.catalogue.Family(section.Family)
	if !ok {
		return nil, fault.Wrap(fault.Behind, fmt.Errorf("unknown family %q", section.Family))
	}
	seen := make(map[string]bool, len(section.Columns))
	for _, c := range section.Columns {
		i, ok := family.Column(c.Name)
		switch {
		case !ok:
			return nil, fault.Wrap(fault.Behind, fmt.Errorf("family %s: unknown column %q", family.Name, c.Name))
		case family.Columns[i].Type != c.Type:
			return nil, fault.Wrap(fault.Invalid, fmt.Errorf("family %s: column %s is %s, not %s", family.Name, c.Name, family.Columns[i].Type, c.Type))
		case seen[c.Name]:
			return nil, fault.Wrap(fault.Invalid, fmt.Errorf("family %s: column %s twice", family.Name, c.Name))
		}
		seen[c.Name] = true
	}
	return &copying{family: family, columns: section.Columns}, nil
}

func (c *copying) statement() string {
	var sql strings.Builder
	target := quote("metrics", c.family.Name)
	if c.family.Dimension {
		target = stage(c.family)
	}
	fmt.Fprintf(&sql, "copy %s (time, server_id", target)
	for _, column := range c.columns {
		sql.WriteString(", " + quote(column.Name))
	}
	sql.WriteString(") from stdin (format binary)")
	return sql.String()
}

// run copies the tuples as they are. What the database counted must be what
// the sections claim, for the ledger keeps the claims.
func (c *copying) run(ctx context.Context, ses session) error {
	// In the order of the index, as far as whole sections can be: that loads a
	// quarter faster than rows in any order.
	slices.SortStableFunc(c.sections, func(a, b *batch.Section) int {
		return cmp.Or(bytes.Compare(a.ServerID[:], b.ServerID[:]), b.MinTime.Compare(a.MinTime))
	})
	// net.Buffers fills each message to the brim from as many sections as it
	// takes; nothing is joined beforehand.
	stream := make(net.Buffers, 0, len(c.sections)+2)
	stream = append(stream, batch.CopyHeader)
	for _, s := range c.sections {
		stream = append(stream, s.Tuples)
	}
	stream = append(stream, batch.CopyTrailer)
	tag, err := ses.PgConn().CopyFrom(ctx, &stream, c.statement())
	if err != nil {
		return ses.failed(fmt.Sprintf("copy %d rows into %s", c.rows, c.family.Name), err)
	}
	if tag.RowsAffected() != int64(c.rows) {
		return fault.Wrap(fault.Invalid, fmt.Errorf("copy into %s: %d rows where the batches claim %d",
			c.family.Name, tag.RowsAffected(), c.rows))
	}
	return nil
}
