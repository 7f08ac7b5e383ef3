package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/catalogue"
)

// MaxDocumentBytes bounds a pulled document: a collector's record of the
// bucket and an answer of a gateway hold it whole.
const MaxDocumentBytes = 64 << 10

// Parse reads a pulled document, YAML or JSON. It may have the keys preset,
// families, databases and servers; all else is refused by name. The error joins
// all faults, each as "file:line: what is wrong".
//
// With a catalogue, families that it does not have are faults: so a slip of
// the pen is seen by whoever writes the document. A collector gives none and
// passes over the families that it does not know (Document.Unknown): a fleet
// is never of one version, and were the whole document refused for one family
// that only newer collectors have, an older collector would not heed what the
// document turns off, which may be what hurts its server.
func Parse(file string, data []byte, cat *catalogue.Catalogue) (Document, error) {
	if len(data) > MaxDocumentBytes {
		return Document{}, fmt.Errorf("%s: %d bytes are too many, the limit is %d", file, len(data), MaxDocumentBytes)
	}
	root, err := only(data)
	if err != nil {
		return Document{}, fmt.Errorf("%s:%w", file, err)
	}
	var d Document
	p := &Parser{File: file, Catalogue: cat, hint: pulledHint}
	keys := p.Keys(&d.Policy)
	keys["servers"] = p.servers(&d)
	p.Mapping(root, "the document", keys)
	return d, p.Err()
}

const pulledHint = ": pulled configuration can only choose a preset, families with their intervals and numbers of rows, and databases"

// only returns the root of the only YAML document of data.
func only(data []byte) (*yaml.Node, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	switch err := decoder.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, errors.New("1: the document is empty; {} leaves everything to the collector's own file")
	case err != nil:
		line, text := catalogue.SyntaxFault(err)
		return nil, fmt.Errorf("%d: not valid YAML or JSON: %s", line, text)
	}
	if err := decoder.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%d: there must be one document", max(more.Line, 1))
	}
	return doc.Content[0], nil
}

// Parser reads policies from YAML nodes and gathers the faults. Anchors are
// not followed: a document says what it means where it is read.
type Parser struct {
	File      string               // stands before the line of a fault
	Catalogue *catalogue.Catalogue // families that it lacks are faults; nil: every name is taken

	hint   string // said of keys that are not known
	faults []error
}

// Err returns all faults, nil if there are none.
func (p *Parser) Err() error { return errors.Join(p.faults...) }

// Fault notes a fault at the node's line.
func (p *Parser) Fault(n *yaml.Node, format string, args ...any) {
	p.faults = append(p.faults, fmt.Errorf("%s:%d: %w", p.File, n.Line, fmt.Errorf(format, args...)))
}

// Mapping calls for every key the function of that key with its value. Keys
// that are not known or stand twice are faults.
func (p *Parser) Mapping(n *yaml.Node, what string, keys map[string]func(*yaml.Node)) {
	p.Each(n, what, func(key, value *yaml.Node) {
		if take, ok := keys[key.Value]; ok {
			take(value)
		} else {
			p.Fault(key, "%s has no key %q%s", what, short(key.Value), p.hint)
		}
	})
}

// Each calls take with every name and value of a mapping whose keys are names.
// A name that stands twice is a fault.
func (p *Parser) Each(n *yaml.Node, what string, take func(name, value *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		p.Fault(n, "%s must be a mapping", what)
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		switch name := n.Content[i]; {
		case name.Kind != yaml.ScalarNode:
			p.Fault(name, "%s has a key that is no name", what)
		case seen[name.Value]:
			p.Fault(name, "%s has key %q twice", what, short(name.Value))
		default:
			seen[name.Value] = true
			take(name, n.Content[i+1])
		}
	}
}

// Keys returns what reads a policy's keys into dst: preset, families and
// databases. A caller adds keys of its own and hands them to Mapping.
func (p *Parser) Keys(dst *Policy) map[string]func(*yaml.Node) {
	return map[string]func(*yaml.Node){
		"preset":    p.preset(dst),
		"families":  p.families(dst),
		"databases": p.databases(dst),
	}
}

func (p *Parser) preset(dst *Policy) func(*yaml.Node) {
	return func(n *yaml.Node) {
		preset, err := catalogue.ParsePreset(short(scalar(n)))
		if err != nil {
			p.Fault(n, "%w", err)
		}
		dst.Preset = preset
	}
}

func (p *Parser) families(dst *Policy) func(*yaml.Node) {
	return func(n *yaml.Node) {
		dst.Families = map[string]Setting{}
		p.Each(n, "families", func(name, value *yaml.Node) {
			if p.family(name) {
				dst.Families[name.Value] = p.setting(name.Value, value)
			}
		})
	}
}

// familyName is what the catalogue takes as one.
var familyName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,62}$`)

func (p *Parser) family(n *yaml.Node) bool {
	known := familyName.MatchString(n.Value)
	if known && p.Catalogue != nil {
		_, known = p.Catalogue.Family(n.Value)
	}
	if !known {
		p.Fault(n, "no family %q in the catalogue", short(n.Value))
	}
	return known
}

func (p *Parser) setting(family string, n *yaml.Node) (s Setting) {
	switch {
	case scalar(n) == "on":
	case scalar(n) == "off":
		s.Off = true
	case n.Kind == yaml.MappingNode && len(n.Content) > 0:
		p.Mapping(n, "family "+family, map[string]func(*yaml.Node){
			"interval": p.interval(&s),
			"max_rows": p.maxRows(&s),
		})
	default:
		p.Fault(n, "family %s must be on, off or a mapping such as {interval: 30s, max_rows: 500}", family)
	}
	return s
}

func (p *Parser) interval(s *Setting) func(*yaml.Node) {
	return func(n *yaml.Node) {
		d, err := time.ParseDuration(scalar(n))
		if err != nil || d < MinInterval || d > MaxInterval {
			p.Fault(n, "interval %q must be a duration from 1s to 168h, such as 30s", short(n.Value))
		}
		s.Interval = d
	}
}

func (p *Parser) maxRows(s *Setting) func(*yaml.Node) {
	return func(n *yaml.Node) {
		rows, err := strconv.Atoi(scalar(n))
		if err != nil || rows < 1 || rows > MaxRows {
			p.Fault(n, "max_rows %q must be a number from 1 to %d", short(n.Value), MaxRows)
		}
		s.MaxRows = rows
	}
}

func (p *Parser) databases(dst *Policy) func(*yaml.Node) {
	return func(n *yaml.Node) {
		p.Mapping(n, "databases", map[string]func(*yaml.Node){
			"include": p.patterns(&dst.Databases.Include),
			"exclude": p.patterns(&dst.Databases.Exclude),
		})
	}
}

func (p *Parser) patterns(dst *[]string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		if n.Kind != yaml.SequenceNode {
			p.Fault(n, "must be a list of patterns")
			return
		}
		*dst = make([]string, 0, len(n.Content))
		for _, entry := range n.Content {
			if _, err := path.Match(entry.Value, ""); err != nil || scalar(entry) == "" {
				p.Fault(entry, "bad pattern %q of databases", short(entry.Value))
			}
			*dst = append(*dst, entry.Value)
		}
	}
}

func (p *Parser) servers(d *Document) func(*yaml.Node) {
	return func(n *yaml.Node) {
		d.Servers = map[string]Policy{}
		p.Each(n, "servers", func(name, value *yaml.Node) {
			if !push.ValidName(name.Value) {
				p.Fault(name, "%q cannot be the name of a server", short(name.Value))
				return
			}
			var one Policy
			p.Mapping(value, fmt.Sprintf("server %q", name.Value), p.Keys(&one))
			d.Servers[name.Value] = one
		})
	}
}

// scalar returns a scalar's text, and none for an anchor or anything else.
func scalar(n *yaml.Node) string {
	if n.Kind != yaml.ScalarNode {
		return ""
	}
	return n.Value
}

// short cuts what a fault repeats of the document.
func short(text string) string {
	const most = 60
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}
