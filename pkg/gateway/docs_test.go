package gateway_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/fault"
)

// classes by their name in the sources.
var classes = map[string]fault.Class{
	"Internal": fault.Internal, "Invalid": fault.Invalid, "Unauthenticated": fault.Unauthenticated,
	"Forbidden": fault.Forbidden, "NotFound": fault.NotFound, "MethodNotAllowed": fault.MethodNotAllowed,
	"Conflict": fault.Conflict, "Precondition": fault.Precondition, "TooLarge": fault.TooLarge,
	"UnsupportedMedia": fault.UnsupportedMedia, "Unprocessable": fault.Unprocessable, "Throttled": fault.Throttled,
	"Unavailable": fault.Unavailable, "Contended": fault.Contended, "Behind": fault.Behind,
}

// codes are the codes that the sources hold; the value is the set of HTTP
// statuses that they are known to be answered with.
type codes map[string]map[string]bool

func (c codes) add(code, class string) {
	if c[code] == nil {
		c[code] = map[string]bool{}
	}
	if known, ok := classes[class]; ok {
		c[code][strconv.Itoa(known.HTTPStatus())] = true
	}
}

// TestEveryCodeIsDocumented reads the sources and the page and wants them to
// agree both ways.
func TestEveryCodeIsDocumented(t *testing.T) {
	t.Parallel()
	found := codes{}
	for name, class := range classes {
		found.add(class.String(), name)
	}
	packages := sources(t, "..")
	known := &reader{strings: map[string]string{}, takers: map[string]int{}}
	for _, files := range packages {
		known.declarations(files)
	}
	for _, files := range packages {
		known.collect(files, found)
	}
	require.Contains(t, found, "nothing_accepted", "the sources were read")
	require.Contains(t, found, "stream_full")
	documented := page(t, "../../docs/errors.md")
	for _, code := range slices.Sorted(maps.Keys(found)) {
		require.Contains(t, documented, code, "docs/errors.md lacks a code")
		for status := range found[code] {
			require.Contains(t, documented[code], status, "docs/errors.md: status of %s", code)
		}
	}
	for code := range documented {
		require.Contains(t, found, code, "docs/errors.md has a code that nothing answers")
	}
}

// page returns code → statuses of the tables' rows: | `code` | status | ….
func page(t *testing.T, file string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	documented := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\|([^|]*)\\|").FindAllStringSubmatch(string(text), -1) {
		require.NotContains(t, documented, row[1], "twice in docs/errors.md")
		documented[row[1]] = row[2]
	}
	return documented
}

// sources parses every package below root, tests left out, by folder.
func sources(t *testing.T, root string) map[string][]*ast.File {
	t.Helper()
	all := map[string][]*ast.File{}
	set := token.NewFileSet()
	require.NoError(t, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(set, path, nil, 0)
		all[filepath.Dir(path)] = append(all[filepath.Dir(path)], file)
		return err
	}))
	return all
}

// reader finds the codes of all packages. Names are those of declarations
// behind their package's: push.CodeLabels.
type reader struct {
	at      string            // name of the package that is read
	strings map[string]string // constants
	takers  map[string]int    // functions with a parameter named code, and its place
}

func (r *reader) declarations(files []*ast.File) {
	for _, file := range files {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				for i, name := range n.Names {
					if i < len(n.Values) {
						r.strings[file.Name.Name+"."+name.Name], _ = literal(n.Values[i])
					}
				}
			case *ast.FuncDecl:
				i := 0
				for _, field := range n.Type.Params.List {
					for _, name := range field.Names {
						if kind, ok := field.Type.(*ast.Ident); ok && name.Name == "code" && kind.Name == "string" {
							r.takers[file.Name.Name+"."+n.Name.Name] = i
						}
						i++
					}
				}
			}
			return true
		})
	}
}

func (r *reader) collect(files []*ast.File, found codes) {
	for _, file := range files {
		r.at = file.Name.Name
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				r.call(n, found)
			case *ast.CompositeLit:
				r.composite(n, found)
			case *ast.AssignStmt:
				for i, left := range n.Lhs {
					if s, ok := left.(*ast.SelectorExpr); ok && s.Sel.Name == "Code" && i < len(n.Rhs) {
						r.add(n.Rhs[i], "", found)
					}
				}
			}
			return true
		})
	}
}

// name returns what an expression refers to.
func (r *reader) name(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return r.at + "." + e.Name
	case *ast.SelectorExpr:
		if x, ok := e.X.(*ast.Ident); ok {
			return x.Name + "." + e.Sel.Name
		}
	}
	return ""
}

func (r *reader) call(n *ast.CallExpr, found codes) {
	if r.name(n.Fun) == "fault.New" {
		r.add(n.Args[1], selected(n.Args[0]), found)
	} else if i, ok := r.takers[r.name(n.Fun)]; ok && i < len(n.Args) {
		r.add(n.Args[i], "", found)
	}
}

func (r *reader) composite(n *ast.CompositeLit, found codes) {
	if r.name(n.Type) == "push.Problem" && !isPair(n.Elts[0]) {
		r.add(n.Elts[0], "", found)
		return
	}
	class, code := "", ast.Expr(nil)
	for _, element := range n.Elts {
		pair, ok := element.(*ast.KeyValueExpr)
		if !ok {
			continue
		}
		switch key, _ := pair.Key.(*ast.Ident); {
		case key == nil:
		case key.Name == "Class":
			class = selected(pair.Value)
		case key.Name == "Code":
			code = pair.Value
		}
	}
	if code != nil {
		r.add(code, class, found)
	}
}

// add notes a code that is written out or a constant; others come from a place
// that is looked at by itself.
func (r *reader) add(code ast.Expr, class string, found codes) {
	text, ok := literal(code)
	if name := r.name(code); name != "" {
		text, ok = r.strings[name]
	}
	if ok && text != "" {
		found.add(text, class)
	}
}

func isPair(e ast.Expr) bool {
	_, ok := e.(*ast.KeyValueExpr)
	return ok
}

func literal(e ast.Expr) (string, bool) {
	if basic, ok := e.(*ast.BasicLit); ok && basic.Kind == token.STRING {
		text, err := strconv.Unquote(basic.Value)
		return text, err == nil
	}
	return "", false
}

func selected(e ast.Expr) string {
	if s, ok := e.(*ast.SelectorExpr); ok {
		return s.Sel.Name
	}
	return ""
}
