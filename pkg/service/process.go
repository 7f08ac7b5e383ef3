package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"

	"pganalytics/pkg/bus"
	"pganalytics/pkg/daemon"
	"pganalytics/pkg/httpserver"
	"pganalytics/pkg/identity/access"
)

// Endpoints are the addresses of a process, by what is found there.
type Endpoints struct {
	Admin      string `json:"admin"`
	Users      string `json:"users,omitempty"`
	Collectors string `json:"collectors,omitempty"`
	NATS       string `json:"nats,omitempty"`

	// What is found there, for the test of who may use it.
	routes map[string]chi.Routes
}

// process gathers what one process consists of while it is built, then runs
// it. What is built first may be relied on by what comes later, and is closed
// last.
type process struct {
	flags     Process
	log       *slog.Logger
	registry  *prometheus.Registry
	build     daemon.Build
	started   time.Time
	parts     []daemon.Part
	checks    []daemon.Check
	closers   []func() error
	endpoints Endpoints
	stderr    io.Writer
	// apiTokenUsed tells authsvc, where it is part of the process. It is set
	// before anything is served.
	apiTokenUsed func(id string, at time.Time)
	onReady      func(Endpoints) // for whoever runs the service in its own process; may be nil
}

func newProcess(flags Process, stderr io.Writer) *process {
	build := daemon.ThisBuild()
	return &process{
		flags:    flags,
		log:      flags.logger(stderr),
		registry: daemon.NewRegistry(build),
		build:    build,
		started:  time.Now(),
		stderr:   stderr,
	}
}

// part adds something that runs until the process stops and is ready at once.
func (p *process) part(name string, run func(ctx context.Context) error) {
	p.parts = append(p.parts, daemon.Part{Name: name, Run: func(ctx context.Context, ready func()) error {
		ready()
		return run(ctx)
	}})
}

// serveRoutes has the listener answer the router's routes. It errs on a route
// that the table of package access does not have: nobody could say who may use
// it.
func (p *process) serveRoutes(server *httpserver.Server, router chi.Router) error {
	err := chi.Walk(router, func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		if access.To(method, route) == (access.Access{}) {
			return fmt.Errorf("nobody may use %s %s", method, route)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if p.endpoints.routes == nil {
		p.endpoints.routes = map[string]chi.Routes{}
	}
	p.endpoints.routes[server.URL()] = router
	p.parts = append(p.parts, server.Part(router))
	return nil
}

func (p *process) check(name string, ready func(ctx context.Context) error) {
	p.checks = append(p.checks, daemon.Check{Name: name, Ready: ready})
}

// run serves until ctx ends. The admin listener starts first and stops last,
// so that it tells of the others' start and stop.
func (p *process) run(ctx context.Context) error {
	admin, err := daemon.ListenAdmin(daemon.AdminConfig{Addr: p.flags.AdminListen}, p.log, p.registry, p.checks...)
	if err != nil {
		return err
	}
	p.endpoints.Admin = "http://" + admin.Addr().String()
	p.part("endpoints", p.announce)
	return daemon.Run(ctx, p.log, p.flags.StopTimeout, append([]daemon.Part{admin.Part()}, p.parts...)...)
}

// announce runs last. It waits until every check is content, as /readyz would
// say, before it tells where the process is found.
func (p *process) announce(ctx context.Context) error {
	if !p.awaitReady(ctx) {
		return nil
	}
	p.log.Info("ready", "version", p.build.Version, "endpoints", p.endpoints)
	if p.flags.EndpointsFile != "" {
		if err := writeEndpoints(p.flags.EndpointsFile, p.endpoints); err != nil {
			return err
		}
	}
	if p.onReady != nil {
		p.onReady(p.endpoints)
	}
	<-ctx.Done()
	return nil
}

// awaitReady returns false when ctx ended first.
func (p *process) awaitReady(ctx context.Context) bool {
	tick := time.NewTicker(readyEvery)
	defer tick.Stop()
	for {
		content := true
		for _, c := range p.checks {
			content = content && c.Ready(ctx) == nil
		}
		if content {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

// readyEvery is the time between two looks at the checks during the start.
const readyEvery = 50 * time.Millisecond

// writeEndpoints puts the whole file under its name or nothing, for readers
// wait for it to appear.
func writeEndpoints(path string, e Endpoints) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write endpoints: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write endpoints: %w", err)
	}
	return nil
}

// close closes what was opened, the newest first.
func (p *process) close() error {
	var errs []error
	for _, c := range slices.Backward(p.closers) {
		errs = append(errs, c())
	}
	return errors.Join(errs...)
}

func (p *process) closeLater(c func() error) { p.closers = append(p.closers, c) }

// connect opens the connection to NATS and watches over the streams: a service
// goes unready when someone changed them to what breaks the promise.
func (p *process) connect(ctx context.Context, cfg bus.Config) (*bus.Bus, error) {
	ctx, cancel := context.WithTimeout(ctx, p.flags.StartTimeout)
	defer cancel()
	b, err := bus.Connect(ctx, cfg, p.log, p.registry)
	if err != nil {
		return nil, err
	}
	p.closeLater(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), p.flags.StopTimeout)
		defer cancel()
		return b.Close(ctx)
	})
	p.check("nats", b.Ready)
	return b, nil
}

// guardEvery is how long a wrong configuration of a stream may go unnoticed.
const guardEvery = time.Minute

// guard lets the service be ready only while the streams are as they must be.
func (p *process) guard(b *bus.Bus) {
	g := &guard{bus: b, log: p.log}
	p.check("streams", g.ready)
	p.part("stream guard", g.run)
}

// retry calls f until it succeeds, the time for the start is over, or ctx ends.
func (p *process) retry(ctx context.Context, what string, f func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, p.flags.StartTimeout)
	defer cancel()
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		p.log.Warn("wait for a neighbour", "for", what, "err", err)
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, err)
		case <-time.After(retryEvery):
		}
	}
}

// retryEvery is the pause between two attempts at the start.
const retryEvery = time.Second
