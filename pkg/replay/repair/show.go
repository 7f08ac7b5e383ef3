package repair

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
)

// Shown is a letter with what is in it, as far as it can be read.
type Shown struct {
	batch.FiledLetter
	Batch    *batch.Batch // nil when the envelope cannot be opened
	Sections []ShownSection
	Faults   []Fault // what was found wrong, at most maxFaults
}

// ShownSection is a section with the values of its first rows.
type ShownSection struct {
	Family, Server string
	ServerID       uuid.UUID
	Columns        []string
	Rows           int
	Values         [][]*string // of the rows that are shown, by column; nil is NULL
}

// Fault is what is wrong with a letter. Section and Row count from 0; -1 means
// that it is not in one.
type Fault struct {
	Section int    `json:"section"`
	Row     int    `json:"row"`
	Column  string `json:"column"`
	Why     string `json:"why"`
}

const (
	// maxFaults bounds what is reported: a column that is wrong is wrong in
	// every row.
	maxFaults = 100
	// maxKeyBytes of an index entry, beyond which PostgreSQL refuses a row.
	maxKeyBytes = 2_000
)

// Show reads a letter, with the values of at most maxRows rows a section. All
// rows are searched for faults.
func (b *Bench) Show(ctx context.Context, id string, maxRows int) (Shown, error) {
	l, err := b.Letters.Get(ctx, id)
	if err != nil {
		return Shown{}, err
	}
	s := Shown{FiledLetter: l}
	found, err := batch.Unmarshal(l.Payload)
	if err != nil {
		s.fault(-1, -1, "", err.Error())
		return s, nil
	}
	s.Batch = found
	expanded, err := found.Expand()
	if err != nil {
		s.fault(-1, -1, "", err.Error())
		return s, nil
	}
	s.Batch = expanded
	if !expanded.Intact() {
		s.fault(-1, -1, "", "the digest is not that of the content")
	}
	for i := range expanded.Sections {
		s.section(i, &expanded.Sections[i], b.Catalogue, maxRows)
	}
	return s, nil
}

func (s *Shown) fault(section, row int, column, why string) {
	if len(s.Faults) < maxFaults {
		s.Faults = append(s.Faults, Fault{section, row, column, why})
	}
}

// field is what is known of a column of the tuples.
type field struct {
	batch.Column
	notNull, key bool
}

func (s *Shown) section(i int, section *batch.Section, cat *catalogue.Catalogue, maxRows int) {
	shown := ShownSection{Family: section.Family, Server: section.Server, ServerID: section.ServerID, Rows: section.Rows}
	fields := s.fields(i, section, cat)
	for _, f := range fields {
		shown.Columns = append(shown.Columns, f.Name)
	}
	err := section.EachRow(func(row int, values [][]byte) error {
		for c, v := range values {
			if why := fields[c].fault(v); why != "" {
				s.fault(i, row, fields[c].Name, why)
			}
		}
		s.leads(i, row, section, values)
		if row < maxRows {
			shown.Values = append(shown.Values, texts(fields, values))
		}
		if len(s.Faults) == maxFaults && row >= maxRows {
			return errEnough
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		s.fault(i, -1, "", err.Error())
	}
	s.Sections = append(s.Sections, shown)
}

var errEnough = errors.New("enough faults")

// fields returns what the tuples consist of, and reports what the catalogue
// does not know.
func (s *Shown) fields(i int, section *batch.Section, cat *catalogue.Catalogue) []field {
	fields := []field{
		{Column: batch.Column{Name: "time", Type: catalogue.TimestampTZ}, notNull: true},
		{Column: batch.Column{Name: "server_id", Type: catalogue.UUID}, notNull: true},
	}
	family, known := cat.Family(section.Family)
	if !known {
		s.fault(i, -1, "", fmt.Sprintf("family %q is unknown here", section.Family))
	}
	for _, c := range section.Columns {
		f := field{Column: c}
		if known {
			switch at, there := family.Column(c.Name); {
			case !there:
				s.fault(i, -1, c.Name, "is unknown to the family here")
			case family.Columns[at].Type != c.Type:
				s.fault(i, -1, c.Name, fmt.Sprintf("is %s here, not %s", family.Columns[at].Type, c.Type))
			default:
				f.notNull = family.Columns[at].NotNull
				f.key = slices.Contains(family.Key, c.Name)
			}
		}
		fields = append(fields, f)
	}
	return fields
}

// fault tells why the database refuses the value.
func (f field) fault(v []byte) string {
	switch {
	case v == nil && f.notNull:
		return "is NULL and must not be"
	case v == nil:
		return ""
	case f.key && len(v) > maxKeyBytes:
		return fmt.Sprintf("has %d bytes, a key at most %d", len(v), maxKeyBytes)
	}
	return batch.ValueFault(f.Type, v)
}

// leads compares the leading fields with what the section says of its rows.
func (s *Shown) leads(i, row int, section *batch.Section, values [][]byte) {
	if id := values[1]; len(id) == len(section.ServerID) && !bytes.Equal(id, section.ServerID[:]) {
		s.fault(i, row, "server_id", "is not that of the section")
	}
	at := values[0]
	if at == nil || batch.ValueFault(catalogue.TimestampTZ, at) != "" {
		return
	}
	if t, err := time.Parse(time.RFC3339Nano, batch.ValueText(catalogue.TimestampTZ, at)); err != nil || t.Before(section.MinTime) || t.After(section.MaxTime) {
		s.fault(i, row, "time", "lies outside of what the section says")
	}
}

func texts(fields []field, values [][]byte) []*string {
	row := make([]*string, len(values))
	for i, v := range values {
		if v != nil {
			text := batch.ValueText(fields[i].Type, v)
			row[i] = &text
		}
	}
	return row
}
