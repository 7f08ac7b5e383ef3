package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"pganalytics/loadtest/internal/fleet"
	"pganalytics/loadtest/internal/program"
	"pganalytics/pkg/service"
)

// connections to the database, of the ingester and of the baseline.
const connections = 2

// system is a running `serve`, its database, and a sender that is enrolled.
type system struct {
	dir       string
	db        *database
	serve     *program.Process
	endpoints service.Endpoints
	sender    *fleet.Sender
	meter     meter
}

func startSystem(ctx context.Context) (s *system, err error) {
	s = &system{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	if s.dir, err = os.MkdirTemp("", "pganalytics-bench-"); err != nil {
		return s, err
	}
	if s.db, err = newDatabase(ctx); err != nil {
		return s, err
	}
	families, err := writeFamilies(s.dir)
	if err != nil {
		return s, err
	}
	s.serve, err = program.Start(s.dir, "serve", s.db.url(), "pganalytics", "serve", "--data-dir", s.data(),
		"--catalogue-dir", families, "--loaders", fmt.Sprint(connections),
		"--users-listen", "127.0.0.1:0", "--collectors-listen", "127.0.0.1:0", "--nats-batches-max-bytes", fmt.Sprint(4<<30))
	if err != nil {
		return s, err
	}
	if s.endpoints, err = s.serve.Ready(ctx); err != nil {
		return s, err
	}
	one := fleet.Fleet{
		Dir: s.dir, PKI: filepath.Join(s.data(), "pki"),
		Users: s.endpoints.Users, Tokens: s.endpoints.Collectors, Pushes: s.endpoints.Collectors,
		Connections: senders + probing,
	}
	all, err := one.Enrol(ctx, s.db.url(), 1)
	if err != nil {
		return s, err
	}
	s.sender = all[0]
	s.meter = meter{[]*program.Process{s.serve}, s.db.postgres}
	return s, nil
}

func (s *system) data() string { return filepath.Join(s.dir, "data") }

// writeFamilies puts the benchmark's families where a service reads them.
func writeFamilies(dir string) (string, error) {
	families := filepath.Join(dir, "families")
	for name, file := range catalogueFiles() {
		path := filepath.Join(families, filepath.Base(name))
		if err := errors.Join(os.MkdirAll(families, 0o700), os.WriteFile(path, file.Data, 0o600)); err != nil {
			return "", err
		}
	}
	return families, nil
}

// stop ends serve and deletes what the benchmark made.
func (s *system) stop() error {
	var errs []error
	if s.serve != nil {
		errs = append(errs, program.Stop(s.serve))
	}
	if s.db != nil {
		errs = append(errs, s.db.drop())
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}
