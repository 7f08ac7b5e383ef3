package collector

import (
	"context"
	"log/slog"
	"reflect"
	"sync"

	"golang.org/x/sync/errgroup"
)

// fleet runs a reader for each place and exchanges them one by one: what does
// not change keeps its connections and what it remembers. A reader that takes
// its time to end holds up its own successor and nobody else.
type fleet struct {
	open    func(source any) (runner, error)
	forget  func(place) // is told of a place once its reader has ended and none is to follow
	log     *slog.Logger
	metrics *metrics
	poke    chan struct{} // size 1: a forgotten signal, not a queue

	mu     sync.Mutex
	wanted map[place]any // sources; replaced as a whole
}

// runner reads one source until ctx ends, and returns once all it has read is
// handed over.
type runner interface {
	Run(ctx context.Context) error
}

// place is where something is read.
type place struct {
	kind   kind
	server string // name that the rows are stored under
}

type kind string

const (
	postgres kind = "server"
	logFiles kind = "log files"
	host     kind = "host"
)

// reader is one that runs.
type reader struct {
	source  any
	stop    context.CancelFunc
	stopped bool          // never to go on, even if it is wanted again
	done    chan struct{} // closed once all it has read is handed over
}

func newFleet(d *desk, log *slog.Logger, m *metrics) *fleet {
	return &fleet{open: d.open, forget: d.forget, log: log, metrics: m, poke: make(chan struct{}, 1)}
}

// want says what is to run from now on. It waits for nothing.
func (f *fleet) want(sources map[place]any) {
	f.mu.Lock()
	f.wanted = sources
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
	running := map[place]*reader{}
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
// are wanted, once there is no former one of their place.
func (f *fleet) adjust(ctx context.Context, group *errgroup.Group, running map[place]*reader) {
	f.mu.Lock()
	wanted := f.wanted
	f.mu.Unlock()
	for at, r := range running {
		source, ok := wanted[at]
		if ok && !r.stopped && reflect.DeepEqual(source, r.source) {
			continue // it may have ended by itself: nothing is to be read
		}
		r.stopped = true
		r.stop()
		select {
		case <-r.done:
			delete(running, at)
			if !ok {
				f.forget(at)
			}
		default:
		}
	}
	servers := 0
	for at, source := range wanted {
		if running[at] == nil && ctx.Err() == nil {
			f.start(ctx, group, running, at, source)
		}
		if at.kind == postgres {
			servers++
		}
	}
	f.metrics.servers.Set(float64(servers))
}

func (f *fleet) start(ctx context.Context, group *errgroup.Group, running map[place]*reader, at place, source any) {
	log := f.log.With("server", at.server, "what", string(at.kind))
	opened, err := f.open(source)
	if err != nil { // was checked; what it refers to has changed meanwhile
		log.Error("cannot be read until the configuration is read again", "err", err)
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &reader{source: source, stop: cancel, done: make(chan struct{})}
	running[at] = r
	log.Info("reading")
	group.Go(func() error {
		defer f.signal()
		defer close(r.done)
		defer cancel()
		err := opened.Run(ctx)
		log.Info("no longer read as it was")
		return err
	})
}
