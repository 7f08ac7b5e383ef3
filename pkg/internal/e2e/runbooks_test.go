package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/collector/uplink"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/replay/archive"
)

// What docs/operations.md says to paste, pasted while that very thing is wrong.
func TestTheRunbooksWorkAsTheyStand(t *testing.T) {
	t.Parallel()
	b := openBook(t)
	var ran atomic.Int32
	scenarios := map[string]func(*testing.T, *book){
		"the database is away":       databaseAway,
		"restored from a backup":     restoredFromABackup,
		"a standby was behind":       standbyBehind,
		"a wrong batch":              wrongBatch,
		"dead letters":               deadLetters,
		"a nats server is lost":      natsServerLost,
		"the stream is full":         streamFull,
		"no ingester":                noIngester,
		"a bad catalogue":            badCatalogue,
		"a collector is locked":      collectorLocked,
		"a part kept for longer":     partKept,
		"a collector goes offline":   collectorOffline,
		"a collector reads too much": collectorReadsTooMuch,
	}
	t.Run("parts", func(t *testing.T) {
		for name, scenario := range scenarios {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				scenario(t, b)
				ran.Add(1)
			})
		}
	})
	if int(ran.Load()) == len(scenarios) { // not if some failed, or only some were asked for
		require.Empty(t, b.unused, "blocks that no test has run")
	}
}

// sender is a running system with a collector of the test's own.
func sender(t *testing.T, databaseURL string, flags ...string) (*system, *client) {
	t.Helper()
	s := newSystem(t, databaseURL, append(flags, "--trim-interval", "200ms")...)
	s.startServe()
	s.enrol("db1", s.state())
	return s, s.client()
}

func (s *system) pushed(c *client, n int) {
	s.t.Helper()
	for range n {
		require.Equal(s.t, http.StatusAccepted, c.push(uuid.Must(uuid.NewV7()).String(), 5).StatusCode)
	}
}

func (s *system) stored(n int) {
	s.t.Helper()
	s.eventually("all is stored", func() bool { return s.number("select count(*) from ingest.batch") == n })
	require.Equal(s.t, 5*n, s.number("select count(*) from metrics.pg_settings"), "once")
}

func databaseAway(t *testing.T, b *book) {
	cluster := testdb.StartCluster(t)
	s, c := sender(t, cluster.URL())
	s.pushed(c, 3)
	s.stored(3)
	s.well(b)

	cluster.Stop()
	s.pushed(c, 2)
	out, status := s.page(b, "").run(0)
	require.Equal(t, 2, status)
	require.Contains(t, out, "FIRST: the database does not answer")
	require.Contains(t, out, "docs/operations.md: The database is away")
	out, status = s.page(b, "The database is away").run(0)
	require.Zero(t, status)
	require.Regexp(t, `(?m)^lag +2 batches, `, out)

	cluster.Start()
	s.stored(5)
	s.well(b)
}

// rewound is a system whose database has gone back by two batches of five.
func rewound(t *testing.T, flags ...string) *system {
	t.Helper()
	cluster := testdb.StartCluster(t)
	s, c := sender(t, cluster.URL(), flags...)
	s.pushed(c, 3)
	s.stored(3)
	cluster.Stop()
	backup := cluster.Copy()
	cluster.Start()
	s.pushed(c, 2)
	s.stored(5)
	cluster.Kill()
	cluster.Restore(backup)
	cluster.Start()
	return s
}

func restoredFromABackup(t *testing.T, b *book) {
	s := rewound(t, "--auto-rewind", "1ns")
	p := s.page(b, "The database is lost and restored from a backup")
	s.eventually("it is noticed", func() bool {
		out, status := p.run(0)
		return status == 0 && strings.Contains(out, "rewind: ")
	})
	out, status := s.page(b, "").run(0)
	require.Equal(t, 2, status)
	require.Contains(t, out, "FIRST: the database went back in time")
	require.Contains(t, out, "docs/operations.md: "+p.title)
	out, status = p.run(1)
	require.Zero(t, status, out)
	s.stored(5)
	out, status = p.run(2)
	require.Zero(t, status, out)
}

func standbyBehind(t *testing.T, b *book) {
	s := rewound(t)
	s.stored(5)
	p := s.page(b, "A standby was promoted that was behind")
	s.eventually("it is over", func() bool {
		_, status := p.run(0)
		return status == 0
	})
}

func badCatalogue(t *testing.T, b *book) {
	db := testdb.Empty(t)
	dir := t.TempDir()
	p := &page{t: t, book: b, title: "A bad catalogue was pushed", env: []string{"DATABASE_URL=" + db},
		replace: []string{"/etc/pganalytics/metrics", dir}}
	s := &system{t: t, db: db}
	file := filepath.Join(dir, "own.yaml")
	family := `name: own
description: A family of the operator's.
scope: instance
interval: 60s
retention: 30d
chunk: 1d
key: [n]
columns:
  - {name: n, type: integer, kind: label, help: Which row.}
queries:
  - {min_version: 13, sql: "select 1"}
`
	require.NoError(t, os.WriteFile(file, []byte(strings.Replace(family, "integer", "integre", 1)), 0o600))
	out, status := p.run(0)
	require.Equal(t, 1, status)
	require.Contains(t, out, "own.yaml:9")
	require.Zero(t, s.number("select count(*) from pg_tables where schemaname in ('ingest', 'metrics')"), "nothing has changed")

	require.NoError(t, os.WriteFile(file, []byte(family), 0o600))
	out, status = p.run(0)
	require.Zero(t, status, out)
	require.Zero(t, s.number("select count(*) from metrics.own"))
}

func partKept(t *testing.T, b *book) {
	s, c := sender(t, "")
	s.pushed(c, 4)
	dir := filepath.Join(t.TempDir(), "stream")
	p := s.page(b, "Keep a part of the stream for longer", "/backup/stream", dir)
	out, status := p.run(0)
	require.Zero(t, status, out)
	require.Contains(t, out, "4 batches")
	r, err := archive.NewReader(dir, nil)
	require.NoError(t, err)
	all, err := r.Next(t.Context(), 10, 1<<20)
	require.NoError(t, err)
	require.Len(t, all, 4)
	require.NoError(t, r.Close())

	s.stored(4)
	s.exec("with lost as (delete from ingest.batch) delete from metrics.pg_settings")
	out, status = p.run(1)
	require.Zero(t, status, out)
	s.stored(4)
}

// login makes the session that the pages' commands use.
func (s *system) login() {
	s.t.Helper()
	mine := filepath.Join(s.dir, "password")
	require.NoError(s.t, os.WriteFile(mine, []byte("a quiet lake 47 herons\n"), 0o600))
	p := s.page(&book{}, "")
	s.eventually("logged in", func() bool {
		_, status := p.paste("pganalytics login admin --password-file " + filepath.Join(s.data(), "first-admin-password") + " --new-password-file " + mine)
		return status == 0
	})
}

func collectorOffline(t *testing.T, b *book) {
	s, c := sender(t, "")
	s.login()
	s.pushed(c, 1)
	s.stored(1)
	s.exec("update ingest.batch set stored_at = now() - interval '4 minutes'")
	out, status := s.page(b, "").run(0)
	require.Equal(t, 2, status)
	require.Contains(t, out, "FIRST: 1 collectors are offline")
	p := s.page(b, "Collectors are offline")
	out, status = p.run(0)
	require.Zero(t, status, out)
	require.Regexp(t, `(?m)^db1 +offline`, out)
	s.pushed(c, 1)
	s.well(b)
}

func collectorLocked(t *testing.T, b *book) {
	s, c := sender(t, "")
	s.login()
	s.pushed(c, 1)
	// The host goes on, its snapshot comes back beside it, and both renew.
	id, err := uplink.LoadIdentity(s.state())
	require.NoError(t, err)
	host := t.TempDir()
	renew := func(state string) error {
		u := uplink.NewClient(id, state, prometheus.NewRegistry())
		defer u.Close()
		return u.Renew(t.Context())
	}
	require.NoError(t, renew(host))
	s.clientOf(host) // seen in use
	require.ErrorContains(t, renew(t.TempDir()), "collector_locked")

	p := s.page(b, "A collector's host was restored from a snapshot")
	s.eventually("status says so", func() bool {
		out, status := s.page(b, "").run(0)
		return status == 2 && strings.Contains(out, "1 collectors are locked") && strings.Contains(out, p.title)
	})
	out, status := p.run(0)
	require.Zero(t, status, out)
	require.Regexp(t, `(?m)^db1 +locked`, out)
	out, status = p.run(1)
	require.Zero(t, status, out)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	onHost := &page{t: t}
	token := strings.TrimSpace(lines[slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "token, ") })+2])
	out, status = onHost.paste("umask 077; echo " + token + " > token; " + strings.TrimSpace(lines[len(lines)-1]) + " --state-dir " + s.state())
	require.Zero(t, status, out)
	c = s.client()
	require.Equal(t, id.CollectorID, c.id.CollectorID)
	s.eventually("it is in again", func() bool {
		return c.push(uuid.Must(uuid.NewV7()).String(), 5).StatusCode == http.StatusAccepted
	})
	s.eventually("it is over", func() bool {
		out, _ := p.paste("pganalytics collectors show db1 --output json")
		var k struct{ Status string }
		return json.Unmarshal([]byte(out), &k) == nil && k.Status == "active"
	})
}

// waits polls for longer than the slowest machine takes.
func waits(t *testing.T, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, 2*time.Minute, 200*time.Millisecond, what)
}
