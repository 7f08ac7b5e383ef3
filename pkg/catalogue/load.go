package catalogue

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"

	"go.yaml.in/yaml/v3"

	"pganalytics/schemas"
)

// Default returns the families that are built in.
func Default() (*Catalogue, error) { return Load(schemas.Metrics) }

// Load reads every *.yaml in the root and in metrics/ of each file system. A
// family is defined once: a later file system adds families and cannot
// replace one. The error joins all faults of all files, each as
// "file:line: what is wrong", sorted by file and line.
func Load(fsys ...fs.FS) (*Catalogue, error) {
	l := &loader{byName: map[string]definition{}}
	for _, f := range fsys {
		l.dir(f, ".")
		l.dir(f, "metrics")
	}
	if len(l.flaws) > 0 {
		return nil, join(l.flaws)
	}
	c := &Catalogue{byName: make(map[string]*Family, len(l.byName))}
	for name, d := range l.byName {
		c.byName[name] = d.family
		c.families = append(c.families, d.family)
	}
	slices.SortFunc(c.families, func(a, b *Family) int { return cmp.Compare(a.Name, b.Name) })
	return c, nil
}

// loader gathers the families and what is wrong of all files.
type loader struct {
	byName map[string]definition
	flaws  []flaw
}

// definition is a family and where it stands.
type definition struct {
	family *Family
	where  string
}

// flaw is one thing wrong with a file. Line 0 is the file as a whole.
type flaw struct {
	file string
	line int
	text string
}

// where returns "file:line".
func (f flaw) where() string {
	if f.line == 0 {
		return f.file
	}
	return f.file + ":" + strconv.Itoa(f.line)
}

func join(flaws []flaw) error {
	slices.SortStableFunc(flaws, func(a, b flaw) int {
		return cmp.Or(cmp.Compare(a.file, b.file), cmp.Compare(a.line, b.line))
	})
	errs := make([]error, len(flaws))
	for i, f := range flaws {
		errs[i] = fmt.Errorf("%s: %s", f.where(), f.text)
	}
	return errors.Join(errs...)
}

// dir loads the files of one directory. Only metrics/ may be missing.
func (l *loader) dir(f fs.FS, dir string) {
	entries, err := fs.ReadDir(f, dir)
	if errors.Is(err, fs.ErrNotExist) && dir != "." {
		return
	}
	if err != nil {
		l.flaws = append(l.flaws, flaw{file: dir, text: err.Error()})
		return
	}
	for _, e := range entries {
		file := path.Join(dir, e.Name())
		switch path.Ext(file) {
		case ".yaml":
			l.file(f, file)
		case ".yml":
			// Passing it over in silence would lose a family by a typing slip.
			l.flaws = append(l.flaws, flaw{file: file, text: "name the file *.yaml"})
		}
	}
}

func (l *loader) file(f fs.FS, file string) {
	data, err := fs.ReadFile(f, file)
	if err != nil {
		l.flaws = append(l.flaws, flaw{file: file, text: err.Error()})
		return
	}
	p := &parser{file: file}
	family, line := p.parse(data)
	if family != nil && family.Name != "" {
		here := flaw{file: file, line: line}.where()
		if first, taken := l.byName[family.Name]; taken {
			p.add(line, "family %s is already defined in %s", family.Name, first.where)
		} else {
			l.byName[family.Name] = definition{family, here}
		}
	}
	l.flaws = append(l.flaws, p.flaws...)
}

// parser turns one file into a family and keeps what is wrong with it.
type parser struct {
	file  string
	flaws []flaw
	lines []int // of the family's columns
}

func (p *parser) add(line int, format string, args ...any) {
	p.flaws = append(p.flaws, flaw{p.file, line, fmt.Sprintf(format, args...)})
}

// parse returns the family, as far as the file defines one, and the line of
// its name.
func (p *parser) parse(data []byte) (*Family, int) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		p.add(1, "empty file")
		return nil, 0
	case err != nil:
		p.syntax(err)
		return nil, 0
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		p.add(max(more.Line, 1), "more than one document, want one family a file")
	}
	return p.family(doc.Content[0])
}

// yamlLine finds the position in a syntax error of the YAML package, which
// tells it in no other way, and for some errors one line too early.
var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// SyntaxFault takes a syntax error of the YAML package apart: the line, 1 if
// it tells none, and what is wrong there.
func SyntaxFault(err error) (line int, text string) {
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		line, _ = strconv.Atoi(m[1]) // digits, or nothing
	}
	return max(line, 1), yamlLine.ReplaceAllString(err.Error(), "")
}

func (p *parser) syntax(err error) {
	line, text := SyntaxFault(err)
	p.add(line, "not valid YAML, here or on the next line: %s", text)
}
