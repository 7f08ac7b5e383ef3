// Package policy holds what is chosen of the catalogue: which families are
// read, how often, up to how many rows, and from which databases. The same
// vocabulary stands in a collector's own file and in the document that it
// pulls. It can say neither where to connect nor what to run: whoever can
// write a pulled document chooses from the catalogue and nothing else.
package policy

import (
	"slices"
	"time"

	"pganalytics/pkg/catalogue"
)

// The limits of what a policy may say.
const (
	// MinInterval keeps a typing slip from reading a server without a pause.
	MinInterval = time.Second

	// MaxInterval is a week. What is longer is meant to be off, and says so.
	MaxInterval = 7 * 24 * time.Hour

	// MaxRows is the most rows of one reading. What a policy does not limit is
	// limited to DefaultMaxRows.
	MaxRows        = 50_000
	DefaultMaxRows = 2_000
)

// Policy is one layer of choices. The zero value chooses nothing, so that the
// layer below decides.
type Policy struct {
	Preset    catalogue.Preset   // 0: not said
	Families  map[string]Setting // by family
	Databases Databases
}

// Setting is what a policy says of one family. The zero value is `on`: read as
// the catalogue says, whatever the layers below say.
type Setting struct {
	Off      bool
	Interval time.Duration // 0: not said
	MaxRows  int           // 0: not said
}

// Databases chooses those that families of scope database are read from, by
// patterns as of path.Match. A nil list is not said; an empty Include is all.
type Databases struct {
	Include, Exclude []string
}

// Reading is how a family is read that is on.
type Reading struct {
	Interval time.Duration
	MaxRows  int
}

// Merge lays policies over each other, the strongest first. Presets and lists
// of databases are replaced as a whole, families one by one: a setting of an
// interval or of a limit alone leaves the other as it is below.
func Merge(layers ...Policy) Policy {
	merged := Policy{Families: map[string]Setting{}}
	for _, lower := range slices.Backward(layers) {
		merged = lower.over(merged)
	}
	return merged
}

// over lays p over lower and changes lower's families.
func (p Policy) over(lower Policy) Policy {
	if p.Preset != 0 {
		lower.Preset = p.Preset
	}
	if p.Databases.Include != nil {
		lower.Databases.Include = p.Databases.Include
	}
	if p.Databases.Exclude != nil {
		lower.Databases.Exclude = p.Databases.Exclude
	}
	for family, s := range p.Families {
		lower.Families[family] = s.over(lower.Families[family])
	}
	return lower
}

func (s Setting) over(lower Setting) Setting {
	if s.Off || s == (Setting{}) {
		return s
	}
	if s.Interval == 0 {
		s.Interval = lower.Interval
	}
	if s.MaxRows == 0 {
		s.MaxRows = lower.MaxRows
	}
	return s
}

// Resolve returns the families that are on, and how each is read: those that
// the policy names, and of the others those of the preset. Without a preset
// that is catalogue.Standard. Families that the catalogue does not have are
// left out; see Unknown.
func (p Policy) Resolve(cat *catalogue.Catalogue) map[string]Reading {
	preset := p.Preset
	if preset == 0 {
		preset = catalogue.Standard
	}
	readings := map[string]Reading{}
	for _, f := range cat.Families() {
		s, named := p.Families[f.Name]
		if s.Off || !named && f.Preset > preset {
			continue
		}
		r := Reading{Interval: s.Interval, MaxRows: s.MaxRows}
		if r.Interval == 0 {
			r.Interval = f.Interval
		}
		if r.MaxRows == 0 {
			r.MaxRows = DefaultMaxRows
		}
		readings[f.Name] = r
	}
	return readings
}

// Document is the form that collectors pull: a policy for all servers of a
// collector, and others for single ones by their local names.
type Document struct {
	Policy
	Servers map[string]Policy
}

// Unknown returns the sorted names of families that the document has and the
// catalogue has not.
func (d Document) Unknown(cat *catalogue.Catalogue) []string {
	var names []string
	note := func(p Policy) {
		for name := range p.Families {
			if _, ok := cat.Family(name); !ok {
				names = append(names, name)
			}
		}
	}
	note(d.Policy)
	for _, p := range d.Servers {
		note(p)
	}
	slices.Sort(names)
	return slices.Compact(names)
}
