package arrows

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

// ARCHITECTURE.md follows a batch file by file. A reader who looks there must
// find what it names.
func TestTheWayOfABatchIsAsDescribed(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..", "..")
	text, err := os.ReadFile(filepath.Join(root, "ARCHITECTURE.md"))
	require.NoError(t, err)
	steps := regexp.MustCompile("(?m)^\\| \\d\\. .* \\| `(.+)` \\| `(.+)` \\|$").FindAllStringSubmatch(string(text), -1)
	require.NotEmpty(t, steps)
	require.LessOrEqual(t, len(steps), 6)
	for _, step := range steps {
		require.True(t, declares(t, filepath.Join(root, step[1]), step[2]), "%s has no function %s", step[1], step[2])
	}
	for _, file := range regexp.MustCompile("`(pkg/[a-z/]+\\.go)`").FindAllStringSubmatch(string(text), -1) {
		require.FileExists(t, filepath.Join(root, file[1]))
	}
}

func declares(t *testing.T, file, function string) bool {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	require.NoError(t, err)
	for _, d := range parsed.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Name.Name == function {
			return true
		}
	}
	return false
}
