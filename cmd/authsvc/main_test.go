package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestHelpIsGolden(t *testing.T) { // not parallel: help is wrapped by COLUMNS
	t.Setenv("COLUMNS", "")
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"--help"}, &out, &out))
	file := filepath.Join("testdata", "help.txt")
	if *update {
		require.NoError(t, os.WriteFile(file, out.Bytes(), 0o600))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), out.String())
}

func TestAMissingDirectoryIsNamed(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	err := run(t.Context(), nil, &out, &out)
	require.ErrorContains(t, err, "--pki-dir")
	require.ErrorContains(t, err, "--users-tls-cert")
}
