package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/collector"
	"pganalytics/pkg/collector/pgread"
	"pganalytics/pkg/daemon"
	"pganalytics/schemas"
)

// source says what is collected: a file for any number of servers, or flags
// for one.
type source struct {
	Config       string   `type:"path" xor:"source" help:"Configuration file (YAML) with servers, intervals, labels and limits of the spool."`
	ServerName   string   `xor:"source" help:"Without --config: name of the one server to read."`
	Conninfo     string   `help:"Without --config: the server's URL or DSN, without a password."`
	ConninfoFile string   `type:"path" help:"Without --config: file with the server's URL or DSN; may hold a password."`
	ConninfoEnv  string   `help:"Without --config: name of the variable that holds the server's URL or DSN; may hold a password."`
	Include      []string `help:"Without --config: patterns of databases to read. Defaults to all."`
	Exclude      []string `help:"Without --config: patterns of databases not to read."`
	families
}

// families says what there is to collect.
type families struct {
	CatalogueDir []string `type:"existingdir" help:"Directory with metric families of your own (*.yaml), beside the built-in ones. May be given several times."`
}

func (f *families) load() (*catalogue.Catalogue, error) {
	dirs := []fs.FS{schemas.Metrics}
	for _, dir := range f.CatalogueDir {
		dirs = append(dirs, os.DirFS(dir))
	}
	return catalogue.Load(dirs...)
}

func (s *source) load() (collector.Config, *catalogue.Catalogue, error) {
	var cfg collector.Config
	cat, err := s.families.load()
	if err != nil {
		return cfg, nil, err
	}
	if s.Config != "" {
		return cfg, cat, collector.ReadConfig(s.Config, cat, &cfg)
	}
	if s.ServerName == "" {
		return cfg, nil, errors.New("one of --config and --server-name is needed")
	}
	conninfo, err := collector.Conninfo{Plain: s.Conninfo, File: s.ConninfoFile, Env: s.ConninfoEnv}.Resolve()
	if err != nil {
		return cfg, nil, fmt.Errorf("server %q: %w", s.ServerName, err)
	}
	cfg.Servers = []pgread.Config{{Name: s.ServerName, Conninfo: conninfo, Include: s.Include, Exclude: s.Exclude}}
	return cfg, cat, nil
}

type runCommand struct {
	source
	StateDir    string        `type:"path" default:"/var/lib/pganalytics-collector" help:"Directory with the identity, and the spool unless the configuration says otherwise."`
	AdminListen string        `default:"127.0.0.1:9181" help:"Address of the admin listener: health, metrics, profiles. It has no access control."`
	LogLevel    slog.Level    `default:"info" help:"Least level that is logged: debug, info, warn or error."`
	LogFormat   string        `default:"json" enum:"json,text" help:"Format of log lines: json or text."`
	StopGrace   time.Duration `default:"5s" help:"How long to go on sending what is spooled when told to stop. What is left stays in the spool."`
}

// stopMargin is what a part may take beyond the grace: a query that runs, an
// fsync.
const stopMargin = 10 * time.Second

// Run collects until ctx ends.
func (c *runCommand) Run(ctx context.Context, io *streams) (err error) {
	cfg, cat, err := c.load()
	if err != nil {
		return err
	}
	build := daemon.ThisBuild()
	cfg.StateDir, cfg.Version, cfg.Pusher.Grace = c.StateDir, build.Version, c.StopGrace
	log, reg := c.logger(io.err), daemon.NewRegistry(build)
	col, err := collector.New(cfg, cat, log, reg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, col.Close()) }()
	admin, err := daemon.ListenAdmin(daemon.AdminConfig{Addr: c.AdminListen}, log, reg)
	if err != nil {
		return err
	}
	parts := append([]daemon.Part{admin.Part()}, col.Parts()...)
	return daemon.Run(ctx, log, c.StopGrace+stopMargin, parts...)
}

func (c *runCommand) logger(w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: c.LogLevel}
	if c.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}
