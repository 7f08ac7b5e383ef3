package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// AdminConfig sets the admin listener.
type AdminConfig struct {
	// Addr is the host:port to listen on, port 0 for a free one. The listener
	// has no authentication and serves profiles. Defaults to 127.0.0.1:9180.
	// An address that others reach shows them the inside of the process.
	Addr string

	// CheckTimeout is how long one round of readiness checks may take.
	// Defaults to 2s. Longer than what the prober waits, and the prober sees
	// its own timeout instead of the failing check's name.
	CheckTimeout time.Duration
}

// Check is one condition of readiness.
type Check struct {
	Name  string                          // constant, snake case; shown to the prober
	Ready func(ctx context.Context) error // returns when ctx ends
}

// Admin is the admin listener: /healthz, /readyz, /metrics, /debug/pprof/.
type Admin struct {
	cfg      AdminConfig
	log      *slog.Logger
	listener net.Listener
	gatherer prometheus.Gatherer
	checks   []Check

	mu      sync.Mutex
	failing string // names at the last round, to log changes only
}

// ListenAdmin opens the admin listener, so that an address that is taken is
// known at once. It serves when its Part runs.
func ListenAdmin(cfg AdminConfig, log *slog.Logger, gatherer prometheus.Gatherer, checks ...Check) (*Admin, error) {
	if cfg.Addr == "" {
		cfg.Addr = "127.0.0.1:9180"
	}
	if cfg.CheckTimeout == 0 {
		cfg.CheckTimeout = 2 * time.Second
	}
	listener, err := net.Listen("tcp", cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("listen for the admin on %s: %w", cfg.Addr, err)
	}
	return &Admin{cfg: cfg, log: log, listener: listener, gatherer: gatherer, checks: checks}, nil
}

// Addr returns the address that is listened on.
func (a *Admin) Addr() net.Addr { return a.listener.Addr() }

// Close closes the listener of an Admin whose Part never ran.
func (a *Admin) Close() error { return a.listener.Close() }

// Part returns the part that serves. Let it be the first: it then tells of the
// start and the stop of all others.
func (a *Admin) Part() Part { return Part{Name: "admin", Run: a.run} }

func (a *Admin) run(ctx context.Context, ready func()) error {
	server := &http.Server{
		Handler:           a.routes(),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
	stopped := context.AfterFunc(ctx, func() {
		// Nothing here is worth waiting for: probes and scrapes are repeated.
		_ = server.Close()
	})
	defer stopped()
	ready()
	if err := server.Serve(a.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

func (a *Admin) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		a.write(w, http.StatusOK, map[string]any{"status": "alive"})
	})
	mux.HandleFunc("GET /readyz", a.readyz)
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.gatherer, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// readyz answers 200, or 503 with the names of the failing checks. Their
// errors go to the log, once per change.
func (a *Admin) readyz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), a.cfg.CheckTimeout)
	defer cancel()
	errs := make([]error, len(a.checks))
	var wg sync.WaitGroup
	for i, check := range a.checks {
		wg.Go(func() { errs[i] = check.Ready(ctx) })
	}
	wg.Wait()

	failing := []string{}
	for i, err := range errs {
		if err != nil {
			failing = append(failing, a.checks[i].Name)
			errs[i] = fmt.Errorf("%s: %w", a.checks[i].Name, err)
		}
	}
	slices.Sort(failing)
	if r.Context().Err() == nil { // a prober that hung up says nothing about us
		a.logChange(strings.Join(failing, " "), errors.Join(errs...))
	}
	if len(failing) > 0 {
		a.write(w, http.StatusServiceUnavailable, map[string]any{"status": "unready", "failing": failing})
		return
	}
	a.write(w, http.StatusOK, map[string]any{"status": "ready"})
}

func (a *Admin) logChange(failing string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if failing == a.failing {
		return
	}
	a.failing = failing
	if err != nil {
		a.log.Warn("not ready", "err", err)
		return
	}
	a.log.Info("ready")
}

func (a *Admin) write(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	// The only failure left is a prober that hung up.
	_ = json.NewEncoder(w).Encode(body)
}
