package collector

import (
	"context"
	"log/slog"
	"reflect"
	"sync"

	"golang.org/x/sync/errgroup"

	"pganalytics/pkg/collector/pgread"
)

// fleet runs a reader for each server and exchanges them one by one: what
// does not change keeps its connections and what it remembers. A reader that
// takes its time to end holds up its own successor and nobody else.
type fleet struct {
	open    func(pgread.Config) (*pgread.Server, error)
	log     *slog.Logger
	metrics *metrics
	poke    chan struct{} // size 1: a forgotten signal, not a queue

	mu     sync.Mutex
	wanted map[string]pgread.Config // by server; replaced as a whole
}

// reader is one that runs.
type reader struct {
	cfg     pgread.Config
	stop    context.CancelFunc
	stopped bool          // never to go on, even if it is wanted again
	done    chan struct{} // closed once all it has read is handed over
}

func newFleet(open func(pgread.Config) (*pgread.Server, error), log *slog.Logger, m *metrics) *fleet {
	return &fleet{open: open, log: log, metrics: m, poke: make(chan struct{}, 1)}
}

// want says what is to run from now on. It waits for nothing.
func (f *fleet) want(readers map[string]pgread.Config) {
	f.mu.Lock()
	f.wanted = readers
	f.mu.Unlock()
	f.signal()
}

func (f *fleet) signal() {
	select {
	case f.poke <- struct{}{}:
	default:
	}
}

// run runs what is wanted until ctx ends, and returns when all readers have.
func (f *fleet) run(ctx context.Context) error {
	var group errgroup.Group
	running := map[string]*reader{}
	for {
		f.adjust(ctx, &group, running)
		select {
		case <-ctx.Done():
			return group.Wait()
		case <-f.poke:
		}
	}
}

// adjust ends readers that are not wanted as they are and starts those that
// are wanted, once there is no former one of their server.
func (f *fleet) adjust(ctx context.Context, group *errgroup.Group, running map[string]*reader) {
	f.mu.Lock()
	wanted := f.wanted
	f.mu.Unlock()
	for name, r := range running {
		cfg, ok := wanted[name]
		if ok && !r.stopped && reflect.DeepEqual(cfg, r.cfg) {
			continue // it may have ended by itself: nothing is to be read
		}
		r.stopped = true
		r.stop()
		select {
		case <-r.done:
			delete(running, name)
		default:
		}
	}
	for name, cfg := range wanted {
		if running[name] == nil && ctx.Err() == nil {
			f.start(ctx, group, running, name, cfg)
		}
	}
	f.metrics.servers.Set(float64(len(wanted)))
}

func (f *fleet) start(ctx context.Context, group *errgroup.Group, running map[string]*reader, name string, cfg pgread.Config) {
	server, err := f.open(cfg)
	if err != nil { // was checked; what it refers to has changed meanwhile
		f.log.Error("server cannot be read until the configuration is read again", "server", name, "err", err)
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &reader{cfg: cfg, stop: cancel, done: make(chan struct{})}
	running[name] = r
	f.log.Info("reading server", "server", name, "families", len(cfg.Families))
	group.Go(func() error {
		defer f.signal()
		defer close(r.done)
		defer cancel()
		err := server.Run(ctx)
		f.log.Info("server is no longer read as it was", "server", name)
		return err
	})
}
