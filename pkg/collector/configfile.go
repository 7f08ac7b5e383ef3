package collector

import (
	"errors"
	"fmt"
	"os"
	"time"

	"go.yaml.in/yaml/v3"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/collector/pgread"
	"pganalytics/pkg/policy"
)

// ReadConfig reads the configuration file into c, over what c holds. All
// faults are reported at once, each as file:line; unknown and repeated keys
// are faults.
func ReadConfig(path string, cat *catalogue.Catalogue, c *Config) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	return parseConfig(path, data, cat, c)
}

func parseConfig(path string, data []byte, cat *catalogue.Catalogue, c *Config) error {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	p := &parser{path: path, catalogue: cat}
	if len(doc.Content) == 0 {
		return fmt.Errorf("%s:1: the file is empty", path)
	}
	p.config(doc.Content[0], c)
	return errors.Join(p.errs...)
}

// parser walks the document and gathers its faults.
type parser struct {
	path      string
	catalogue *catalogue.Catalogue
	errs      []error

	intervalsOf []map[string]time.Duration // by server
}

func (p *parser) fail(n *yaml.Node, format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf("%s:%d: %w", p.path, n.Line, fmt.Errorf(format, args...)))
}

// mapping calls the key's function with the value. Unknown and repeated keys
// are faults.
func (p *parser) mapping(n *yaml.Node, what string, keys map[string]func(*yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		p.fail(n, "%s must be a mapping", what)
		return
	}
	seen := map[string]bool{}
	for i := 0; i < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		take, ok := keys[key.Value]
		switch {
		case !ok:
			p.fail(key, "%s has no key %q", what, key.Value)
		case seen[key.Value]:
			p.fail(key, "%s has key %q twice", what, key.Value)
		default:
			take(value)
		}
		seen[key.Value] = true
	}
}

// each calls take with every name and value of a mapping whose keys are names.
func (p *parser) each(n *yaml.Node, what string, take func(name, value *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		p.fail(n, "%s must be a mapping", what)
		return
	}
	seen := map[string]bool{}
	for i := 0; i < len(n.Content); i += 2 {
		if name := n.Content[i]; seen[name.Value] {
			p.fail(name, "%s has key %q twice", what, name.Value)
		} else {
			seen[name.Value] = true
			take(name, n.Content[i+1])
		}
	}
}

func (p *parser) text(dst *string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		if n.Kind != yaml.ScalarNode || n.Value == "" {
			p.fail(n, "must be a text")
			return
		}
		*dst = n.Value
	}
}

func (p *parser) texts(dst *[]string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		if n.Kind != yaml.SequenceNode {
			p.fail(n, "must be a list")
			return
		}
		for _, entry := range n.Content {
			var s string
			p.text(&s)(entry)
			*dst = append(*dst, s)
		}
	}
}

func (p *parser) bytes(dst *int64) func(*yaml.Node) {
	return func(n *yaml.Node) {
		v, err := parseBytes(n.Value)
		if err != nil {
			p.fail(n, "%w", err)
		}
		*dst = v
	}
}

func (p *parser) duration(dst *time.Duration) func(*yaml.Node) {
	return func(n *yaml.Node) {
		v, err := time.ParseDuration(n.Value)
		if err != nil || v <= 0 {
			p.fail(n, "%q: must be a duration such as 500ms or 5s", n.Value)
		}
		*dst = v
	}
}

func (p *parser) config(n *yaml.Node, c *Config) {
	intervals := map[string]time.Duration{}
	var statement, lock time.Duration
	p.mapping(n, "the configuration", map[string]func(*yaml.Node){
		"hostname":          p.text(&c.Hostname),
		"labels":            p.labels(&c.Labels),
		"intervals":         p.intervals(intervals),
		"statement_timeout": p.duration(&statement),
		"lock_timeout":      p.duration(&lock),
		"spool": func(n *yaml.Node) {
			p.mapping(n, "spool", map[string]func(*yaml.Node){
				"dir":       p.text(&c.Spool.Dir),
				"max_bytes": p.bytes(&c.Spool.MaxBytes),
			})
		},
		"servers": func(n *yaml.Node) {
			if n.Kind != yaml.SequenceNode {
				p.fail(n, "servers must be a list")
				return
			}
			for _, entry := range n.Content {
				p.server(entry, c)
			}
		},
	})
	for i := range c.Servers {
		s := &c.Servers[i]
		s.StatementTimeout, s.LockTimeout = statement, lock
		own := p.intervalsOf[i]
		for family, d := range intervals {
			if _, ok := own[family]; !ok {
				own[family] = d
			}
		}
		s.Families = readings(p.catalogue, own)
	}
}

// readings returns how the families are read, with intervals other than the
// catalogue's; 0 turns one off.
func readings(cat *catalogue.Catalogue, intervals map[string]time.Duration) map[string]policy.Reading {
	chosen := policy.Policy{Families: map[string]policy.Setting{}}
	for family, d := range intervals {
		chosen.Families[family] = policy.Setting{Off: d == 0, Interval: d}
	}
	return chosen.Resolve(cat)
}

func (p *parser) server(n *yaml.Node, c *Config) {
	var s pgread.Config
	intervals := map[string]time.Duration{}
	var info Conninfo
	p.mapping(n, "a server", map[string]func(*yaml.Node){
		"name":          p.text(&s.Name),
		"conninfo":      p.text(&info.Plain),
		"conninfo_file": p.text(&info.File),
		"conninfo_env":  p.text(&info.Env),
		"intervals":     p.intervals(intervals),
		"databases": func(n *yaml.Node) {
			p.mapping(n, "databases", map[string]func(*yaml.Node){
				"include": p.texts(&s.Include),
				"exclude": p.texts(&s.Exclude),
			})
		},
	})
	conninfo, err := info.Resolve()
	if err != nil {
		p.fail(n, "server %q: %w", s.Name, err)
		return
	}
	s.Conninfo = conninfo
	if err := s.Validate(); err != nil {
		p.fail(n, "%w", err)
		return
	}
	for _, other := range c.Servers {
		if other.Name == s.Name {
			p.fail(n, "server %q: name is used twice", s.Name)
		}
	}
	c.Servers = append(c.Servers, s)
	p.intervalsOf = append(p.intervalsOf, intervals)
}

func (p *parser) intervals(dst map[string]time.Duration) func(*yaml.Node) {
	return func(n *yaml.Node) {
		p.each(n, "intervals", func(name, value *yaml.Node) {
			if _, ok := p.catalogue.Family(name.Value); !ok {
				p.fail(name, "no family %q in the catalogue", name.Value)
			}
			d, err := parseInterval(value.Value)
			if err != nil {
				p.fail(value, "interval of %s: %w", name.Value, err)
			}
			dst[name.Value] = d
		})
	}
}

func (p *parser) labels(dst *map[string]string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		*dst = map[string]string{}
		p.each(n, "labels", func(name, value *yaml.Node) {
			if !labelName.MatchString(name.Value) || value.Kind != yaml.ScalarNode || !pgread.Acceptable(value.Value) {
				p.fail(name, "label %q: name or value is not acceptable", name.Value)
			}
			(*dst)[name.Value] = value.Value
		})
	}
}
