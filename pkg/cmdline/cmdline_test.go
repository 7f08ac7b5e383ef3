package cmdline_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/cmdline"
)

type flags struct {
	Wait time.Duration `default:"1s"`
	Sub  struct {
		Rows int `default:"7"`
	} `embed:"" prefix:"sub-"`
}

func parse(args ...string) (flags, string, error) {
	var f flags
	var out bytes.Buffer
	_, err := cmdline.Parse("x", "does x", &f, args, &out, &out)
	return f, out.String(), err
}

func TestFlagBeatsEnvironmentBeatsDefault(t *testing.T) {
	t.Setenv("PGANALYTICS_SUB_ROWS", "8")
	t.Setenv("PGANALYTICS_WAIT", "2s")
	f, _, err := parse("--wait=3s")
	require.NoError(t, err)
	require.Equal(t, 3*time.Second, f.Wait)
	require.Equal(t, 8, f.Sub.Rows)
}

func TestMisspeltVariableIsRefusedByName(t *testing.T) {
	t.Setenv("PGANALYTICS_SUB_ROW", "8")
	t.Setenv("PGANALYTICS_WIAT", "8")
	_, _, err := parse()
	require.ErrorContains(t, err, "PGANALYTICS_SUB_ROW: no such setting")
	require.ErrorContains(t, err, "PGANALYTICS_WIAT: no such setting")
}

func TestHelpIsPrintedAndNothingRuns(t *testing.T) {
	_, out, err := parse("--help")
	require.ErrorIs(t, err, cmdline.ErrHelp)
	require.Contains(t, out, "$PGANALYTICS_SUB_ROWS")
}

func TestSecretComesFromFileOrVariable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "url")
	require.NoError(t, os.WriteFile(file, []byte("from file\n"), 0o600))
	t.Setenv("PGANALYTICS_DATABASE_URL", "from variable")
	for want, name := range map[string]string{"from file": file, "from variable": ""} {
		got, err := cmdline.Secret(name, "PGANALYTICS_DATABASE_URL", "DATABASE_URL")
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	_, err := cmdline.Secret(file+".missing", "PGANALYTICS_DATABASE_URL")
	require.Error(t, err)
}
