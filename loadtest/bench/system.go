package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"pganalytics/pkg/service"
)

// connections to the database, of the ingester and of the baseline.
const connections = 2

// system is a running `serve`, its database, and a sender that is enrolled.
type system struct {
	dir       string
	db        *database
	serve     *process
	endpoints service.Endpoints
	sender    *sender
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
	s.serve, err = start(s.dir, "serve", s.db, "pganalytics", "serve", "--data-dir", s.data(),
		"--catalogue-dir", families, "--loaders", fmt.Sprint(connections),
		"--users-listen", "127.0.0.1:0", "--collectors-listen", "127.0.0.1:0", "--nats-batches-max-bytes", fmt.Sprint(4<<30))
	if err != nil {
		return s, err
	}
	if s.endpoints, err = s.serve.ready(ctx); err != nil {
		return s, err
	}
	fleet := fleet{
		dir: s.dir, pki: filepath.Join(s.data(), "pki"),
		users: s.endpoints.Users, tokens: s.endpoints.Collectors, pushes: s.endpoints.Collectors,
	}
	all, err := fleet.enrol(ctx, s.db.url(), 1)
	if err != nil {
		return s, err
	}
	s.sender = all[0]
	s.meter = meter{[]*process{s.serve}, s.db.postgres}
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
		errs = append(errs, stop(s.serve))
	}
	if s.db != nil {
		errs = append(errs, s.db.drop())
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}
