package collector

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/collector/logread"
	"pganalytics/pkg/collector/pgread"
	"pganalytics/pkg/collector/spool"
	"pganalytics/pkg/policy"
)

func defaultCatalogue(t *testing.T) *catalogue.Catalogue {
	t.Helper()
	c, err := catalogue.Default()
	require.NoError(t, err)
	return c
}

// secretFile makes a file with a conninfo that nobody else may read.
func secretFile(t *testing.T, conninfo string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "conninfo")
	require.NoError(t, os.WriteFile(file, []byte(conninfo+"\n"), 0o600))
	return file
}

func TestAServerSaysWhatTheFileDoesNotAndAPulledDocumentStandsAboveBoth(t *testing.T) {
	t.Parallel()
	cat := defaultCatalogue(t)
	var cfg Config
	require.NoError(t, parseConfig("c.yaml", []byte(`
hostname: host1
labels: {env: prod}
servers:
  - name: one
    conninfo: postgres://me@db1/postgres
    databases: {include: ["app*"]}
    preset: minimal
    query_text: full
    lock_timeout: 50ms
    log_files: /var/log/postgresql/*.csv
  - name: two
    conninfo_file: `+secretFile(t, "postgres://me:s3cret@db2/postgres")+`
    families: {pg_locks: off, pg_stat_wal: on}
preset: standard
families: {pg_locks: {interval: 30s, max_rows: 7}, pg_stat_wal: {interval: 5s}}
databases: {include: ["*"], exclude: [app_old]}
query_text: off
statement_timeout: 3s
lock_timeout: 80ms
connect_timeout: 9s
host: {name: one}
spool: {dir: /spool, max_bytes: 512MiB, keep: 6h, keep_bytes: 64MiB}
`), cat, &cfg))
	require.Equal(t, spool.Config{Dir: "/spool", MaxBytes: 512 << 20, Keep: 6 * time.Hour, KeepBytes: 64 << 20}, cfg.Spool)
	require.Equal(t, map[string]string{"env": "prod"}, cfg.Labels)

	require.Equal(t, Host{Name: "one"}, cfg.Host)
	require.Empty(t, cfg.logs(cat, policy.Document{}), "not in the server's preset")
	local := cfg.readers(cat, policy.Document{})
	one, two := local["one"], local["two"]
	require.Equal(t, policy.Reading{Interval: 30 * time.Second, MaxRows: 7}, one.Families["pg_locks"])
	require.NotContains(t, one.Families, "pg_settings", "not in the server's preset")
	require.Contains(t, two.Families, "pg_settings")
	require.NotContains(t, two.Families, "pg_locks")
	require.Equal(t, time.Minute, two.Families["pg_stat_wal"].Interval, "on is the catalogue's")
	require.Equal(t, []string{"app*"}, one.Include)
	require.Equal(t, []string{"app_old"}, one.Exclude)
	require.Equal(t, "postgres://me:s3cret@db2/postgres", two.Conninfo)
	require.Equal(t, []any{pgread.TextFull, pgread.TextOff}, []any{one.QueryText, two.QueryText})
	require.Equal(t, []time.Duration{3 * time.Second, 50 * time.Millisecond, 9 * time.Second},
		[]time.Duration{one.StatementTimeout, one.LockTimeout, one.ConnectTimeout})
	require.Equal(t, 80*time.Millisecond, two.LockTimeout)

	pulled, err := policy.Parse("pulled", []byte(`
preset: exhaustive
families: {pg_locks: {interval: 10s}}
databases: {exclude: []}
servers: {two: {families: {pg_stat_wal: off}}}
`), cat)
	require.NoError(t, err)
	require.Equal(t, []logread.Config{{Server: "one", Files: "/var/log/postgresql/*.csv", Interval: time.Minute}}, cfg.logs(cat, pulled))
	above := cfg.readers(cat, pulled)
	require.Equal(t, policy.Reading{Interval: 10 * time.Second, MaxRows: 7}, above["one"].Families["pg_locks"])
	require.Contains(t, above["one"].Families, "pg_settings")
	require.Contains(t, above["two"].Families, "pg_locks")
	require.NotContains(t, above["two"].Families, "pg_stat_wal")
	require.Empty(t, above["two"].Exclude)
	require.Equal(t, local["one"].Conninfo, above["one"].Conninfo)
}

func TestAllFaultsOfAConfigurationAreReportedWithTheirLines(t *testing.T) {
	t.Parallel()
	open := secretFile(t, "postgres://me:s3cret@db1/x")
	require.NoError(t, os.Chmod(open, 0o604))
	err := parseConfig("c.yaml", []byte(`hostnme: x
preset: all
families:
  pg_lock: on
  pg_locks: {interval: soon}
query_text: some
statement_timeout: 1h
spool: {max_bytes: lots}
spool: {max_bytes: 1GiB}
servers:
  - name: one
    conninfo: postgres://me:s3cret@db1/postgres
  - name: two
    conninfo: host=x password=s3cret
  - name: three
  - name: four
    conninfo: host=x
    databases: {include: ["["]}
  - name: five
    conninfo: host=x
  - name: five
    conninfo: host=y
    datbases: {}
  - name: six
    conninfo_file: `+open+`
  - name: postgres://me:s3cret@db1/x
    conninfo: host=x
  - name: seven
    conninfo_env: PGANALYTICS_TEST_NOT_SET
  - conninfo: "nonsense s3cret"
intervals: {pg_locks: 30s}
`), defaultCatalogue(t), &Config{})
	require.Error(t, err)
	for _, want := range []string{
		`c.yaml:1: the configuration has no key "hostnme"`,
		`c.yaml:2: unknown preset "all"`,
		`c.yaml:4: no family "pg_lock"`,
		`c.yaml:5: interval "soon"`,
		`c.yaml:6: query_text "some": must be off, redacted or full`,
		`c.yaml:7: "1h"`,
		`c.yaml:8: "lots"`,
		`c.yaml:9: the configuration has key "spool" twice`,
		`c.yaml:11: server "one": conninfo must not hold a password`,
		`c.yaml:13: server "two": conninfo must not hold a password`,
		`c.yaml:15: server "three": exactly one of conninfo`,
		`c.yaml:18: bad pattern "["`,
		`c.yaml:21: server "five": name is used twice`,
		`c.yaml:23: a server has no key "datbases"`,
		`c.yaml:24: server "six": conninfo_file ` + open + ` has mode 0604, so others may read it`,
		`c.yaml:26: a server's name must not be its conninfo`,
		`c.yaml:28: server "seven": conninfo_env: variable PGANALYTICS_TEST_NOT_SET is not set`,
		`c.yaml:30: server has no name`,
		`conninfo is not valid`,
		`c.yaml:31: the configuration has no key "intervals"`,
	} {
		require.ErrorContains(t, err, want)
	}
	require.NotContains(t, err.Error(), "s3cret")
}

func TestAFileOfTwoDocumentsOrNoneIsNoConfiguration(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                            "c.yaml:1: the file is empty",
		"hostname: x\n---\nservers: ": "there must be one document",
		"hostname: [":                 "c.yaml: yaml: line",
		"- x":                         "c.yaml:1: the configuration must be a mapping",
	} {
		require.ErrorContains(t, parseConfig("c.yaml", []byte(text), defaultCatalogue(t), &Config{}), want)
	}
}

// libpq's rule for key files, which its users know.
func TestAConninfoFileMustNotBeOpenToOthers(t *testing.T) {
	t.Parallel()
	file := secretFile(t, "host=x")
	asRoot := os.Geteuid() == 0 // the file is root's then
	for mode, taken := range map[os.FileMode]bool{
		0o600: true, 0o400: true, 0o700: true, 0o640: asRoot, 0o440: asRoot, 0o660: false, 0o604: false, 0o644: false, 0o601: false,
	} {
		require.NoError(t, os.Chmod(file, mode))
		_, err := Conninfo{File: file}.Resolve()
		require.Equal(t, taken, err == nil, "%o: %v", mode, err)
	}
	require.True(t, mountedSecret("/run/secrets/conninfo"))
	require.False(t, mountedSecret("/run/secrets/../x"))
}

func TestBytesAreParsed(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{"1": 1, "1024": 1024, "3KiB": 3 << 10, "1GiB": 1 << 30, "0": 0, "-1": 0, "1 GiB": 0, "x": 0, "99999999TiB": 0, "": 0} {
		got, err := parseBytes(text)
		require.Equal(t, want, got, text)
		require.Equal(t, want == 0, err != nil, text)
	}
}

func TestAConfigurationForNoServerIsRefused(t *testing.T) {
	t.Parallel()
	err := (&Config{Labels: map[string]string{"1": "x"}}).Validate()
	for _, want := range []string{"state-dir", "no servers", "label"} {
		require.ErrorContains(t, err, want)
	}
}

// What the gateway refuses in every batch must be refused here, at the start.
func TestWhatNoGatewayTakesIsNoConfiguration(t *testing.T) {
	t.Parallel()
	many := map[string]string{}
	for i := range 65 {
		many["l"+strconv.Itoa(i)] = "x"
	}
	one := func(name string) []Server { return []Server{{Config: pgread.Config{Name: name, Conninfo: "host=x"}}} }
	for fault, cfg := range map[string]Config{
		"":                          {Servers: one(strings.Repeat("é", 127)), Hostname: "h", Labels: map[string]string{strings.Repeat("x", 63): ""}},
		`server "two\nlines"`:       {Servers: one("two\nlines")},
		`server "xxx`:               {Servers: one(strings.Repeat("x", 256))},
		`hostname "a\x00b"`:         {Servers: one("x"), Hostname: "a\x00b"},
		`label "note"`:              {Servers: one("x"), Labels: map[string]string{"note": "two\nlines"}},
		`label "yyyy`:               {Servers: one("x"), Labels: map[string]string{strings.Repeat("y", 64): "x"}},
		"65 labels: at most 64 are": {Servers: one("x"), Labels: many},
	} {
		cfg.StateDir = "state"
		err := cfg.Validate()
		if fault == "" {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, fault)
	}
}
