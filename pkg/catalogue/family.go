package catalogue

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	// maxName is PostgreSQL's limit for a name in bytes; longer ones are cut
	// in silence, so that two could become one.
	maxName = 63
	// maxColumns keeps a family's rates computable: each counter stands twice
	// among the at most 1,664 expressions of a query. A row of more numbers
	// would not fit a page of the database either.
	maxColumns = 800
	// misnamed marks a column whose kind was there and was reported.
	misnamed Kind = math.MaxUint8
)

var (
	identifier = regexp.MustCompile(`^[a-z_][a-z0-9_]*$`)
	duration   = regexp.MustCompile(`^([0-9]{1,18})([smhd])$`)

	durationUnits = map[string]time.Duration{
		"s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour,
	}

	// tables that stand beside the families in the same schema.
	reservedFamilies = []string{"server", "samples", "series"}
	// columns that every table has, and the names that PostgreSQL keeps.
	reservedColumns = []string{"time", "server_id", RowsTotal, "tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"}
	// columns that a dimension's table has besides.
	dimensionColumns = []string{"content_hash", "first_seen", "last_seen"}
)

// family reads the whole file.
func (p *parser) family(n *yaml.Node) (*Family, int) {
	in, ok := p.fields(n, "a family", "name", "description", "kind", "scope", "preset", "requires", "setup",
		"interval", "retention", "chunk", "key", "changed_by", "columns", "queries")
	if !ok {
		return nil, 0
	}
	f := &Family{columns: map[string]int{}}
	nameLine := n.Line
	if v := p.required(n, in, "name"); v != nil {
		f.Name, nameLine = p.familyName(v), v.Line
	}
	f.Description = p.text(p.required(n, in, "description"), "description")
	if v := in["kind"]; v != nil {
		if f.Dimension = p.text(v, "kind") == "dimension"; !f.Dimension {
			p.add(v.Line, "kind: the only kind of family to name is dimension")
		}
	}
	f.Scope = parse(p, p.required(n, in, "scope"), "scope", ParseScope)
	f.Preset = Standard
	if v := in["preset"]; v != nil {
		f.Preset = parse(p, v, "preset", ParsePreset)
	}
	p.requires(in["requires"], f)
	f.Setup = strings.TrimSpace(p.text(in["setup"], "setup"))
	p.lifetime(n, in, f)
	p.columns(p.required(n, in, "columns"), f)
	p.keys(n, in, f)
	p.queries(in["queries"], f)
	p.kinds(f)
	return f, nameLine
}

func (p *parser) familyName(n *yaml.Node) string {
	name, ok := p.name(n, "family", maxName-len(RatesSuffix))
	switch {
	case !ok:
		return ""
	case strings.HasSuffix(name, RatesSuffix):
		p.add(n.Line, "family %s: names that end in %s are those of generated views", name, RatesSuffix)
	case slices.Contains(reservedFamilies, name):
		p.add(n.Line, "family %s: the name is reserved", name)
	default:
		return name
	}
	return ""
}

// requires reads what must be there on a server.
func (p *parser) requires(n *yaml.Node, f *Family) {
	if n == nil {
		return
	}
	if in, ok := p.fields(n, "requires", "extension", "function"); ok {
		f.Requires.Extension = p.text(in["extension"], "extension")
		f.Requires.Function = p.text(in["function"], "function")
	}
}

// lifetime reads how often the family is taken and how long it is kept.
func (p *parser) lifetime(n *yaml.Node, in map[string]*yaml.Node, f *Family) {
	f.Interval = p.duration(p.required(n, in, "interval"), "interval")
	f.Retention = p.duration(p.required(n, in, "retention"), "retention")
	if f.Interval > 0 && f.Retention > 0 && f.Interval > f.Retention {
		p.add(in["interval"].Line, "interval %v is longer than retention %v", f.Interval, f.Retention)
	}
	if f.Dimension {
		for _, key := range []string{"chunk", "changed_by"} {
			if v := in[key]; v != nil {
				p.add(v.Line, "a dimension has no %s", key)
			}
		}
		return
	}
	f.Chunk = p.duration(p.required(n, in, "chunk"), "chunk")
	if f.Chunk > 0 && f.Retention > 0 && f.Chunk > f.Retention {
		p.add(in["chunk"].Line, "chunk %v is longer than retention %v", f.Chunk, f.Retention)
	}
}

func (p *parser) columns(n *yaml.Node, f *Family) {
	list := p.list(n, "columns")
	if n != nil && n.Kind == yaml.SequenceNode && len(list) == 0 {
		p.add(n.Line, "columns: want at least one")
	}
	if len(list) > maxColumns {
		p.add(n.Line, "%d columns, a family has at most %d", len(list), maxColumns)
	}
	for _, e := range list {
		p.column(e, f)
	}
}

// column appends the column, so that a reference to a half right one is no
// second fault.
func (p *parser) column(n *yaml.Node, f *Family) {
	in, ok := p.fields(n, "a column", "name", "type", "kind", "unit", "help", "query_text")
	if !ok {
		return
	}
	var c Column
	if v := p.required(n, in, "name"); v != nil {
		c.Name, _ = p.name(v, "column", maxName)
		_, twice := f.columns[c.Name]
		switch {
		case twice:
			p.add(v.Line, "column %s is listed twice", c.Name)
			return
		case slices.Contains(reservedColumns, c.Name),
			f.Dimension && slices.Contains(dimensionColumns, c.Name):
			p.add(v.Line, "column %s: every table has it or cannot have it, so no family lists it", c.Name)
		case !f.Dimension && c.Name == SecondsColumn:
			p.add(v.Line, "column %s: the view of the family's rates has it, so no family lists it", c.Name)
		}
	}
	c.Type = parse(p, p.required(n, in, "type"), "type", ParseType)
	if v := in["kind"]; v != nil {
		if c.Kind = parse(p, v, "kind", ParseKind); c.Kind == 0 {
			c.Kind = misnamed
		}
	}
	c.Unit = p.text(in["unit"], "unit")
	c.Help = p.text(in["help"], "help")
	if c.QueryText = p.flag(in["query_text"], "query_text"); c.QueryText && c.Type.Valid() && c.Type != Text {
		p.add(in["query_text"].Line, "query_text: the column is of type %s, not text", c.Type)
	}
	if c.Name != "" {
		f.columns[c.Name] = len(f.Columns)
		f.Columns = append(f.Columns, c)
		p.lines = append(p.lines, n.Line)
	}
}

// keys reads what tells rows apart and what makes a row worth sending.
func (p *parser) keys(n *yaml.Node, in map[string]*yaml.Node, f *Family) {
	f.Key = p.references(in["key"], "key", f)
	for _, name := range f.Key {
		f.Columns[f.columns[name]].NotNull = true
	}
	if !f.Dimension {
		f.ChangedBy = p.references(in["changed_by"], "changed_by", f)
	}
	if in["key"] != nil && in["key"].Kind != yaml.SequenceNode || len(f.Key) > 0 {
		return
	}
	switch {
	case f.Dimension:
		p.add(n.Line, "a dimension needs a key")
	case f.Scope == Database:
		p.add(n.Line, "a family of scope database needs a key, which tells the databases apart")
	}
}

// references reads a list of names of columns, nil when there is none.
func (p *parser) references(n *yaml.Node, what string, f *Family) []string {
	var names []string
	for _, e := range p.list(n, what) {
		name := p.text(e, what)
		_, known := f.columns[name]
		switch {
		case name == "": // reported by text
		case !known:
			p.add(e.Line, "%s: there is no column %q", what, name)
		case slices.Contains(names, name):
			p.add(e.Line, "%s: %s is listed twice", what, name)
		default:
			names = append(names, name)
		}
	}
	return names
}

// kinds checks kinds against keys and types. Only a key column may leave its
// kind out: it is a label.
func (p *parser) kinds(f *Family) {
	for i := range f.Columns {
		c := &f.Columns[i]
		key := slices.Contains(f.Key, c.Name)
		if key && c.Kind == 0 {
			c.Kind = Label
		}
		switch {
		case c.Kind == misnamed:
		case c.Kind == 0:
			p.add(p.lines[i], "column %s: missing kind", c.Name)
		case key && c.Kind != Label:
			p.add(p.lines[i], "column %s: a key column's kind is label, not %s", c.Name, c.Kind)
		case c.Kind == Counter && c.Type.Valid() && !c.Type.numeric():
			p.add(p.lines[i], "column %s: a counter cannot be of type %s", c.Name, c.Type)
		case c.Kind == Gauge && (c.Type == Text || c.Type == UUID):
			p.add(p.lines[i], "column %s: a gauge cannot be of type %s", c.Name, c.Type)
		}
	}
}

// queries may be empty: such a family is read by other means than SQL.
func (p *parser) queries(n *yaml.Node, f *Family) {
	last := 0
	for _, e := range p.list(n, "queries") {
		in, ok := p.fields(e, "a query", "min_version", "sql", "keys")
		if !ok {
			continue
		}
		var q Query
		if v := p.required(e, in, "min_version"); v != nil {
			q.MinVersion = p.version(v)
			if q.MinVersion != 0 && q.MinVersion <= last {
				p.add(v.Line, "min_version %d does not follow %d: queries stand in ascending order", q.MinVersion, last)
			}
			last = max(last, q.MinVersion)
		}
		q.SQL = strings.TrimSpace(p.text(p.required(e, in, "sql"), "sql"))
		if v := in["keys"]; v != nil {
			if q.Keys = strings.TrimSpace(p.text(v, "keys")); !f.Dimension {
				p.add(v.Line, "keys: only a dimension's query has them")
			}
		}
		f.Queries = append(f.Queries, q)
	}
}

func (p *parser) version(n *yaml.Node) int {
	v, err := strconv.Atoi(n.Value)
	if err != nil || n.Kind != yaml.ScalarNode || v < OldestServer || v > NewestServer {
		p.add(n.Line, "min_version: want a major version from %d to %d", OldestServer, NewestServer)
		return 0
	}
	return v
}

// name returns an SQL identifier of at most limit bytes.
func (p *parser) name(n *yaml.Node, what string, limit int) (string, bool) {
	s := p.text(n, what)
	switch {
	case s == "": // reported by text
	case !identifier.MatchString(s):
		p.add(n.Line, "%s %q: want lower-case letters, digits and _, not beginning with a digit", what, s)
	case len(s) > limit:
		p.add(n.Line, "%s %s: %d bytes, at most %d are possible", what, s, len(s), limit)
	default:
		return s, true
	}
	return "", false
}

// duration returns 0 after a fault.
func (p *parser) duration(n *yaml.Node, what string) time.Duration {
	if n == nil {
		return 0
	}
	d, err := parseDuration(n.Value)
	if err != nil || n.Kind != yaml.ScalarNode {
		p.add(n.Line, "%s %q: want a whole number above 0 with s, m, h or d, such as 60s or 30d", what, n.Value)
		return 0
	}
	return d
}

func parseDuration(s string) (time.Duration, error) {
	m := duration.FindStringSubmatch(s)
	if m == nil {
		return 0, fmt.Errorf("no duration: %q", s)
	}
	count, err := strconv.ParseInt(m[1], 10, 64)
	unit := durationUnits[m[2]]
	if err != nil || count == 0 || count > math.MaxInt64/int64(unit) {
		return 0, fmt.Errorf("no duration: %q", s)
	}
	return time.Duration(count) * unit, nil
}
