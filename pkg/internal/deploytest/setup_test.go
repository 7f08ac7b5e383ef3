// Package deploytest checks docker-compose.yml, the Dockerfile and the files
// in deploy: every file, flag, variable, port and path that they name must
// exist, and the services must find one another. No container engine is
// needed: the same commands run as processes on this host, with container
// paths and addresses replaced by those of this host.
package deploytest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pganalytics/pkg/internal/testprograms"
)

// programs is where TestMain builds them.
var programs string

func TestMain(m *testing.M) {
	code := testprograms.Run(m, &programs)
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// checkout returns a copy of all that is deployed, with secrets made.
func checkout(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join("..", "..", "..")
	for _, name := range []string{"docker-compose.yml", "Dockerfile", ".dockerignore"} {
		data, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
	deploy := filepath.Join(root, "deploy")
	entries, err := os.ReadDir(deploy)
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "deploy"), 0o700))
	for _, e := range entries {
		if e.IsDir() { // the operator's own secrets
			continue
		}
		info, err := e.Info()
		require.NoError(t, err)
		data, err := os.ReadFile(filepath.Join(deploy, e.Name()))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "deploy", e.Name()), data, info.Mode().Perm()))
	}
	makeSecrets(t, dir)
	return dir
}

func makeSecrets(t *testing.T, dir string) {
	t.Helper()
	out, err := exec.Command(filepath.Join(dir, "deploy", "make-secrets.sh")).CombinedOutput()
	require.NoError(t, err, string(out))
}

// change replaces text in a file of a checkout.
func change(t *testing.T, dir, name, from, to string) {
	t.Helper()
	path := filepath.Join(dir, name)
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Contains(t, string(data), from)
	require.NoError(t, os.WriteFile(path, []byte(strings.ReplaceAll(string(data), from, to)), 0o600))
}

// load reads the compose file as compose does; unknown keys, variables without
// a value and references to what is not there are errors.
func load(dir string, options ...func(*loader.Options)) (*types.Project, error) {
	all := append([]func(*loader.Options){loader.WithProfiles([]string{"*"})}, options...)
	return loader.LoadWithContext(context.Background(), types.ConfigDetails{
		WorkingDir:  dir,
		ConfigFiles: []types.ConfigFile{{Filename: filepath.Join(dir, "docker-compose.yml")}},
		Environment: types.Mapping{},
	}, all...)
}
