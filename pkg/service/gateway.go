package service

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"

	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/bus"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/gateway"
	"pganalytics/pkg/httpserver"
	"pganalytics/pkg/identity"
	"pganalytics/pkg/identity/ca"
	"pganalytics/schemas"
)

var (
	_ gateway.Publisher     = (*bus.Publisher)(nil)
	_ gateway.Quarantine    = (*bus.Quarantine)(nil)
	_ gateway.Authenticator = (*identity.Verifier)(nil)
	_ bus.Sink              = (*identity.Snapshot)(nil)
)

// Gateway is the configuration of the gateway process.
type Gateway struct {
	Process
	NATS       StreamFlags `embed:"" prefix:"nats-"`
	Trust      TrustFlags  `embed:""`
	Collectors ListenFlags `embed:"" prefix:"collectors-" set:"listen=0.0.0.0:8444"`
	CatalogueFlags
	PushFlags
}

// TrustFlags say whom a verifier believes.
type TrustFlags struct {
	CollectorCA string `type:"existingfile" required:"" help:"File with the PEM certificates that collectors' certificates must come from."`
	IssuerRoot  string `type:"existingfile" required:"" help:"File with the public keys that must vouch for the keys which sign access tokens."`
	IdentityFlags
}

// IdentityFlags say for whom identities are good and how old they may be.
type IdentityFlags struct {
	TrustDomain    string        `default:"pganalytics" help:"Trust domain of the collectors' identities."`
	IdentityMaxAge time.Duration `default:"15m" help:"How long a verifier may be without confirmation that it knows every revocation; beyond it the answer is 503."`
}

// ListenFlags set one TLS listener.
type ListenFlags struct {
	Listen  string `default:"${listen}" help:"Address of the listener, port 0 for a free one."`
	TLSCert string `type:"existingfile" required:"" help:"File with the listener's PEM certificate and its chain; read again when it changes."`
	TLSKey  string `type:"existingfile" required:"" help:"File with the certificate's private key."`
}

// PushFlags bound what one push may take.
type PushFlags struct {
	MaxWireBytes     int64         `default:"16777216" help:"Largest body in bytes as it is sent, compressed or not."`
	MaxBodyBytes     int64         `default:"33554432" help:"Largest body in bytes after decompression."`
	MaxInFlightBytes int64         `default:"67108864" help:"Memory that all pushes together may take; beyond it they are answered 503 and come again."`
	PublishTimeout   time.Duration `default:"10s" help:"How long the stream may take to confirm a batch."`
	DeadLetterQuota  uint64        `default:"100" help:"Dead letters of one collector at which its batches are answered 429, so that it does not fill them for all; it ends when some are retried or discarded. 0 never refuses."`
	CheckIn          time.Duration `default:"60s" help:"When a collector shall come back even if it has nothing to send."`
}

// config returns the gateway's configuration on a stream whose largest message
// is maxPayload bytes.
func (f *PushFlags) config(maxPayload int64) gateway.Config {
	limits := push.DefaultLimits()
	limits.MaxBodyBytes = f.MaxBodyBytes
	limits.MaxEncodedBytes = int(maxPayload - bus.Headroom)
	return gateway.Config{
		Limits:           limits,
		MaxWireBytes:     f.MaxWireBytes,
		MaxInFlightBytes: f.MaxInFlightBytes,
		PublishTimeout:   f.PublishTimeout,
		CheckIn:          f.CheckIn,
	}
}

// RunGateway runs the gateway process until ctx ends.
func RunGateway(ctx context.Context, cfg Gateway, stderr io.Writer, onReady func(Endpoints)) (err error) {
	cat, err := cfg.Load()
	if err != nil {
		return err
	}
	p := newProcess(cfg.Process, stderr)
	p.onReady = onReady
	defer func() { err = errors.Join(err, p.close()) }()
	b, err := p.connect(ctx, cfg.NATS.config("gateway"))
	if err != nil {
		return err
	}
	p.guard(b)
	_, verifier, err := p.verifier(&cfg.Trust, b)
	if err != nil {
		return err
	}
	router := httpserver.NewRouter()
	p.info(router, httpserver.HealthChecks{NATS: b.Ready})
	if err := p.push(&cfg.PushFlags, cat, b, verifier, router); err != nil {
		return err
	}
	server, err := p.listeners().collectors(&cfg.Collectors, verifier)
	if err != nil {
		return err
	}
	p.endpoints.Collectors = server.URL()
	if err := p.serveRoutes(server, router); err != nil {
		return err
	}
	return p.run(ctx)
}

// push mounts the gateway's routes.
func (p *process) push(flags *PushFlags, cat *catalogue.Catalogue, b *bus.Bus, verifier *identity.Verifier, router chi.Router) error {
	quarantine := b.Quarantine(flags.DeadLetterQuota)
	if flags.DeadLetterQuota > 0 {
		p.part("quarantine", quarantine.Run)
	}
	g, err := gateway.New(flags.config(b.MaxPayload()), b.Publisher(), verifier, quarantine, p.configs(b), cat, p.registry)
	if err != nil {
		return err
	}
	g.Routes(router)
	return nil
}

// info mounts the routes that every service has.
func (p *process) info(router chi.Router, checks httpserver.HealthChecks) {
	router.Get("/api/v1/health", httpserver.Health(p.build, p.started, checks))
	router.Get("/version", httpserver.Version(p.build))
	router.Get("/openapi.json", httpserver.Handle(func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("Content-Type", "application/vnd.oai.openapi+json")
		_, err := w.Write(schemas.OpenAPI)
		return err
	}))
}

// verifier returns a verifier over a snapshot that follows the identity bucket.
func (p *process) verifier(trust *TrustFlags, b *bus.Bus) (*identity.Snapshot, *identity.Verifier, error) {
	anchors, err := ca.LoadCertificates(trust.CollectorCA)
	if err != nil {
		return nil, nil, fmt.Errorf("--collector-ca: %w", err)
	}
	roots, err := ca.LoadRoots(trust.IssuerRoot)
	if err != nil {
		return nil, nil, fmt.Errorf("--issuer-root: %w", err)
	}
	snapshot, err := identity.NewSnapshot(roots, p.log, p.registry)
	if err != nil {
		return nil, nil, err
	}
	verifier, err := identity.NewVerifier(identity.VerifierConfig{
		CollectorCAs: anchors,
		TrustDomain:  trust.TrustDomain,
		MaxAge:       trust.IdentityMaxAge,
		OnAPIToken: func(id string, at time.Time) {
			if p.apiTokenUsed != nil {
				p.apiTokenUsed(id, at)
			}
		},
	}, snapshot)
	if err != nil {
		return nil, nil, err
	}
	p.followTrust(*trust, snapshot, verifier)
	p.check("identity", func(context.Context) error { return verifier.Ready() })
	p.part("identity snapshot", func(ctx context.Context) error { return b.IdentityBucket().Follow(ctx, snapshot) })
	return snapshot, verifier, nil
}

// listeners opens the listeners of one process, which share their metrics.
type listeners struct {
	process *process
	metrics *httpserver.Metrics
}

func (p *process) listeners() *listeners {
	return &listeners{process: p, metrics: httpserver.NewMetrics(p.registry)}
}

// collectors opens the listener for collectors, who present a certificate.
func (l *listeners) collectors(flags *ListenFlags, verifier *identity.Verifier) (*httpserver.Server, error) {
	return l.open("collectors", flags, func(c *httpserver.Certificate) *tls.Config {
		return httpserver.CollectorTLS(c, verifier.CollectorCAs, identity.RenewalGrace)
	})
}

// users opens the listener for people and for enrolment.
func (l *listeners) users(flags *ListenFlags) (*httpserver.Server, error) {
	return l.open("users", flags, httpserver.UserTLS)
}

func (l *listeners) open(name string, flags *ListenFlags, config func(*httpserver.Certificate) *tls.Config) (*httpserver.Server, error) {
	certificate, err := httpserver.LoadCertificate(flags.TLSCert, flags.TLSKey, l.process.log)
	if err != nil {
		return nil, fmt.Errorf("certificate of the listener for %s: %w", name, err)
	}
	server, err := httpserver.Listen(httpserver.Config{Name: name, Addr: flags.Listen}, config(certificate), l.process.log, l.metrics)
	if err != nil {
		return nil, err
	}
	return server, nil
}
