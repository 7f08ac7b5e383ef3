// Package arrows holds the test of which package may import which. The two ends of a batch's way must not know each
// other, nor the services what lies between them: that is joined in pkg/service and nowhere else.
package arrows

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// listed is what go list tells of a package, without its tests: they may use everything.
type listed struct {
	ImportPath string
	Imports    []string
	Deps       []string // imports of imports too
}

// never are the forbidden dependencies, direct or through others. A name stands for a package and those below it.
var never = []struct{ from, to []string }{
	{from: []string{"pkg/gateway"}, to: []string{"pkg/ingester"}},
	{from: []string{"pkg/ingester"}, to: []string{"pkg/gateway"}},
	{from: []string{"pkg/bus"}, to: []string{"pkg/store"}},
	{from: []string{"pkg/store"}, to: []string{"pkg/bus"}},
	{
		from: []string{"pkg/gateway", "pkg/ingester", "pkg/api", "pkg/authsvc", "pkg/collector", "pkg/replay", "pkg/health"},
		to:   []string{"pkg/bus", "pkg/store"},
	},
	{from: []string{"pkg", "schemas"}, to: []string{"cmd"}},
	{from: []string{"pkg", "cmd"}, to: []string{"loadtest"}},
}

// only are the modules that few may import themselves.
var only = []struct {
	module string
	by     []string
}{
	// cmd/pganalytics: the demo makes a database and a workload on it, as a client from outside.
	{"github.com/jackc/pgx/v5", []string{"pkg/store", "pkg/authsvc/pgstore", "pkg/api/query", "pkg/collector", "cmd/pganalytics"}},
	{"github.com/pressly/goose/v3", []string{"pkg/store", "pkg/authsvc/pgstore"}},
	{"github.com/nats-io/nats.go", []string{"pkg/bus"}},
	{"github.com/nats-io/nats-server/v2", []string{"pkg/bus/natsserver"}},
	{"pganalytics/pkg/internal", nil}, // test support
}

// testSupport may import everything, and the product none of it.
var testSupport = []string{"pkg/internal", "loadtest"}

func TestImportsFollowTheArrows(t *testing.T) {
	t.Parallel()
	packages := list(t)
	require.NotEmpty(t, packages)
	for _, p := range packages {
		for _, fault := range faults(p) {
			t.Error(fault)
		}
	}
}

func TestAForbiddenImportIsSeen(t *testing.T) {
	t.Parallel()
	for fault, p := range map[string]listed{
		"pkg/gateway depends on pkg/ingester": {
			ImportPath: "pganalytics/pkg/gateway", Deps: []string{"pganalytics/pkg/ingester"},
		},
		"pkg/authsvc/pgstore depends on pkg/bus/natsserver": {
			ImportPath: "pganalytics/pkg/authsvc/pgstore", Deps: []string{"pganalytics/pkg/bus/natsserver"},
		},
		"pkg/batch depends on cmd/gateway": {
			ImportPath: "pganalytics/pkg/batch", Deps: []string{"pganalytics/cmd/gateway"},
		},
		"pkg/ingester imports github.com/jackc/pgx/v5/pgconn": {
			ImportPath: "pganalytics/pkg/ingester", Imports: []string{"github.com/jackc/pgx/v5/pgconn"},
		},
		"pkg/service imports pganalytics/pkg/internal/testdb": {
			ImportPath: "pganalytics/pkg/service", Imports: []string{"pganalytics/pkg/internal/testdb"},
		},
	} {
		require.Equal(t, []string{fault}, faults(p))
	}
	require.Empty(t, faults(listed{ImportPath: "pganalytics/pkg/store", Imports: []string{"github.com/jackc/pgx/v5"}}))
	require.Empty(t, faults(listed{ImportPath: "pganalytics/pkg/business", Deps: []string{"pganalytics/pkg/store"}}))
}

func faults(p listed) []string {
	var found []string
	name := strings.TrimPrefix(p.ImportPath, "pganalytics/")
	if within(name, testSupport) {
		return nil
	}
	for _, rule := range never {
		for _, dep := range p.Deps {
			dep, ours := strings.CutPrefix(dep, "pganalytics/")
			if ours && within(name, rule.from) && within(dep, rule.to) {
				found = append(found, fmt.Sprintf("%s depends on %s", name, dep))
			}
		}
	}
	for _, rule := range only {
		for _, imported := range p.Imports {
			if within(imported, []string{rule.module}) && !within(name, rule.by) {
				found = append(found, fmt.Sprintf("%s imports %s", name, imported))
			}
		}
	}
	return found
}

func within(name string, roots []string) bool {
	return slices.ContainsFunc(roots, func(root string) bool {
		return name == root || strings.HasPrefix(name, root+"/")
	})
}

func list(t *testing.T) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Imports,Deps", "pganalytics/...")
	out, err := cmd.Output()
	require.NoError(t, err)
	var packages []listed
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			return packages
		}
		require.NoError(t, err)
		packages = append(packages, p)
	}
}
