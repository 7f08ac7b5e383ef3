package main

import (
	"bytes"
	"flag"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pganalytics/pkg/cmdline"
	"pganalytics/pkg/collector"
	"pganalytics/pkg/collector/spool"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestMain(m *testing.M) {
	_ = os.Unsetenv("COLUMNS") // help is wrapped by it
	goleak.VerifyTestMain(m)
}

func command(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := run(t.Context(), args, strings.NewReader(""), &out, &out)
	return out.String(), err
}

func TestHelpIsGolden(t *testing.T) {
	t.Parallel()
	var all strings.Builder
	for _, args := range [][]string{{}, {"enroll"}, {"run"}, {"check"}, {"setup-sql"}, {"status"},
		{"deadletters"}, {"deadletters", "list"}, {"deadletters", "show"}, {"deadletters", "resend"}, {"deadletters", "discard"},
	} {
		text, err := command(t, append(args, "--help")...)
		require.NoError(t, err)
		all.WriteString(text + "\n")
	}
	file := filepath.Join("testdata", "help.txt")
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(all.String()), 0o600))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), all.String())
}

func TestASourceIsNeededAndItsPasswordIsNotShown(t *testing.T) {
	t.Parallel()
	_, err := command(t, "check")
	require.ErrorContains(t, err, "--config")
	out, err := command(t, "check", "--server-name=x", "--conninfo=postgres://me:s3cret@db/x")
	require.ErrorContains(t, err, "must not hold a password")
	require.NotContains(t, out+err.Error(), "s3cret")
}

func TestTheEnrolmentTokenComesFromAFileOrStandardInput(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(file, []byte("pge_1_x\n"), 0o600))
	got, err := (&enrollCommand{TokenFile: file}).token(nil)
	require.NoError(t, err)
	require.Equal(t, "pge_1_x", got)
	got, err = (&enrollCommand{TokenFile: "-"}).token(strings.NewReader("pge_2_y\n"))
	require.NoError(t, err)
	require.Equal(t, "pge_2_y", got)
}

// The command that makes a token prints the line to enrol with in the same
// form.
func TestTheReadmesCommandLinesAreTaken(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	require.NoError(t, err)
	lines := 0
	for line := range strings.Lines(string(readme)) {
		if args := strings.Fields(line); len(args) > 1 && args[0] == "collector" {
			lines++
			_, err := cmdline.Parse("collector", "", &commands{}, args[1:], io.Discard, io.Discard)
			require.NoError(t, err, line)
		}
	}
	require.Equal(t, 3, lines)
}

func TestARunningCollectorKeepsItsIdentity(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	s, err := spool.Open(spool.Config{Dir: collector.SpoolDir(state)}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(t, err)
	enroll := func() error {
		_, err := command(t, "enroll", "--force", "--url=https://127.0.0.1:1", "--ca-fingerprint=sha256:"+strings.Repeat("0", 64),
			"--name=db1", "--token-file=-", "--state-dir", state)
		return err
	}
	require.ErrorIs(t, enroll(), spool.ErrLocked)
	require.NoError(t, s.Close())
	err = enroll()
	require.NotErrorIs(t, err, spool.ErrLocked)
	require.ErrorContains(t, err, "token is empty")
}
