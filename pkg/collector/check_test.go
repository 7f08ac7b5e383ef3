package collector

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"flag"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/collector/hostread"
	"pganalytics/pkg/collector/internal/farend"
	"pganalytics/pkg/collector/pgread"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/policy"
)

var update = flag.Bool("update", false, "rewrite golden files")

// few is a catalogue in which everything can happen to a family.
func few(t *testing.T) *catalogue.Catalogue {
	t.Helper()
	files := fstest.MapFS{}
	add := func(name, more, version, sql string) {
		files[name+".yaml"] = &fstest.MapFile{Data: []byte("name: " + name + "\n" + more + `
description: x
interval: 60s
retention: 1d
chunk: 1h
key: [datname]
columns:
  - {name: datname, type: text}
  - {name: v, type: bigint, kind: gauge}
queries:
  - min_version: ` + version + `
    sql: ` + sql + "\n")}
	}
	const one = "select current_database()::text as datname, 1::bigint as v"
	add("f_works", "scope: instance", "13", one)
	add("f_each", "scope: database", "13", one)
	add("f_rare", "scope: instance\npreset: exhaustive", "13", one)
	add("f_off", "scope: instance", "13", one)
	add("f_newer", "scope: instance", "19", one)
	add("f_behind", "scope: instance\nrequires: {extension: hstore}", "13", one)
	add("f_extension", "scope: instance\nrequires: {extension: citext}", "13", one)
	add("f_helper", "scope: database\nrequires: {function: pganalytics.absent}\nsetup: select 1", "13", one)
	add("f_stranger", "scope: instance\nrequires: {function: strangers.helper}\nsetup: select 1", "13", one+", strangers.helper()")
	add("f_denied", "scope: instance", "13", one+" from pg_catalog.pg_authid limit 1")
	cat, err := catalogue.Load(files)
	require.NoError(t, err)
	return cat
}

func TestCheckSaysWhatIsCollectedAndWhyNot(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	db, cat := testdb.Empty(t), few(t)
	own, role := prepare(t, db, cat)
	_, err := execute(t, db, "drop extension hstore, citext; create extension hstore version '1.4'")
	require.NoError(t, err)
	stranger := "stranger_" + strings.ToLower(rand.Text())
	_, err = execute(t, db, "create role "+stranger+"; create schema strangers authorization "+stranger+"; grant usage on schema strangers to public; set role "+stranger+
		"; create function strangers.helper() returns text language sql as 'select current_user::text'")
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := execute(t, db, "drop owned by "+stranger+"; drop role "+stranger)
		require.NoError(t, err)
	})
	at, err := pgconn.ParseConfig(db)
	require.NoError(t, err)
	l.cfg.Policy = policy.Policy{
		Families:  map[string]policy.Setting{"f_off": {Off: true}, "f_helper": {}, "f_works": {Interval: 5 * time.Second}},
		Databases: policy.Databases{Include: []string{at.Database}},
	}
	l.cfg.Servers = []Server{
		{Config: pgread.Config{Name: "main", Conninfo: own}},
		{Config: pgread.Config{Name: "gone", Conninfo: "host=127.0.0.1 port=1 user=me dbname=x password=s3cret"}, Policy: policy.Policy{Preset: catalogue.Exhaustive}},
		{Config: pgread.Config{Name: "super", Conninfo: db}, Policy: policy.Policy{Preset: catalogue.Minimal, Families: map[string]policy.Setting{"f_helper": {Off: true}, "f_extension": {}}}},
	}
	l.far.Answer(farend.Refusal(http.StatusBadRequest, "invalid"))
	f, err := Check(t.Context(), l.cfg, cat, false)
	require.NoError(t, err)
	require.Equal(t, 4, f.Bad(), "a helper and an extension that are named, a query that fails, a server that is gone")

	var out bytes.Buffer
	require.NoError(t, f.Write(&out))
	require.NotContains(t, out.String(), "s3cret")
	text := strings.NewReplacer(at.Database, "DATABASE", role, "ROLE", l.far.ID.String(), "ID", l.far.URL, "URL", l.cfg.StateDir, "STATE").Replace(out.String())
	for pattern, mask := range map[string]string{
		`\d+ ms`: "N ms", `PostgreSQL [^,]*`: "PostgreSQL V", `\d{4}-\d\d-\d\dT[0-9:]+Z`: "TIME", `\d+ MiB free`: "N MiB free", ` +\n`: "\n", ` {2,}`: "  ",
	} {
		text = regexp.MustCompile(pattern).ReplaceAllString(text, mask)
	}
	golden := filepath.Join("testdata", "check.txt")
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(text), 0o600))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), text)

	data, err := json.Marshal(f)
	require.NoError(t, err)
	require.NotContains(t, string(data), "null")
}

// What the setup script gives is enough for every family that is built in.
func TestNothingIsOffForWantOfPrivilegesOnceTheSetupScriptHasRun(t *testing.T) {
	t.Parallel()
	cat, db := withHelper(t), testdb.Empty(t)
	own, _ := prepare(t, db, cat)
	at, err := pgconn.ParseConfig(db)
	require.NoError(t, err)
	log := filepath.Join(t.TempDir(), "pg.csv")
	require.NoError(t, os.WriteFile(log, nil, 0o600))
	cfg := Config{
		StateDir: t.TempDir(), Servers: []Server{{Config: pgread.Config{Name: "main", Conninfo: own}, LogFiles: log}},
		Policy: policy.Policy{Preset: catalogue.Exhaustive, Databases: policy.Databases{Include: []string{at.Database}}},
	}
	f, err := Check(t.Context(), cfg, cat, true)
	require.NoError(t, err)
	require.Empty(t, f.Servers[0].Faults)
	require.NotContains(t, strings.Join(f.Servers[0].Notes, "\n"), "pg_monitor")
	read := 0
	for _, family := range f.Servers[0].Families {
		if family.State != collected {
			require.Contains(t, family.Reason, "not on servers of this version", family.Family)
			continue
		}
		read++
	}
	require.Greater(t, read, 10)
	require.Len(t, f.Host.Families, len(hostread.Families()))
	require.Zero(t, bad(f.Host.Families)+bad(f.Servers[0].Families))

	cfg.Servers[0].LogFiles += "x.csv"
	f, err = Check(t.Context(), cfg, cat, true)
	require.NoError(t, err)
	require.Equal(t, 1, bad(f.Servers[0].Families), "log files that are not there")
}

func TestCheckFindsWhatKeepsTheCollectorItselfFromWorking(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.cfg.Servers = nil
	require.NoError(t, os.Chmod(l.cfg.StateDir, 0o755))
	l.far.Answer(farend.Refusal(http.StatusForbidden, "collector_disabled"))
	f, err := Check(t.Context(), l.cfg, l.cat, false)
	require.NoError(t, err)
	faults := strings.Join(f.Faults, "\n")
	require.Contains(t, faults, "has mode 0755")
	require.Contains(t, faults, "gateway: ask the gateway: status 403 collector_disabled")
	require.Equal(t, 2, f.Bad(), faults)

	f, err = Check(t.Context(), l.cfg, l.cat, true)
	require.NoError(t, err)
	require.Equal(t, 1, f.Bad(), "offline asks nobody")
	l.cfg.StateDir = filepath.Join(t.TempDir(), "not-yet")
	f, err = Check(t.Context(), l.cfg, l.cat, false)
	require.NoError(t, err)
	require.Zero(t, f.Bad(), "a collector may be checked before it is enrolled")
	require.Contains(t, strings.Join(f.Notes, "\n"), "enroll makes it")
}
