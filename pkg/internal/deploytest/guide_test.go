package deploytest

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	flagName     = regexp.MustCompile(`--[a-z][a-z-]*[a-z]`)
	variableName = regexp.MustCompile(`(?m)^\| ` + "`([A-Z_]+)`(?:, `([A-Z_]+)`)?")
	subcommand   = regexp.MustCompile(`(?m)^  ([a-z-]+(?: [a-z-]+)*)  `)
)

func TestTheGuideNamesOnlyWhatExists(t *testing.T) {
	t.Parallel()
	dir := checkout(t)
	guide, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "deployment.md"))
	require.NoError(t, err)
	known := map[string]bool{"--detach": true, "--build": true, "--rm": true, "--force-recreate": true, "--foo-bar": true} // docker compose's, and the guide's example
	for _, program := range []string{"authsvc", "gateway", "ingester", "collector", "pganalytics"} {
		for _, command := range append([]string{""}, commandsOf(t, program)...) {
			for _, flag := range flagName.FindAllString(help(t, program, command), -1) {
				known[flag] = true
			}
		}
	}
	for _, flag := range flagName.FindAllString(string(guide), -1) {
		require.True(t, known[flag], "no program has %s", flag)
	}
	compose, err := os.ReadFile(filepath.Join(dir, "docker-compose.yml"))
	require.NoError(t, err)
	named := variableName.FindAllStringSubmatch(string(guide), -1)
	require.Greater(t, len(named), 5)
	for _, m := range named {
		for _, variable := range m[1:] {
			require.True(t, variable == "" || strings.Contains(string(compose), "${"+variable+":-"), "the compose file has no %s", variable)
		}
	}
}

func commandsOf(t *testing.T, program string) []string {
	t.Helper()
	var all []string
	for _, m := range subcommand.FindAllStringSubmatch(help(t, program, ""), -1) {
		all = append(all, m[1])
	}
	return all
}

func help(t *testing.T, program, command string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), filepath.Join(programs, program), append(strings.Fields(command), "--help")...).CombinedOutput()
	require.NoError(t, err, string(out))
	return string(out)
}
