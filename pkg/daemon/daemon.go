// Package daemon runs a process: its parts start in order and stop in reverse
// order, so that a part can rely on those before it for its whole life. The
// package also has the admin listener and the metrics registry of a process.
// It knows nothing of what the parts do.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// Part is one thing that runs for the life of the process: a listener, a
// consumer, a watcher.
type Part struct {
	Name string // constant, lower case; stands in logs and errors

	// Run does the part's work until ctx ends, then finishes what it has taken
	// and returns. It calls ready once, when parts after it may rely on it. To
	// return before ctx ends is a failure, with or without an error.
	Run func(ctx context.Context, ready func()) error
}

// Run starts the parts one after the other, each when the one before is
// ready, and runs them until ctx ends or one of them fails. Then it stops
// them in reverse order, each fully before the next. stopTimeout is how long
// each part may take to stop; one that takes longer is left behind.
//
// Run returns nil after an orderly stop, else the first error, which names
// its part; errors after the first one are logged.
func Run(ctx context.Context, log *slog.Logger, stopTimeout time.Duration, parts ...Part) error {
	r := &runner{
		log:    log,
		failed: make(chan *running, len(parts)), // one slot each: a part never waits to report its end
	}
	culprit := r.start(ctx, parts)
	if culprit == nil && ctx.Err() == nil {
		log.Info("started", "parts", len(parts))
		select {
		case <-ctx.Done():
		case culprit = <-r.failed:
		}
	}
	log.Info("stopping", "after_failure", culprit != nil)
	return r.stop(stopTimeout, culprit)
}

// Signals returns a context that ends at SIGINT or SIGTERM. From then on these
// signals have their default effect again: a second one ends the process at
// once. The returned function releases the signals.
func Signals(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// runner holds the parts that were started, in order.
type runner struct {
	log    *slog.Logger
	parts  []*running
	failed chan *running
}

// running is a started part. err may be read once done is closed.
type running struct {
	name   string
	cancel context.CancelFunc
	ready  chan struct{}
	done   chan struct{}
	err    error
}

// failure returns the error of a part that ended before it was told to.
func (p *running) failure() error {
	if p.err == nil {
		return fmt.Errorf("%s: ended by itself", p.name)
	}
	return fmt.Errorf("%s: %w", p.name, p.err)
}

// start returns when all parts are ready or ctx has ended (nil), or with the
// part that failed.
func (r *runner) start(ctx context.Context, parts []Part) *running {
	for _, part := range parts {
		if ctx.Err() != nil {
			return nil
		}
		p := r.launch(ctx, part)
		select {
		case <-p.ready:
			r.log.Debug("part is ready", "part", p.name)
		case <-ctx.Done():
			return nil
		case culprit := <-r.failed:
			return culprit
		}
	}
	return nil
}

// launch runs the part with a context of its own: the end of ctx must not
// reach all parts at once, or they would not stop in order.
func (r *runner) launch(ctx context.Context, part Part) *running {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p := &running{name: part.Name, cancel: cancel, ready: make(chan struct{}), done: make(chan struct{})}
	r.parts = append(r.parts, p)
	go func() {
		p.err = part.Run(own, sync.OnceFunc(func() { close(p.ready) }))
		if own.Err() != nil && errors.Is(p.err, context.Canceled) {
			p.err = nil // it stopped because it was told to
		}
		close(p.done)
		r.failed <- p
	}()
	return p
}

// stop stops the started parts from the last to the first and returns the
// first error there was.
func (r *runner) stop(timeout time.Duration, culprit *running) error {
	var first error
	if culprit != nil {
		first = culprit.failure()
	}
	for i := len(r.parts) - 1; i >= 0; i-- {
		p := r.parts[i]
		err := p.stop(timeout)
		switch {
		case p == culprit || err == nil:
		case first == nil:
			first = err
		default:
			r.log.Error("part failed to stop", "err", err)
		}
	}
	return first
}

// stop ends the part and waits for it.
func (p *running) stop(timeout time.Duration) error {
	p.cancel()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-p.done:
		if p.err != nil {
			return fmt.Errorf("%s: %w", p.name, p.err)
		}
		return nil
	case <-timer.C:
		return fmt.Errorf("%s: did not stop within %s", p.name, timeout)
	}
}
