// Package catalogue holds the metric families: their columns, keys, lifetimes
// and the SQL that reads them. It is the single source of truth: tables,
// validation, encoding and the collector's queries all come from here. It
// knows neither databases nor the wire.
package catalogue

import (
	"fmt"
	"strings"
	"time"
)

// The PostgreSQL major versions that the queries are written for. A newer
// server gets the newest query of each family.
const (
	OldestServer = 13
	NewestServer = 19
)

// What a family with counters has beside its table: a view of their rates, and
// in it the length of the interval that they were taken over.
const (
	RatesSuffix   = "_rates" // after the family's name
	SecondsColumn = "seconds"
)

// Scope says how often a family's query runs on one server.
type Scope uint8

// The scopes.
const (
	Instance Scope = iota + 1 // once per server
	Database                  // once per database
)

var scopeNames = [...]string{Instance: "instance", Database: "database"}

// String returns the scope's name in the catalogue's files.
func (s Scope) String() string { return nameOf("scope", scopeNames[:], uint8(s)) }

// ParseScope returns the scope of that name.
func ParseScope(name string) (Scope, error) {
	i, err := parseName("scope", scopeNames[:], name)
	return Scope(i), err
}

// Preset is a named choice of families. Each contains the ones before it, so
// it also says how much a family matters.
type Preset uint8

// The presets.
const (
	Minimal    Preset = iota + 1 // what tells that a server is well
	Standard                     // what a DBA looks at every day
	Exhaustive                   // all
)

var presetNames = [...]string{Minimal: "minimal", Standard: "standard", Exhaustive: "exhaustive"}

// String returns the preset's name in files.
func (p Preset) String() string { return nameOf("preset", presetNames[:], uint8(p)) }

// ParsePreset returns the preset of that name.
func ParsePreset(name string) (Preset, error) {
	i, err := parseName("preset", presetNames[:], name)
	return Preset(i), err
}

// Kind says what a column's value means.
type Kind uint8

// The kinds.
const (
	Counter Kind = iota + 1 // only grows, until a reset
	Gauge                   // goes up and down
	Label                   // identifies or groups
	Info                    // describes
)

var kindNames = [...]string{Counter: "counter", Gauge: "gauge", Label: "label", Info: "info"}

// String returns the kind's name in the catalogue's files.
func (k Kind) String() string { return nameOf("kind", kindNames[:], uint8(k)) }

// ParseKind returns the kind of that name.
func ParseKind(name string) (Kind, error) {
	i, err := parseName("kind", kindNames[:], name)
	return Kind(i), err
}

func nameOf(what string, names []string, i uint8) string {
	if i == 0 || int(i) >= len(names) {
		return fmt.Sprintf("%s(%d)", what, i)
	}
	return names[i]
}

func parseName(what string, names []string, name string) (uint8, error) {
	for i := 1; i < len(names); i++ {
		if names[i] == name {
			return uint8(i), nil
		}
	}
	return 0, fmt.Errorf("unknown %s %q, want one of %s", what, name, strings.Join(names[1:], ", "))
}

// Column is one column of a family after time and server_id, which every
// family has and which are not listed.
type Column struct {
	Name    string
	Type    Type
	Kind    Kind
	Unit    string
	Help    string
	NotNull bool // true for key columns

	// QueryText marks text that people or programs sent to a server: it may
	// hold literals, and so secrets.
	QueryText bool
}

// RowsTotal is a bigint column that a query's result may have beside the
// family's: how many rows there would have been without the limit.
const RowsTotal = "rows_total"

// Query reads a family from servers of a range of versions.
type Query struct {
	MinVersion int // PostgreSQL major version

	// SQL gives columns named and typed as the family's, in any order, and may
	// give RowsTotal. If it has a $1, that is the most rows to return, a
	// bigint.
	SQL string

	// Keys, only of a dimension, gives the key columns alone and has the $1.
	// SQL then has a parameter for each key column in their order, an array of
	// its type, and returns the rows of these keys: contents are read only for
	// keys that were not sent yet.
	Keys string
}

// Requires is what must be there in a database for a family to be read from it.
type Requires struct {
	Extension string // name of an extension
	Function  string // schema-qualified name of a function that the collector's role may execute
}

// Family is one metric family and the table that holds it.
type Family struct {
	Name        string
	Description string
	Dimension   bool // immutable content stored once by key, not a time series
	Scope       Scope
	Preset      Preset // the smallest preset that has it
	Requires    Requires
	Setup       string // SQL that an administrator runs once in every database, such as to create Requires.Function; may be empty
	Interval    time.Duration
	Retention   time.Duration
	Chunk       time.Duration // time range of one chunk; zero for a dimension
	Key         []string      // tells rows of one (server, time) apart; nil: one row per (server, time)
	ChangedBy   []string      // rows are sent only when one of these changed
	Columns     []Column
	Queries     []Query // ascending MinVersion

	columns map[string]int
}

// Column returns the column's position in Columns, or false.
func (f *Family) Column(name string) (int, bool) {
	i, ok := f.columns[name]
	return i, ok
}

// Counters returns the names of its counters in their order.
func (f *Family) Counters() []string {
	var names []string
	for _, c := range f.Columns {
		if c.Kind == Counter {
			names = append(names, c.Name)
		}
	}
	return names
}

// Query returns the newest query whose MinVersion is not above major. False
// means that servers this old do not have the family.
func (f *Family) Query(major int) (Query, bool) {
	for i := len(f.Queries) - 1; i >= 0; i-- {
		if f.Queries[i].MinVersion <= major {
			return f.Queries[i], true
		}
	}
	return Query{}, false
}

// Catalogue is a set of families, read-only once loaded.
type Catalogue struct {
	families []*Family
	byName   map[string]*Family
}

// Family returns the family of that name, or false.
func (c *Catalogue) Family(name string) (*Family, bool) {
	f, ok := c.byName[name]
	return f, ok
}

// Families returns all families sorted by name. The slice must not be changed.
func (c *Catalogue) Families() []*Family { return c.families }
