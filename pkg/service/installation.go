package service

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pganalytics/pkg/bus"
	"pganalytics/pkg/store"
)

// Installation says how an operator's command reaches a running system: `serve`
// on this host by its data directory, anything else by its addresses.
type Installation struct {
	DataDir  string        `type:"path" default:"/var/lib/pganalytics" help:"Data directory of serve on this host."`
	NATS     StreamFlags   `embed:"" prefix:"nats-"`
	Database DatabaseFlags `embed:"" prefix:"database-"`
	CatalogueFlags
	Timeout time.Duration `default:"10s" help:"How long to wait for NATS and the database."`
}

// PKIDir returns the directory of the authorities of serve.
func (i *Installation) PKIDir() string { return filepath.Join(i.DataDir, pkiDir) }

// Endpoints returns the addresses of serve.
func (i *Installation) Endpoints() (Endpoints, error) {
	var e Endpoints
	data, err := os.ReadFile(filepath.Join(i.DataDir, endpointsFile))
	if err != nil {
		return e, err
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return e, fmt.Errorf("read endpoints: %w", err)
	}
	return e, nil
}

// Bus connects to the stream.
func (i *Installation) Bus(ctx context.Context, stderr io.Writer) (*bus.Bus, error) {
	flags := i.NATS
	if flags.URL == "" {
		e, err := i.Endpoints()
		if err != nil {
			return nil, fmt.Errorf("address of NATS (or give --nats-url): %w", err)
		}
		flags.URL, flags.User, flags.PasswordFile = e.NATS, operator, filepath.Join(i.DataDir, passwordFile)
	}
	cfg := flags.config("command")
	cfg.AnySettings = true
	return connectOnce(ctx, cfg, i.Timeout, stderr)
}

// Store opens the database.
func (i *Installation) Store(ctx context.Context, stderr io.Writer) (*store.Store, error) {
	return i.storeWith(ctx, stderr, func(*store.Config) {})
}

func (i *Installation) storeWith(ctx context.Context, stderr io.Writer, change func(*store.Config)) (*store.Store, error) {
	cat, err := i.Load()
	if err != nil {
		return nil, err
	}
	cfg, err := i.Database.config(0)
	if err != nil {
		return nil, err
	}
	change(&cfg)
	return store.Open(ctx, cfg, cat, commandLog(stderr), prometheus.NewRegistry())
}

// MakeStreams makes what is missing of the streams.
func MakeStreams(ctx context.Context, flags StreamFlags, stderr io.Writer) error {
	b, err := connectOnce(ctx, flags.config("command"), time.Minute, stderr)
	if err != nil {
		return err
	}
	defer func() { _ = b.Close(ctx) }()
	return b.EnsureStreams(ctx)
}

func connectOnce(ctx context.Context, cfg bus.Config, timeout time.Duration, stderr io.Writer) (*bus.Bus, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return bus.Connect(ctx, cfg, commandLog(stderr), prometheus.NewRegistry())
}
