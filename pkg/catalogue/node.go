package catalogue

import (
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// The readers below take nil for a value that is not there and return nothing
// for it: what must be there was asked for by required, which reported it.

// fields returns the values of a mapping by key. Keys that are not known or
// stand twice are faults, and false means that n is no mapping.
func (p *parser) fields(n *yaml.Node, what string, known ...string) (map[string]*yaml.Node, bool) {
	if n.Kind != yaml.MappingNode {
		p.add(n.Line, "%s: want keys with values", what)
		return nil, false
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		switch {
		case !slices.Contains(known, key.Value):
			p.add(key.Line, "%s: unknown key %q, want one of %s", what, key.Value, strings.Join(known, ", "))
		case seen[key.Value]:
			p.add(key.Line, "%s: key %s stands twice", what, key.Value)
		}
		seen[key.Value] = true
	}
	return mapping(n), true
}

// mapping returns the first value of each key, nothing for other nodes.
func mapping(n *yaml.Node) map[string]*yaml.Node {
	if n.Kind != yaml.MappingNode {
		return nil
	}
	in := make(map[string]*yaml.Node, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		if _, twice := in[n.Content[i].Value]; !twice {
			in[n.Content[i].Value] = n.Content[i+1]
		}
	}
	return in
}

// required returns the key's value, nil after a fault.
func (p *parser) required(n *yaml.Node, in map[string]*yaml.Node, key string) *yaml.Node {
	v := in[key]
	if v == nil {
		p.add(n.Line, "missing %s", key)
	}
	return v
}

// list returns a sequence's elements. A fault is reported only for a value
// that has a name in what.
func (p *parser) list(n *yaml.Node, what string) []*yaml.Node {
	if n == nil {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		if what != "" {
			p.add(n.Line, "%s: want a list", what)
		}
		return nil
	}
	return n.Content
}

// text returns a string that is not empty, "" after a fault. Anchors are not
// followed: a file says what it means where it is read.
func (p *parser) text(n *yaml.Node, what string) string {
	switch {
	case n == nil:
		return ""
	case n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str":
		p.add(n.Line, "%s: want text", what)
	case strings.TrimSpace(n.Value) == "":
		p.add(n.Line, "%s is empty", what)
	case !utf8.ValidString(n.Value) || strings.ContainsRune(n.Value, 0):
		p.add(n.Line, "%s: not valid UTF-8 without NUL", what)
	default:
		return n.Value
	}
	return ""
}

// flag returns true or false, false after a fault.
func (p *parser) flag(n *yaml.Node, what string) bool {
	if n == nil {
		return false
	}
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" {
		p.add(n.Line, "%s: want true or false", what)
		return false
	}
	return n.Value == "true"
}

// parse returns the value of a closed set that n names, zero after a fault.
func parse[T any](p *parser, n *yaml.Node, what string, of func(string) (T, error)) T {
	var zero T
	name := p.text(n, what)
	if name == "" {
		return zero
	}
	v, err := of(name)
	if err != nil {
		p.add(n.Line, "%v", err)
		return zero
	}
	return v
}
