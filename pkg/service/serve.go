package service

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"pganalytics/pkg/bus"
	"pganalytics/pkg/bus/natsserver"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/httpserver"
	"pganalytics/pkg/identity/ca"
	"pganalytics/pkg/store"
)

// Serve is the configuration of all services in one process, with the stream
// in it.
type Serve struct {
	Process
	DataDir          string        `type:"path" default:"/var/lib/pganalytics" help:"Directory of the stream and of the authorities' keys. It must survive the process, on a disk that keeps what was synced."`
	Hosts            []string      `default:"localhost,127.0.0.1" help:"Host names and addresses by which users and collectors reach this host; they go into the server's certificate. The first is told to collectors."`
	UsersListen      string        `default:"127.0.0.1:8443" help:"Address of the listener for people and for enrolment."`
	CollectorsListen string        `default:"127.0.0.1:8444" help:"Address of the listener for collectors."`
	NATSListen       string        `default:"127.0.0.1:0" help:"Address of the stream's own listener, for operators' commands and further ingesters; they need the password in data-dir/nats/password."`
	Stream           StreamLimits  `embed:"" prefix:"nats-"`
	Database         DatabaseFlags `embed:"" prefix:"database-"`
	CatalogueFlags
	IdentityFlags
	EnrollFlags
	PushFlags
	IngestFlags
}

// The files that `serve` keeps in its data directory.
const (
	pkiDir        = "pki"
	natsDir       = "nats"
	passwordFile  = "nats/password"
	endpointsFile = "endpoints.json"
)

// Validate reports every fault at once.
func (c *Serve) Validate() error {
	_, loadErr := c.Load()
	_, urlErr := c.Database.URL()
	errs := []error{c.check(c.Stream.AckWait, c.Database.MaxConns), loadErr, urlErr}
	if len(c.Hosts) == 0 {
		errs = append(errs, errors.New("hosts: at least one is needed"))
	}
	_, _, err := c.natsListen()
	return errors.Join(append(errs, err)...)
}

func (c *Serve) natsListen() (host string, port int, err error) {
	host, text, err := net.SplitHostPort(c.NATSListen)
	if err == nil {
		port, err = strconv.Atoi(text)
	}
	if err != nil {
		return "", 0, fmt.Errorf("nats-listen %q: %w", c.NATSListen, err)
	}
	return host, port, nil
}

// RunServe runs everything in one process until ctx ends.
func RunServe(ctx context.Context, cfg Serve, stderr io.Writer, onReady func(Endpoints)) (err error) {
	if err := cfg.Validate(); err != nil {
		return err
	}
	cat, err := cfg.Load()
	dbURL, urlErr := cfg.Database.URL()
	if err = errors.Join(err, urlErr); err != nil {
		return err
	}
	if cfg.EndpointsFile == "" {
		cfg.EndpointsFile = filepath.Join(cfg.DataDir, endpointsFile)
	}
	p := newProcess(cfg.Process, stderr)
	p.onReady = onReady
	defer func() { err = errors.Join(err, p.close()) }()
	authority, err := initPKI(cfg.DataDir, cfg.TrustDomain, cfg.Hosts)
	if err != nil {
		return err
	}
	if err := p.retry(ctx, "prepare the database", func(ctx context.Context) error { return Migrate(ctx, dbURL, cat) }); err != nil {
		return err
	}
	if err := store.EnsureReader(ctx, dbURL); err != nil {
		p.log.Warn("prepare the role that reads metrics", "err", err)
	}
	b, err := p.embed(ctx, &cfg)
	if err != nil {
		return err
	}
	return p.serve(ctx, &cfg, cat, authority, b)
}

// serve adds the three services and their two listeners and runs them.
func (p *process) serve(ctx context.Context, cfg *Serve, cat *catalogue.Catalogue, authority *ca.Authority, b *bus.Bus) error {
	dir := filepath.Join(cfg.DataDir, pkiDir)
	listen := p.listeners()
	tls := ListenFlags{TLSCert: filepath.Join(dir, ca.ServerCertFile), TLSKey: filepath.Join(dir, ca.ServerKeyFile)}
	trust := trustOf(dir, cfg.IdentityFlags)
	snapshot, verifier, err := p.verifier(&trust, b)
	if err != nil {
		return err
	}
	tls.Listen = cfg.UsersListen
	userServer, err := listen.users(&tls)
	if err != nil {
		return err
	}
	p.closeLater(unserved(userServer))
	tls.Listen = cfg.CollectorsListen
	collectorServer, err := listen.collectors(&tls, verifier)
	if err != nil {
		return err
	}
	p.closeLater(unserved(collectorServer))
	if cfg.CollectorURL == "" {
		cfg.CollectorURL = reachedAs(cfg.Hosts[0], collectorServer.Addr())
	}

	// It is renewed months before its end, and the listeners read it again.
	p.daily("renew the server certificate", func() error { return ca.RenewServer(dir, cfg.Hosts, time.Now()) })
	p.guard(b)
	if err := p.ingest(ctx, &cfg.IngestFlags, &cfg.Database, cat, b); err != nil {
		return err
	}
	users, collectors := httpserver.NewRouter(), httpserver.NewRouter()
	a := &auth{authority: authority, snapshot: snapshot, verifier: verifier, enroll: cfg.EnrollFlags, firstAdmin: filepath.Join(cfg.DataDir, firstAdminFile)}
	pg, err := p.auth(ctx, &cfg.Database, a, b, users, collectors)
	if err != nil {
		return err
	}
	if err := p.push(&cfg.PushFlags, cat, b, verifier, collectors); err != nil {
		return err
	}
	checks := httpserver.HealthChecks{NATS: b.Ready, Database: pg.Ping}
	p.info(users, checks)
	p.info(collectors, checks)
	// As others reach it: it is told to collectors.
	p.endpoints.Users, p.endpoints.Collectors = reachedAs(cfg.Hosts[0], userServer.Addr()), collectorServer.URL()
	if err := errors.Join(p.serveRoutes(userServer, users), p.serveRoutes(collectorServer, collectors)); err != nil {
		return err
	}
	return p.run(ctx)
}

// unserved closes a listener unless it served, and closed, already.
func unserved(s *httpserver.Server) func() error {
	return func() error {
		if err := s.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	}
}

// reachedAs returns the URL of a listener under the name by which others reach
// this host.
func reachedAs(host string, listener net.Addr) string {
	_, port, _ := net.SplitHostPort(listener.String())
	return (&url.URL{Scheme: "https", Host: net.JoinHostPort(host, port)}).String()
}

// initPKI makes what is missing of the authorities and of the server's
// certificate.
func initPKI(dataDir, trustDomain string, hosts []string) (*ca.Authority, error) {
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	return ca.Init(ca.Options{Dir: filepath.Join(dataDir, pkiDir), TrustDomain: trustDomain, ServerNames: hosts})
}

// Migrate brings the database up to date: migrations, then the tables of the
// catalogue.
func Migrate(ctx context.Context, databaseURL string, cat *catalogue.Catalogue) error {
	if err := store.Migrate(ctx, databaseURL); err != nil {
		return err
	}
	return store.EnsureSchema(ctx, databaseURL, cat)
}

// embed starts the stream in this process and makes what is missing of it.
func (p *process) embed(ctx context.Context, cfg *Serve) (*bus.Bus, error) {
	password, err := natsPassword(filepath.Join(cfg.DataDir, passwordFile))
	if err != nil {
		return nil, err
	}
	host, port, err := cfg.natsListen()
	if err != nil {
		return nil, err
	}
	server, err := natsserver.Start(natsserver.Config{
		StoreDir: filepath.Join(cfg.DataDir, natsDir),
		Listen:   true,
		Host:     host,
		Port:     port,
		User:     operator,
		Password: password,
		MaxBytes: cfg.Stream.BatchesMaxBytes + cfg.Stream.DeadLettersMaxBytes,
	}, p.log)
	if err != nil {
		return nil, err
	}
	p.closeLater(func() error { server.Stop(); return nil })
	p.endpoints.NATS = server.URL()
	busConfig := cfg.Stream.config("serve")
	busConfig.InProcess = server
	busConfig.User, busConfig.PasswordFile = operator, filepath.Join(cfg.DataDir, passwordFile)
	b, err := p.connect(ctx, busConfig)
	if err != nil {
		return nil, err
	}
	return b, p.retry(ctx, "make the streams", b.EnsureStreams)
}

// operator is the one user of the embedded stream.
const operator = "operator"

// natsPassword returns the password in the file, which it makes if missing.
func natsPassword(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err == nil && len(data) > 0 {
		return string(data), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("password of the stream: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", fmt.Errorf("password of the stream: %w", err)
	}
	password := rand.Text()
	if err := os.WriteFile(path, []byte(password), 0o600); err != nil {
		return "", fmt.Errorf("password of the stream: %w", err)
	}
	return password, nil
}
