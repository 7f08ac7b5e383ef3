package store

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
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

func (c *copying) statement(target string) string {
	var sql strings.Builder
	fmt.Fprintf(&sql, "copy %s (time, server_id", target)
	for _, column := range c.columns {
		sql.WriteString(", " + quote(column.Name))
	}
	sql.WriteString(") from stdin (format binary)")
	return sql.String()
}

// run copies the tuples to where rows of the family are loaded.
func (c *copying) run(ctx context.Context, ses session) error {
	if c.family.Dimension {
		return c.into(ctx, ses, stage(c.family))
	}
	return c.into(ctx, ses, quote("metrics", c.family.Name))
}

// into copies the tuples as they are. What the database counted must be what
// the sections claim, for the ledger keeps the claims.
func (c *copying) into(ctx context.Context, ses session, target string) error {
	// In the order of the index, as far as whole sections can be: with 200
	// servers in a load that costs the database 8 % less than any order.
	slices.SortStableFunc(c.sections, func(a, b *batch.Section) int {
		return cmp.Or(bytes.Compare(a.ServerID[:], b.ServerID[:]), b.MinTime.Compare(a.MinTime))
	})
	stream := &tuples{sections: c.sections, rest: batch.CopyHeader}
	tag, err := ses.PgConn().CopyFrom(ctx, stream, c.statement(target))
	if err != nil {
		if !ses.IsClosed() && stream.err != nil { // else it may still be read
			err = stream.err
		}
		return ses.failed(fmt.Sprintf("copy %d rows", c.rows), &familyError{c.family.Name, err})
	}
	if tag.RowsAffected() != int64(c.rows) {
		return fault.Wrap(fault.Invalid, fmt.Errorf("copy into %s: %d rows where the batches claim %d",
			c.family.Name, tag.RowsAffected(), c.rows))
	}
	return nil
}

// familyError names the family whose rows could not be stored, for whoever
// wants to go on without them.
type familyError struct {
	family string
	err    error
}

func (e *familyError) Error() string  { return "into " + e.family + ": " + e.err.Error() }
func (e *familyError) Unwrap() error  { return e.err }
func (e *familyError) Family() string { return e.family }

// tuples is the stream of a COPY. It fills each message to the brim from as
// many sections as that takes, and expands a packed one when it is its turn:
// so a load has one section in memory in full, and what turns out to be stored
// already is never expanded.
type tuples struct {
	sections []*batch.Section // still to come
	rest     []byte           // of what is being read
	room     []byte           // of the section that was expanded last
	ended    bool             // rest is the trailer
	err      error            // of a damaged section
}

func (t *tuples) Read(p []byte) (n int, err error) {
	for n < len(p) {
		if len(t.rest) == 0 {
			if err := t.next(); err != nil {
				return n, err
			}
		}
		taken := copy(p[n:], t.rest)
		t.rest = t.rest[taken:]
		n += taken
	}
	return n, nil
}

func (t *tuples) next() error {
	switch {
	case t.err != nil:
	case len(t.sections) > 0:
		if t.rest, t.err = t.sections[0].Expanded(t.room); t.sections[0].Tuples == nil {
			t.room = t.rest
		}
		t.sections = t.sections[1:]
	case !t.ended:
		t.rest, t.ended = batch.CopyTrailer, true
	default:
		return io.EOF
	}
	return t.err
}
