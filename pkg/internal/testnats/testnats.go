// Package testnats runs the product's own embedded NATS server for one test, in the test's process and folder.
package testnats

import (
	"log/slog"
	"net/url"
	"strconv"
	"testing"

	"pganalytics/pkg/bus/natsserver"
)

// Server is one test's own.
type Server struct {
	tb  testing.TB
	cfg natsserver.Config
	srv *natsserver.Server
	url string
}

// Start starts a server on a free port of 127.0.0.1 and stops it when the test ends. change may alter its
// configuration beforehand: to require a login, or to leave it little room.
func Start(tb testing.TB, change ...func(*natsserver.Config)) *Server {
	tb.Helper()
	s := &Server{tb: tb, cfg: natsserver.Config{StoreDir: tb.TempDir(), Listen: true}}
	for _, f := range change {
		f(&s.cfg)
	}
	s.start()
	s.url = s.srv.URL()
	s.cfg.Port = port(tb, s.url)
	tb.Cleanup(s.Stop)
	return s
}

// URL is the clients' address. It stays the same while the server is stopped and when it is started again.
func (s *Server) URL() string { return s.url }

// Stop shuts the server down and returns when it is gone. Stopping twice is the same as once.
func (s *Server) Stop() { s.srv.Stop() }

// Restart stops the server, if it runs, and starts it on the same folder and port. change may alter its
// configuration from then on.
func (s *Server) Restart(change ...func(*natsserver.Config)) {
	s.tb.Helper()
	s.Stop()
	for _, f := range change {
		f(&s.cfg)
	}
	s.start()
}

func (s *Server) start() {
	s.tb.Helper()
	srv, err := natsserver.Start(s.cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		s.tb.Fatalf("testnats: %v", err)
	}
	s.srv = srv
}

func port(tb testing.TB, address string) int {
	tb.Helper()
	u, err := url.Parse(address)
	if err != nil {
		tb.Fatalf("testnats: %v", err)
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		tb.Fatalf("testnats: %v", err)
	}
	return port
}
