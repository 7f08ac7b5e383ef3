package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/collector"
	"pganalytics/pkg/collector/pgread"
	"pganalytics/pkg/daemon"
	"pganalytics/pkg/policy"
	"pganalytics/schemas"
)

// source says what is collected: a file for any number of servers, or flags
// for one.
type source struct {
	Config       string   `type:"path" xor:"source" help:"Configuration file (YAML) with servers, families, labels and limits; read again at SIGHUP."`
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

func (f *families) catalogue() (*catalogue.Catalogue, error) {
	dirs := []fs.FS{schemas.Metrics}
	for _, dir := range f.CatalogueDir {
		dirs = append(dirs, os.DirFS(dir))
	}
	return catalogue.Load(dirs...)
}

// load reads what is to be collected.
func (s *source) load(cat *catalogue.Catalogue) (collector.Config, error) {
	var cfg collector.Config
	if s.Config != "" {
		err := collector.ReadConfig(s.Config, cat, &cfg)
		return cfg, err
	}
	if s.ServerName == "" {
		return cfg, errors.New("one of --config and --server-name is needed")
	}
	conninfo, err := collector.Conninfo{Plain: s.Conninfo, File: s.ConninfoFile, Env: s.ConninfoEnv}.Resolve()
	if err != nil {
		return cfg, fmt.Errorf("server %q: %w", s.ServerName, err)
	}
	cfg.Policy.Databases = policy.Databases{Include: s.Include, Exclude: s.Exclude}
	cfg.Servers = []collector.Server{{Config: pgread.Config{Name: s.ServerName, Conninfo: conninfo}}}
	return cfg, nil
}

type runCommand struct {
	source
	StateDir    string        `type:"path" default:"/var/lib/pganalytics-collector" help:"Directory with the identity, and the spool unless the configuration says otherwise."`
	AdminListen string        `default:"127.0.0.1:9181" help:"Address of the admin listener: health, metrics, profiles. It has no access control."`
	LogLevel    slog.Level    `default:"info" help:"Least level that is logged: debug, info, warn or error."`
	LogFormat   string        `default:"json" enum:"json,text" help:"Format of log lines: json or text."`
	MaxPushRate float64       `default:"20" help:"Most batches that are pushed in a second: how fast what an outage held back is drained. Negative: no bound."`
	StopGrace   time.Duration `default:"5s" help:"How long to go on sending what is spooled when told to stop. What is left stays in the spool."`
}

// stopMargin is what a part may take beyond the grace: a query that runs, an
// fsync.
const stopMargin = 10 * time.Second

// gcPercent is how much garbage is let lie, of what is in use, unless GOGC says
// otherwise. With Go's own 100 half of the memory would be garbage; little is
// thrown away here, so that even at 25 a few collections a minute do. It is no
// limit of memory, which would have to know how many servers there are.
const gcPercent = 25

// Run collects until ctx ends, and reads the configuration again at SIGHUP.
func (c *runCommand) Run(ctx context.Context, io *streams) (err error) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	hangups := make(chan os.Signal, 1) // those that come meanwhile are one
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	cat, err := c.catalogue()
	if err != nil {
		return err
	}
	build := daemon.ThisBuild()
	load := func() (collector.Config, error) {
		cfg, err := c.load(cat)
		cfg.StateDir, cfg.Version = c.StateDir, build.Version
		cfg.Pusher.Grace, cfg.Pusher.MaxRate = c.StopGrace, c.MaxPushRate
		return cfg, err
	}
	cfg, err := load()
	if err != nil {
		return err
	}
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
	parts = append(parts, col.Reloading(hangups, load))
	return daemon.Run(ctx, log, c.StopGrace+stopMargin, parts...)
}

func (c *runCommand) logger(w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: c.LogLevel, ReplaceAttr: durations}
	if c.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

// durations are logged as 1m30s in JSON too, which has nanoseconds else.
func durations(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return a
}
