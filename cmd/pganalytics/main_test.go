package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "rewrite golden files")

// Golden files have times of UTC. The process is begun again with that zone,
// for imported packages have goroutines that read it before any test runs.
func TestMain(m *testing.M) {
	if os.Getenv("TZ") != "UTC" {
		_ = os.Setenv("TZ", "UTC")
		fmt.Fprintln(os.Stderr, "begin again in UTC:", syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestHelpOfEveryCommandIsGolden(t *testing.T) { // not parallel: help is wrapped by COLUMNS
	t.Setenv("COLUMNS", "")
	var out bytes.Buffer
	for _, args := range [][]string{{}, {"init"}, {"migrate"}, {"serve"}, {"status"}, {"stream", "status"}, {"stream", "export"}, {"query"}, {"replay"}, {"verify"}, {"collectors", "enroll-token"},
		{"deadletters", "list"}, {"deadletters", "show"}, {"deadletters", "retry"}, {"deadletters", "discard"}, {"deadletters", "export"},
		{"config", "get"}, {"config", "set"}, {"config", "unset"}, {"config", "history"}, {"config", "rollback"}, {"batch", "show"}, {"batch", "remove"}, {"demo"}, {"version"}} {
		require.NoError(t, run(t.Context(), append(args, "--help"), &out, &out))
		out.WriteString("\n")
	}
	file := filepath.Join("testdata", "help.txt")
	if *update {
		require.NoError(t, os.WriteFile(file, out.Bytes(), 0o600))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), out.String())
}

func TestEveryFaultOfServeIsNamedAtOnce(t *testing.T) {
	t.Setenv("DATABASE_URL", "")
	var out bytes.Buffer
	err := run(t.Context(), []string{"serve", "--data-dir", t.TempDir(), "--loaders=0", "--nats-listen=nowhere"}, &out, &out)
	for _, fault := range []string{"DATABASE_URL", "loaders: 0", "nats-listen"} {
		require.ErrorContains(t, err, fault)
	}
}

func TestWithoutADatabaseTheDemoSaysSoInOneSentence(t *testing.T) {
	t.Setenv("DATABASE_URL", "")
	var out bytes.Buffer
	err := run(t.Context(), []string{"demo"}, &out, &out)
	require.EqualError(t, err, "no database: set DATABASE_URL or --database-url-file; make demo starts a private one")
}
