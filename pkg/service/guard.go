package service

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"pganalytics/pkg/bus"
)

// guard remembers what the last look at the streams' configuration found.
type guard struct {
	bus *bus.Bus
	log *slog.Logger

	mu   sync.Mutex
	last error
	seen bool
}

var errNotGuarded = errors.New("the streams' configuration has not been checked yet")

func (g *guard) ready(context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.seen {
		return errNotGuarded
	}
	return g.last
}

func (g *guard) run(ctx context.Context) error {
	tick := time.NewTicker(guardEvery)
	defer tick.Stop()
	for {
		g.look(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (g *guard) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, guardEvery/2)
	defer cancel()
	err := g.bus.Guard(ctx)
	if ctx.Err() != nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last, g.seen = err, true
	if err != nil {
		g.log.Error("stream is not as it must be", "err", err)
	}
}
