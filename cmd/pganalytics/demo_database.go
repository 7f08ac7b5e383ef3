package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pganalytics/pkg/collector/uplink"
	"pganalytics/pkg/store"
)

// demoDatabase is a database that the demo has to itself, on whatever server
// there is, so that two demos do not meet.
type demoDatabase struct {
	server  string // URL of the database that was given
	name    string
	url     string
	urlFile string // holds url, mode 0600
	config  *pgx.ConnConfig
}

func createDemoDatabase(ctx context.Context, server, dir string) (demoDatabase, error) {
	d := demoDatabase{server: server, name: "pganalytics_demo_" + strings.ToLower(rand.Text()[:8]), urlFile: filepath.Join(dir, "database-url")}
	cfg, err := pgx.ParseConfig(server)
	if err != nil {
		return d, fmt.Errorf("DATABASE_URL: %w", err)
	}
	if err := onDatabase(ctx, server, "create database "+d.name); err != nil {
		return d, fmt.Errorf("database of the demo: %w", err)
	}
	cfg.Database = d.name
	d.config, d.url = cfg, connString(cfg)
	if err := os.WriteFile(d.urlFile, []byte(d.url), 0o600); err != nil {
		return d, errors.Join(err, d.drop(ctx))
	}
	// Where it is not preloaded the collector says so and reads the rest.
	if err := onDatabase(ctx, d.url, "create extension if not exists pg_stat_statements"); err != nil {
		return d, errors.Join(fmt.Errorf("database of the demo: %w", err), d.drop(ctx))
	}
	return d, nil
}

func (d demoDatabase) drop(ctx context.Context) error {
	return onDatabase(ctx, d.server, "drop database if exists "+d.name+" with (force)")
}

// connString writes the settings that ParseConfig understood as a keyword
// string, whatever form they were given in.
func connString(c *pgx.ConnConfig) string {
	quote := func(s string) string { return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'" }
	mode := "disable"
	if c.TLSConfig != nil {
		mode = "require"
	}
	return fmt.Sprintf("host=%s port=%d user=%s password=%s dbname=%s sslmode=%s",
		quote(c.Host), c.Port, quote(c.User), quote(c.Password), quote(c.Database), mode)
}

func onDatabase(ctx context.Context, url, sql string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	_, err = conn.Exec(ctx, sql)
	return err
}

// demoQueries are what a person might ask first.
var demoQueries = []struct{ title, sql string }{
	{"transactions and cache hits of the last minute", `select datname, max(xact_commit) - min(xact_commit) as commits, max(blks_hit) - min(blks_hit) as hits
from metrics.pg_stat_database where time > now() - interval '1 minute' and datname <> '' group by datname order by commits desc limit 3`},
	{"the busiest statements", `select s.calls, round(s.total_exec_time) as total_ms, left(regexp_replace(t.query, '\s+', ' ', 'g'), 60) as query
from metrics.pg_stat_statements s join metrics.pg_stat_statements_text t using (server_id, datname, queryid)
where s.time > now() - interval '1 minute' order by s.time desc, s.calls desc limit 3`},
	{"which batches are stored", `select to_char(sent_at, 'HH24:MI:SS') as sent, sequence, row_count, round(extract(epoch from stored_at - sent_at)::numeric, 2) as seconds_later
from ingest.batch order by sent_at desc limit 3`},
}

// hint tells how to look at the data, and looks.
func (d *demo) hint(ctx context.Context, ends bool) error {
	d.con.say("\n" + d.lookLine())
	for _, q := range demoQueries {
		t, err := store.Query(ctx, d.db.url, q.sql)
		if err != nil {
			return err
		}
		fmt.Fprintf(d.con.stderr, "\n-- %s\n%s;\n\n", q.title, q.sql)
		if err := printTable(d.con.stderr, t); err != nil {
			return err
		}
	}
	d.con.say("")
	if !ends {
		d.con.say("Ctrl-C ends the demo.")
	}
	return nil
}

// lookLine is a command to paste. The password stays in a file.
func (d *demo) lookLine() string {
	c := d.db.config
	if _, err := exec.LookPath("psql"); err != nil {
		self, err := os.Executable()
		if err != nil {
			self = "pganalytics"
		}
		return fmt.Sprintf("Look at the data:  %s query --database-url-file %s 'select * from metrics.pg_stat_database limit 5'", self, d.db.urlFile)
	}
	line := fmt.Sprintf("psql -h %s -p %d -U %s -d %s", c.Host, c.Port, c.User, c.Database)
	if c.Password != "" {
		file := filepath.Join(d.dir, "pgpass")
		escape := strings.NewReplacer(`\`, `\\`, `:`, `\:`)
		text := strings.Join([]string{escape.Replace(c.Host), strconv.Itoa(int(c.Port)), "*", escape.Replace(c.User), escape.Replace(c.Password)}, ":")
		if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err == nil {
			line = "PGPASSFILE=" + file + " " + line
		}
	}
	return "Look at the data:  " + line
}

func parseEnrollToken(out []byte) (enrollToken, error) {
	var t enrollToken
	if err := json.Unmarshal(out, &t); err != nil {
		return t, fmt.Errorf("answer of collectors enroll-token: %w", err)
	}
	return t, nil
}

// collectorID returns the id that the collector was given when it enrolled.
func collectorID(stateDir string) (uuid.UUID, error) {
	id, err := uplink.LoadIdentity(stateDir)
	if err != nil {
		return uuid.Nil, err
	}
	return id.CollectorID, nil
}
