package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/authsvc/pgstore"
	"pganalytics/pkg/collector/uplink"
	"pganalytics/pkg/identity/ca"
	"pganalytics/pkg/service"
)

// system is a running `serve`, its database, and a sender that is enrolled.
type system struct {
	dir       string
	server    string // URL of the server's database that was given
	database  string
	pool      *pgxpool.Pool // of the baseline, and to look
	serve     *exec.Cmd
	log       *os.File
	endpoints service.Endpoints
	sender    *sender
	postgres  int // pid of the server's main process
}

func startSystem(ctx context.Context) (s *system, err error) {
	s = &system{server: os.Getenv("DATABASE_URL"), database: "pganalytics_bench_" + strings.ToLower(rand.Text()[:8])}
	if s.server == "" {
		return nil, errors.New("DATABASE_URL is not set; make bench starts a private server")
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	if s.dir, err = os.MkdirTemp("", "pganalytics-bench-"); err != nil {
		return s, err
	}
	if err := s.exec(ctx, "create database "+s.database); err != nil {
		return s, err
	}
	cfg, err := pgxpool.ParseConfig(s.server)
	if err != nil {
		return s, err
	}
	cfg.ConnConfig.Database, cfg.MaxConns = s.database, connections+1
	if s.pool, err = pgxpool.NewWithConfig(ctx, cfg); err != nil {
		return s, err
	}
	if err := s.startServe(ctx); err != nil {
		return s, err
	}
	if err := s.enrol(ctx); err != nil {
		return s, err
	}
	return s, s.findPostgres(ctx)
}

func (s *system) url() string {
	c := s.pool.Config().ConnConfig
	return fmt.Sprintf("host='%s' port=%d user='%s' password='%s' dbname='%s'", c.Host, c.Port, c.User, c.Password, s.database)
}

// startServe runs the pganalytics that lies beside this program.
func (s *system) startServe(ctx context.Context) error {
	families := filepath.Join(s.dir, "families")
	for name, file := range catalogueFiles() {
		path := filepath.Join(families, filepath.Base(name))
		if err := errors.Join(os.MkdirAll(families, 0o700), os.WriteFile(path, file.Data, 0o600)); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if s.log, err = os.Create(filepath.Join(s.dir, "serve.log")); err != nil {
		return err
	}
	s.serve = exec.CommandContext(context.WithoutCancel(ctx), filepath.Join(filepath.Dir(self), "pganalytics"), "serve", "--data-dir", filepath.Join(s.dir, "data"),
		"--catalogue-dir", families, "--log-level", "warn", "--loaders", fmt.Sprint(connections),
		"--users-listen", "127.0.0.1:0", "--collectors-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0",
		"--nats-batches-max-bytes", fmt.Sprint(4<<30))
	s.serve.Env = append(os.Environ(), "PGANALYTICS_DATABASE_URL="+s.url())
	s.serve.Stdout, s.serve.Stderr = s.log, s.log
	s.serve.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := s.serve.Start(); err != nil {
		return fmt.Errorf("start serve (make bench builds it): %w", err)
	}
	install := service.Installation{DataDir: filepath.Join(s.dir, "data")}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if s.endpoints, err = install.Endpoints(); err == nil {
			return nil
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			log, _ := os.ReadFile(s.log.Name())
			return fmt.Errorf("serve is not ready: %w\n%s", err, bytes.TrimSpace(log))
		}
	}
}

func (s *system) enrol(ctx context.Context) error {
	store, err := pgstore.Open(ctx, s.url())
	if err != nil {
		return err
	}
	defer store.Close()
	token, err := authsvc.CreateEnrollmentToken(ctx, store, authsvc.EnrollmentRequest{Actor: "cli:bench"})
	if err != nil {
		return err
	}
	anchors, err := ca.LoadCertificates(filepath.Join(s.dir, "data", "pki", ca.ServerCAFile))
	if err != nil {
		return err
	}
	id, err := uplink.Enroll(ctx, uplink.Enrollment{
		URL: s.endpoints.Users, CAFingerprint: ca.Fingerprint(anchors[0]), Token: token.Token,
		Name: "bench", Hostname: "bench", Version: "bench", StateDir: filepath.Join(s.dir, "state"),
	})
	if err != nil {
		return err
	}
	s.sender, err = newSender(ctx, id)
	return err
}

// exec runs one statement on the database that was given.
func (s *system) exec(ctx context.Context, sql string) error {
	conn, err := pgx.Connect(ctx, s.server)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, sql)
	return err
}

func (s *system) stored(ctx context.Context) (n int, err error) {
	return n, s.pool.QueryRow(ctx, "select count(*) from ingest.batch").Scan(&n)
}

// checkCount compares the rows in the table with those that must be there.
func (s *system) checkCount(ctx context.Context, sh shape, want int) error {
	var n int
	if err := s.pool.QueryRow(ctx, "select count(*) from metrics."+sh.family).Scan(&n); err != nil {
		return err
	}
	if n != want {
		return fmt.Errorf("%s has %d rows, not %d", sh.family, n, want)
	}
	return nil
}

// stop ends serve and deletes what the benchmark made.
func (s *system) stop() error {
	ctx := context.Background()
	var errs []error
	if s.serve != nil && s.serve.Process != nil {
		errs = append(errs, s.serve.Process.Signal(syscall.SIGTERM), s.serve.Wait())
	}
	if s.log != nil {
		errs = append(errs, s.log.Close())
	}
	if s.pool != nil {
		s.pool.Close()
		errs = append(errs, s.exec(ctx, "drop database if exists "+s.database+" with (force)"))
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}
