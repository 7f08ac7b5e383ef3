// Package httpserver is what every HTTP listener of the system shares:
// listeners with TLS that reload their certificates, errors as RFC 9457
// problems, request ids, one access log line per request, metrics, limits and
// an orderly drain. An answer never holds an input, an inner error or a stack.
// The package knows no route but health and version.
package httpserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/go-chi/chi/v5"

	"pganalytics/pkg/daemon"
)

// Config sets one listener.
type Config struct {
	// Name tells the listeners of a process apart in logs and metrics:
	// "collectors", "users". It has no default.
	Name string

	// Addr is the host:port to listen on, port 0 for a free one. It has no
	// default.
	Addr string

	// AllowPlain lets the listener speak HTTP without TLS when no TLS
	// configuration is given. Addr must then be a loopback address. Defaults to
	// false.
	AllowPlain bool

	// HeaderTimeout is how long the TLS handshake, and then a request's header,
	// may take. Defaults to 10s. Much longer, and idle strangers hold
	// connections.
	HeaderTimeout time.Duration

	// StallTimeout is how long a body may make no progress. Defaults to 15s.
	StallTimeout time.Duration

	// BodyTimeout is how long a whole body may take. Defaults to 2m. Too short,
	// and senders on slow links can never deliver their largest bodies.
	BodyTimeout time.Duration

	// AnswerTimeout is how long a request may take from the end of its header
	// to the end of its answer. Defaults to 3m. Not above BodyTimeout, and the
	// answer to the slowest body is cut off.
	AnswerTimeout time.Duration

	// IdleTimeout is how long a connection may stay without a request. Defaults
	// to 2m, so that a collector that pushes every minute keeps its connection.
	IdleTimeout time.Duration

	// DrainTimeout is how long requests in flight may take to finish when the
	// listener stops. Defaults to 20s. Longer than the time the daemon gives a
	// part to stop, and that decides.
	DrainTimeout time.Duration

	// MaxHeaderBytes is the largest request header in bytes. Defaults to 16 KiB;
	// tokens are about 1 KiB.
	MaxHeaderBytes int
}

func (c Config) withDefaults() Config {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.HeaderTimeout, 10 * time.Second},
		{&c.StallTimeout, 15 * time.Second},
		{&c.BodyTimeout, 2 * time.Minute},
		{&c.AnswerTimeout, 3 * time.Minute},
		{&c.IdleTimeout, 2 * time.Minute},
		{&c.DrainTimeout, 20 * time.Second},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if c.MaxHeaderBytes == 0 {
		c.MaxHeaderBytes = 16 << 10
	}
	return c
}

// Validate reports all faults. Zero values stand for the defaults.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	if c.Name == "" {
		errs = append(errs, errors.New("listener name is empty"))
	}
	host, _, err := net.SplitHostPort(c.Addr)
	if err != nil {
		errs = append(errs, fmt.Errorf("listen address %q: %w", c.Addr, err))
	} else if c.AllowPlain && !isLoopback(host) {
		errs = append(errs, fmt.Errorf("listen address %q: plain HTTP is for loopback addresses only", c.Addr))
	}
	for name, d := range map[string]time.Duration{
		"header timeout": c.HeaderTimeout, "stall timeout": c.StallTimeout, "body timeout": c.BodyTimeout,
		"idle timeout": c.IdleTimeout, "drain timeout": c.DrainTimeout,
	} {
		if d < 0 {
			errs = append(errs, fmt.Errorf("%s %s is negative", name, d))
		}
	}
	if c.AnswerTimeout <= c.BodyTimeout {
		errs = append(errs, fmt.Errorf("answer timeout %s is not above the body timeout %s", c.AnswerTimeout, c.BodyTimeout))
	}
	if c.MaxHeaderBytes < 4<<10 {
		errs = append(errs, fmt.Errorf("max header bytes %d is below 4096", c.MaxHeaderBytes))
	}
	return errors.Join(errs...)
}

// isLoopback reports whether nobody outside this machine reaches host. An
// empty host means all addresses.
func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

// Server is one listener. It accepts connections from Listen on and answers
// them when its Part runs.
type Server struct {
	cfg      Config
	tls      *tls.Config
	log      *slog.Logger
	metrics  *Metrics
	listener net.Listener
}

// Listen opens the listener, so that an address that is taken is known at once
// and a free port can be handed on. A nil tlsConfig means plain HTTP, which
// cfg must allow.
func Listen(cfg Config, tlsConfig *tls.Config, log *slog.Logger, metrics *Metrics) (*Server, error) {
	if tlsConfig == nil && !cfg.AllowPlain {
		return nil, fmt.Errorf("listener %s: neither TLS nor leave to speak plain HTTP", cfg.Name)
	}
	if tlsConfig != nil {
		cfg.AllowPlain = false
	}
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("listener %s: %w", cfg.Name, err)
	}
	listener, err := net.Listen("tcp", cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("listener %s: %w", cfg.Name, err)
	}
	return &Server{
		cfg: cfg.withDefaults(), tls: tlsConfig, log: log.With("listener", cfg.Name),
		metrics: metrics, listener: listener,
	}, nil
}

// Addr returns the address that is listened on.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// URL returns the address as the beginning of a URL, for callers on this
// machine.
func (s *Server) URL() string {
	if s.tls == nil {
		return "http://" + s.Addr().String()
	}
	return "https://" + s.Addr().String()
}

// Close closes the listener of a Server whose Part never ran.
func (s *Server) Close() error { return s.listener.Close() }

// Part returns the part that answers requests with h. When it stops it takes
// no more connections, lets the requests in flight finish and closes each
// connection after its answer.
func (s *Server) Part(h http.Handler) daemon.Part {
	return daemon.Part{
		Name: "listener " + s.cfg.Name,
		Run:  func(ctx context.Context, ready func()) error { return s.run(ctx, ready, h) },
	}
}

func (s *Server) run(ctx context.Context, ready func(), h http.Handler) error {
	server := s.httpServer(h)
	served := make(chan error, 1) // the result must not hold the goroutine when the drain gives up
	go func() {
		if s.tls == nil {
			served <- server.Serve(s.listener)
			return
		}
		served <- server.ServeTLS(s.listener, "", "")
	}()
	s.log.Info("listening", "addr", s.Addr().String(), "tls", s.tls != nil)
	ready()
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}

	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.DrainTimeout)
	defer cancel()
	err := server.Shutdown(drain)
	if err != nil {
		err = fmt.Errorf("requests still in flight after %s: %w", s.cfg.DrainTimeout, err)
		_ = server.Close() // cuts what is left
	}
	if end := <-served; !errors.Is(end, http.ErrServerClosed) {
		err = errors.Join(err, fmt.Errorf("serve: %w", end))
	}
	return err
}

func (s *Server) httpServer(h http.Handler) *http.Server {
	routes, _ := h.(chi.Routes)
	return &http.Server{
		Handler:           s.observe(s.limitBody(h), routes),
		TLSConfig:         s.tls.Clone(), // net/http writes to it
		ReadHeaderTimeout: s.cfg.HeaderTimeout,
		WriteTimeout:      s.cfg.AnswerTimeout,
		IdleTimeout:       s.cfg.IdleTimeout,
		MaxHeaderBytes:    s.cfg.MaxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelInfo),
		HTTP2: &http.HTTP2Config{
			// A collector sends a few pushes at a time. What is more waits in
			// the sender, not in our buffers.
			MaxConcurrentStreams:          32,
			MaxReceiveBufferPerConnection: 512 << 10,
			MaxReceiveBufferPerStream:     256 << 10,
			SendPingTimeout:               30 * time.Second,
			PingTimeout:                   15 * time.Second,
		},
	}
}
