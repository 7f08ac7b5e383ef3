package policy_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/policy"
)

func TestAllFaultsAreToldAtOnceWithTheirLines(t *testing.T) {
	t.Parallel()
	_, err := policy.Parse("fleet.yaml", []byte("servers:\n  main:\n    preset: *minimal\n"), builtIn(t))
	require.EqualError(t, err, "fleet.yaml:1: not valid YAML or JSON: unknown anchor 'minimal' referenced")

	_, err = policy.Parse("fleet.yaml", []byte(`preset: most
families:
  pg_locks: sometimes
  pg_loks: on
  pg_settings: {interval: 10ms, max_rows: 0, timeout: 5s}
  pg_stat_wal: {}
  pg_stat_wal: off
  pg_stat_database: {interval: 60, max_rows: 50001}
databases:
  include: shop
  exclude: ["[", ""]
servers:
  "": {}
  main:
    preset: &p minimal
    labels: {a: b}
  main: []
  other: {preset: *p}
  third: []
preset: minimal
`), builtIn(t))
	require.Error(t, err)
	hint := ": pulled configuration can only choose a preset, families with their intervals and numbers of rows, and databases"
	require.Equal(t, []string{
		`fleet.yaml:1: unknown preset "most", want one of minimal, standard, exhaustive`,
		`fleet.yaml:3: family pg_locks must be on, off or a mapping such as {interval: 30s, max_rows: 500}`,
		`fleet.yaml:4: no family "pg_loks" in the catalogue`,
		`fleet.yaml:5: interval "10ms" must be a duration from 1s to 168h, such as 30s`,
		`fleet.yaml:5: max_rows "0" must be a number from 1 to 50000`,
		`fleet.yaml:5: family pg_settings has no key "timeout"` + hint,
		`fleet.yaml:6: family pg_stat_wal must be on, off or a mapping such as {interval: 30s, max_rows: 500}`,
		`fleet.yaml:7: families has key "pg_stat_wal" twice`,
		`fleet.yaml:8: interval "60" must be a duration from 1s to 168h, such as 30s`,
		`fleet.yaml:8: max_rows "50001" must be a number from 1 to 50000`,
		`fleet.yaml:10: must be a list of patterns`,
		`fleet.yaml:11: bad pattern "[" of databases`,
		`fleet.yaml:11: bad pattern "" of databases`,
		`fleet.yaml:13: "" cannot be the name of a server`,
		`fleet.yaml:16: server "main" has no key "labels"` + hint,
		`fleet.yaml:17: servers has key "main" twice`,
		`fleet.yaml:18: unknown preset "", want one of minimal, standard, exhaustive`,
		`fleet.yaml:19: server "third" must be a mapping`,
		`fleet.yaml:20: the document has key "preset" twice`,
	}, strings.Split(err.Error(), "\n"))
}

// Whoever can write a pulled document must not be able to have a collector
// connect elsewhere, run something, read or write files, or trust someone.
func TestAPulledDocumentCannotReachBeyondTheCatalogue(t *testing.T) {
	t.Parallel()
	for _, key := range []string{
		"host", "hosts", "hostaddr", "port", "url", "gateway", "conninfo", "conninfo_file", "conninfo_env", "service", "dbname",
		"user", "password", "passfile", "token", "token_file", "credentials", "key", "secret",
		"sql", "query", "queries", "setup", "functions", "extension", "search_path", "statement_timeout", "lock_timeout", "options",
		"state_dir", "spool", "dir", "path", "log_file", "catalogue_dir", "include", "command", "exec", "plugin",
		"tls", "sslmode", "sslcert", "sslkey", "sslrootcert", "ca", "ca_fingerprint", "certificate", "insecure_skip_verify",
		"hostname", "labels", "intervals", "name", "version", "collector_id", "query_text", "<<", "Preset", " preset", "preset\x00", "",
	} {
		quoted := strings.ReplaceAll(strings.ReplaceAll(`"`+key+`"`, "\x00", `\0`), " ", `\x20`)
		for where, text := range map[string]string{
			"document": quoted + ": x",
			"server":   "servers: {main: {" + quoted + ": x}}",
			"family":   "families: {pg_locks: {" + quoted + ": x}}",
		} {
			d, err := policy.Parse("document", []byte(text), nil)
			require.ErrorContains(t, err, "pulled configuration can only choose", "%s in %s: %+v", key, where, d)
		}
		if key != "include" {
			_, err := policy.Parse("document", []byte("databases: {"+quoted+": [x]}"), nil)
			require.ErrorContains(t, err, "pulled configuration can only choose", key)
		}
	}
}

func TestADocumentIsOneOfBoundedSize(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                            "document:1: the document is empty",
		"# nothing\n":                 "document:1: the document is empty",
		"~":                           "document:1: the document must be a mapping",
		"[]":                          "document:1: the document must be a mapping",
		"preset: minimal\n---\n{}\n":  "document:2: there must be one document",
		"{]":                          "document:1: not valid YAML or JSON",
		"preset: minimal\n\t{":        "document:2: not valid YAML or JSON",
		"? [a]\n: b\n":                "document:1: the document has a key that is no name",
		strings.Repeat(" ", 64<<10+1): "65537 bytes are too many, the limit is 65536",
	} {
		_, err := policy.Parse("document", []byte(text), nil)
		require.ErrorContains(t, err, want, text)
	}
}

func TestADocumentMayBeJSON(t *testing.T) {
	t.Parallel()
	require.Equal(t,
		parse(t, "preset: minimal\nfamilies: {pg_locks: off, pg_settings: {interval: 5s}}\nservers: {main: {databases: {include: ['a*']}}}"),
		parse(t, `{
	"preset": "minimal",
	"families": {"pg_locks": "off", "pg_settings": {"interval": "5s"}},
	"servers": {"main": {"databases": {"include": ["a*"]}}}
}`))
	require.Equal(t, policy.Document{}, parse(t, "{}"))
}
