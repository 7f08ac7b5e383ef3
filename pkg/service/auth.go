package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"golang.org/x/term"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/authsvc/pgstore"
	"pganalytics/pkg/bus"
	"pganalytics/pkg/fault"
	"pganalytics/pkg/httpserver"
	"pganalytics/pkg/identity"
	"pganalytics/pkg/identity/ca"
)

var (
	_ authsvc.CollectorStore = (*pgstore.Store)(nil)
	_ authsvc.TokenStore     = (*pgstore.Store)(nil)
	_ authsvc.UserStore      = (*pgstore.Store)(nil)
	_ authsvc.APITokenStore  = (*pgstore.Store)(nil)
	_ authsvc.AuditStore     = (*pgstore.Store)(nil)
	_ authsvc.Directory      = (*bus.Bucket)(nil)
)

// Auth is the configuration of the authsvc process.
type Auth struct {
	Process
	NATS       StreamFlags   `embed:"" prefix:"nats-"`
	Database   DatabaseFlags `embed:"" prefix:"database-"`
	PKI        PKIFlags      `embed:""`
	Users      ListenFlags   `embed:"" prefix:"users-" set:"listen=0.0.0.0:8443"`
	Collectors ListenFlags   `embed:"" prefix:"collectors-" set:"listen=0.0.0.0:8444"`
	IdentityFlags
	EnrollFlags
}

// PKIFlags say where the authorities' keys lie.
type PKIFlags struct {
	PKIDir string `type:"existingdir" required:"" help:"Directory that \"pganalytics init\" has made: authorities and signing key."`
}

// EnrollFlags are told to collectors when they enrol.
type EnrollFlags struct {
	CollectorURL string `help:"Where collectors push: https://host:port of the gateway, as they reach it."`
	TokenURL     string `help:"Where collectors get tokens and renew: https://host:port of authsvc's listener for collectors. Defaults to collector-url."`
}

// RunAuth runs the authsvc process until ctx ends.
func RunAuth(ctx context.Context, cfg Auth, stderr io.Writer, onReady func(Endpoints)) (err error) {
	p := newProcess(cfg.Process, stderr)
	p.onReady = onReady
	defer func() { err = errors.Join(err, p.close()) }()
	authority, err := ca.Init(ca.Options{Dir: cfg.PKI.PKIDir, TrustDomain: cfg.TrustDomain})
	if err != nil {
		return err
	}
	b, err := p.connect(ctx, cfg.NATS.config("authsvc"))
	if err != nil {
		return err
	}
	a := &auth{authority: authority, enroll: cfg.EnrollFlags, firstAdmin: filepath.Join(cfg.PKI.PKIDir, firstAdminFile)}
	trust := trustOf(cfg.PKI.PKIDir, cfg.IdentityFlags)
	if a.snapshot, a.verifier, err = p.verifier(&trust, b); err != nil {
		return err
	}
	users, collectors := httpserver.NewRouter(), httpserver.NewRouter()
	pg, err := p.auth(ctx, &cfg.Database, a, b, users, collectors)
	if err != nil {
		return err
	}
	for _, router := range []chi.Router{users, collectors} {
		p.info(router, httpserver.HealthChecks{NATS: b.Ready, Database: pg.Ping})
	}
	listen := p.listeners()
	userServer, err := listen.users(&cfg.Users)
	if err != nil {
		return err
	}
	collectorServer, err := listen.collectors(&cfg.Collectors, a.verifier)
	if err != nil {
		return errors.Join(err, userServer.Close())
	}
	p.endpoints.Users, p.endpoints.Collectors = userServer.URL(), collectorServer.URL()
	if err := errors.Join(p.serveRoutes(userServer, users), p.serveRoutes(collectorServer, collectors)); err != nil {
		return err
	}
	return p.run(ctx)
}

// trustOf returns the trust of a verifier that has the authority's own files.
func trustOf(pkiDir string, flags IdentityFlags) TrustFlags {
	return TrustFlags{
		CollectorCA:   filepath.Join(pkiDir, ca.CollectorCAFile),
		IssuerRoot:    filepath.Join(pkiDir, ca.RootFile),
		IdentityFlags: flags,
	}
}

// auth is what authsvc works with, as far as other parts of the process have
// it too.
type auth struct {
	authority *ca.Authority
	snapshot  *identity.Snapshot
	verifier  *identity.Verifier
	enroll    EnrollFlags
	// firstAdmin is the file for the first admin's password.
	firstAdmin string
}

// auth adds authsvc and mounts its routes. It does not wait for the database:
// tokens are handed out without it.
func (p *process) auth(ctx context.Context, db *DatabaseFlags, a *auth, b *bus.Bus, users, collectors chi.Router) (*pgstore.Store, error) {
	url, err := db.URL()
	if err != nil {
		return nil, err
	}
	pg, err := pgstore.Open(ctx, url)
	if err != nil {
		return nil, err
	}
	p.closeLater(func() error { pg.Close(); return nil })
	key, record := a.authority.SigningKey()
	signer, err := identity.NewSigner(identity.Tokens{}, key, record, nil)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	svc, err := authsvc.New(authsvc.Config{CollectorURL: a.enroll.CollectorURL, TokenURL: a.enroll.TokenURL}, authsvc.Needs{
		Collectors: pg, Tokens: pg, Users: pg, APITokens: pg, Audit: pg, Directory: b.IdentityBucket(),
		Snapshot: a.snapshot, Verifier: a.verifier, Signer: signer, Authority: a.authority,
		Log: p.log, Registry: p.registry,
	})
	if err != nil {
		return nil, err
	}
	p.apiTokenUsed = svc.APITokenUsed
	svc.UserRoutes(users)
	svc.CollectorRoutes(collectors)
	p.check("tokens", func(context.Context) error { return svc.Ready() })
	p.followAuthority(a.authority)
	p.part("authsvc", svc.Run)
	p.reconcileConfigs(pg, b)
	p.part("first admin", func(ctx context.Context) error { return p.makeFirstAdmin(ctx, svc, a.firstAdmin) })
	return pg, nil
}

// firstAdminFile holds the password of the first admin until it is changed.
const firstAdminFile = "first-admin-password"

// makeFirstAdmin makes the first admin once database and identities are there,
// and says where the password is; the password itself it shows only at a
// terminal, for logs are kept and read by others.
func (p *process) makeFirstAdmin(ctx context.Context, svc *authsvc.Service, file string) error {
	for wait := readyEvery; ; wait = min(2*wait, 30*time.Second) {
		pending, err := svc.FirstAdmin(ctx, file)
		if err == nil {
			if pending {
				p.tellFirstAdmin(file)
			}
			<-ctx.Done() // a part that ends ends the process
			return nil
		}
		if fault.ClassOf(err) != fault.Unavailable {
			p.log.Error("no first admin", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

func (p *process) tellFirstAdmin(file string) {
	p.log.Info("the first admin has not logged in yet", "username", authsvc.FirstAdminName, "password_file", file)
	terminal, ok := p.stderr.(*os.File)
	if !ok || !term.IsTerminal(int(terminal.Fd())) {
		return
	}
	password, err := os.ReadFile(file)
	if err != nil {
		p.log.Warn("first admin's password", "err", err)
		return
	}
	fmt.Fprintf(terminal, "\nfirst login: user %s, password %s\n\n", authsvc.FirstAdminName, strings.TrimSpace(string(password)))
}
