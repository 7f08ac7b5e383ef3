package collector

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/collector/pgread"
)

func TestConfigurationFileIsRead(t *testing.T) {
	t.Parallel()
	secret := filepath.Join(t.TempDir(), "conninfo")
	require.NoError(t, os.WriteFile(secret, []byte("postgres://me:s3cret@db2/postgres\n"), 0o600))
	var cfg Config
	require.NoError(t, parseConfig("c.yaml", []byte(`
hostname: host1
labels: {env: prod}
statement_timeout: 3s
intervals: {pg_locks: 30s}
spool: {max_bytes: 512MiB}
servers:
  - name: one
    conninfo: postgres://me@db1/postgres
    databases: {include: ["app*"], exclude: [app_old]}
  - name: two
    conninfo_file: `+secret+`
    intervals: {pg_locks: off}
`), loadLocks(t), &cfg))
	require.Len(t, cfg.Servers, 2)
	require.Equal(t, int64(512<<20), cfg.Spool.MaxBytes)
	require.Equal(t, map[string]string{"env": "prod"}, cfg.Labels)
	require.Equal(t, 30*time.Second, cfg.Servers[0].Families["pg_locks"].Interval)
	require.NotContains(t, cfg.Servers[1].Families, "pg_locks")
	require.Equal(t, 3*time.Second, cfg.Servers[1].StatementTimeout)
	require.Equal(t, []string{"app*"}, cfg.Servers[0].Include)
	require.Equal(t, "postgres://me:s3cret@db2/postgres", cfg.Servers[1].Conninfo)
}

func TestAllFaultsOfAConfigurationAreReportedWithTheirLines(t *testing.T) {
	t.Parallel()
	err := parseConfig("c.yaml", []byte(`hostnme: x
intervals:
  pg_lock: 30s
  pg_locks: soon
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
`), loadLocks(t), &Config{})
	require.Error(t, err)
	for _, want := range []string{
		`c.yaml:1: the configuration has no key "hostnme"`,
		`c.yaml:3: no family "pg_lock"`,
		`c.yaml:4: interval of pg_locks: "soon"`,
		`c.yaml:5: "lots"`,
		`c.yaml:6: the configuration has key "spool" twice`,
		`c.yaml:8: server "one": conninfo must not hold a password`,
		`c.yaml:10: server "two": conninfo must not hold a password`,
		`c.yaml:12: server "three": exactly one of conninfo`,
		`c.yaml:13: server "four": bad database pattern`,
		`c.yaml:18: server "five": name is used twice`,
		`c.yaml:20: a server has no key "datbases"`,
	} {
		require.ErrorContains(t, err, want)
	}
	require.NotContains(t, err.Error(), "s3cret")
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
	err := (&Config{Labels: map[string]string{"1": "x"}}).Validate(loadLocks(t))
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
	one := func(name string) []pgread.Config { return []pgread.Config{{Name: name, Conninfo: "host=x"}} }
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
		err := cfg.Validate(loadLocks(t))
		if fault == "" {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, fault)
	}
}
