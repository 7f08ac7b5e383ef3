package service

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"pganalytics/pkg/bus"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/cmdline"
	"pganalytics/pkg/store"
	"pganalytics/schemas"
)

// Process holds the flags of every service.
type Process struct {
	AdminListen   string        `default:"127.0.0.1:9180" help:"Address of the admin listener: health, metrics, profiles. It has no access control; keep it where only operators reach it."`
	LogLevel      slog.Level    `default:"info" help:"Least level that is logged: debug, info, warn or error."`
	LogFormat     string        `default:"json" enum:"json,text" help:"Format of log lines: json or text."`
	StartTimeout  time.Duration `default:"2m" help:"How long to wait for the neighbours at the start; then the process ends with an error."`
	StopTimeout   time.Duration `default:"30s" help:"How long each part may take to finish what it has taken when the process stops."`
	EndpointsFile string        `type:"path" help:"File to write the addresses to once the process is ready, as JSON. Useful with port 0."`
}

func (p *Process) logger(w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: p.LogLevel}
	if p.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

// StreamFlags say how to reach NATS.
type StreamFlags struct {
	URL          string `help:"URL of the NATS servers, comma separated."`
	User         string `help:"User to log in to NATS as."`
	PasswordFile string `type:"path" help:"File with that user's password; read at every connect."`
	CAFile       string `type:"path" help:"File with the PEM certificates that a tls:// server is checked against. Defaults to the system's."`
	Prefix       string `help:"Prefix of all stream, bucket and subject names, so that several installations can share a server."`
	MinPayload   int64  `default:"8388608" help:"Least max_payload in bytes that the NATS servers must have. With less the service is not ready: larger batches would be refused."`
	StreamLimits
}

// StreamLimits say what the streams look like. All services of an installation
// must have the same ones: they go unready when a stream differs.
type StreamLimits struct {
	Replicas            int           `default:"1" help:"Replicas of every stream; 3 with three servers, or the loss of one disk loses what it alone held."`
	BatchesMaxBytes     int64         `default:"10737418240" help:"Bytes at which the stream of batches refuses more. It must bite before the disk is full: a full disk breaks a stream until the server restarts."`
	DeadLettersMaxBytes int64         `default:"1073741824" help:"Bytes at which the dead letters refuse more; what cannot be stored then waits on the stream."`
	DuplicateWindow     time.Duration `default:"2m" help:"How long the stream itself recognises a repeated batch. It only saves work: the ledger decides."`
	AckWait             time.Duration `default:"1m" help:"How long a batch may be out with an ingester that gives no sign before it is handed out again."`
	MaxAckPending       int           `default:"65536" help:"Batches that may be out at once, over all ingesters; at least 4 × ingesters × loaders × fetch-messages, or they starve each other."`
}

func (f *StreamFlags) config(name string) bus.Config {
	c := f.StreamLimits.config(name)
	c.URL, c.User, c.PasswordFile, c.CAFile, c.Prefix, c.MinPayload = f.URL, f.User, f.PasswordFile, f.CAFile, f.Prefix, f.MinPayload
	return c
}

func (l *StreamLimits) config(name string) bus.Config {
	return bus.Config{
		Name:                "pganalytics-" + name,
		Replicas:            l.Replicas,
		BatchesMaxBytes:     l.BatchesMaxBytes,
		DeadLettersMaxBytes: l.DeadLettersMaxBytes,
		DuplicateWindow:     l.DuplicateWindow,
		AckWait:             l.AckWait,
		MaxAckPending:       l.MaxAckPending,
	}
}

// DatabaseFlags say how to reach TimescaleDB. The URL may hold a password, so
// it has no flag: it comes from a file, PGANALYTICS_DATABASE_URL or
// DATABASE_URL.
type DatabaseFlags struct {
	URLFile          string        `type:"path" help:"File with the database's URL. Without it PGANALYTICS_DATABASE_URL or DATABASE_URL is read."`
	MaxConns         int32         `default:"8" help:"Sessions that may be open at once; at least loaders + 4."`
	ConnectTimeout   time.Duration `default:"10s" help:"Longest time for making one session."`
	StatementTimeout time.Duration `default:"60s" help:"Longest time for one statement of a load."`
	LockTimeout      time.Duration `default:"10s" help:"Longest wait for a lock."`
	KeyTimeout       time.Duration `default:"1s" help:"Longest wait for another loader that holds the same batch; then its neighbours are stored without it."`
	IdleTimeout      time.Duration `default:"30s" help:"How long a transaction may sit idle before the database ends it."`
}

// URL returns the database's URL or a sentence that says how to give it.
func (f *DatabaseFlags) URL() (string, error) {
	url, err := cmdline.Secret(f.URLFile, "PGANALYTICS_DATABASE_URL", "DATABASE_URL")
	if err != nil {
		return "", fmt.Errorf("--database-url-file: %w", err)
	}
	if url == "" {
		return "", errors.New("no database: set DATABASE_URL or --database-url-file")
	}
	return url, nil
}

func (f *DatabaseFlags) config(replayWindow time.Duration) (store.Config, error) {
	url, err := f.URL()
	return store.Config{
		URL:              url,
		MaxConns:         f.MaxConns,
		ConnectTimeout:   f.ConnectTimeout,
		StatementTimeout: f.StatementTimeout,
		LockTimeout:      f.LockTimeout,
		KeyTimeout:       f.KeyTimeout,
		IdleTimeout:      f.IdleTimeout,
		ReplayWindow:     replayWindow,
	}, err
}

// CatalogueFlags add metric families to the built-in ones.
type CatalogueFlags struct {
	CatalogueDir []string `type:"existingdir" help:"Directory with metric families of your own (*.yaml), beside the built-in ones. May be given several times."`
}

// Load returns the catalogue of built-in and own families.
func (f *CatalogueFlags) Load() (*catalogue.Catalogue, error) {
	sources := []fs.FS{schemas.Metrics}
	for _, dir := range f.CatalogueDir {
		sources = append(sources, os.DirFS(dir))
	}
	return catalogue.Load(sources...)
}

// TrimFlags say how much of what is stored stays on the stream.
type TrimFlags struct {
	ReplayWindow time.Duration `default:"72h" help:"How long a stored batch stays on the stream, for a database restored from a backup; longer than a backup is old."`
	HighWater    float64       `default:"0.8" help:"Part of batches-max-bytes above which stored batches leave before their window is over, with an alarm."`
	TrimInterval time.Duration `default:"10s" help:"Time between two rounds of the trimmer."`
}

func (f *TrimFlags) config() bus.TrimConfig {
	return bus.TrimConfig{ReplayWindow: f.ReplayWindow, HighWater: f.HighWater, Interval: f.TrimInterval}
}

// commandLog is the log of a command: what a person must know, as text.
func commandLog(stderr io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelError}))
}
