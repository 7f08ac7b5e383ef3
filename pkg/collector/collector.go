// Package collector runs beside PostgreSQL servers: it reads them by the
// catalogue's queries, keeps what it read in a spool on disk, and pushes that
// to the gateway.
//
// Invariants: a batch is taken once the spool has it on disk, and leaves it
// only by the gateway's word; while the spool takes nothing, nothing is
// collected. The package knows nothing of what lies behind the gateway.
package collector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/collector/spool"
	"pganalytics/pkg/collector/uplink"
	"pganalytics/pkg/daemon"
	"pganalytics/pkg/policy"
	"pganalytics/pkg/policy/pulled"
)

// Collector is a collector that is ready to run.
type Collector struct {
	log       *slog.Logger
	catalogue *catalogue.Catalogue
	identity  *uplink.Identity
	client    *uplink.Client
	spool     *spool.Spool
	pusher    *uplink.Pusher
	puller    *uplink.Puller
	gatherer  *gatherer
	fleet     *fleet
	teller    *teller
	metrics   *metrics
	sections  chan []batch.Section // not buffered: what is read is taken at once or nothing more is read

	mu     sync.Mutex
	cfg    Config
	pulled policy.Document
}

// New opens the spool and makes everything else; it connects to nothing. Close
// it when it has run. Errors: uplink.ErrNotEnrolled, spool.ErrLocked.
func New(cfg Config, cat *catalogue.Catalogue, log *slog.Logger, reg prometheus.Registerer) (*Collector, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	id, err := uplink.LoadIdentity(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	cfg.setDefaults(id)
	c := &Collector{log: log, catalogue: cat, identity: id, cfg: cfg, metrics: newMetrics(reg), sections: make(chan []batch.Section)}
	if c.spool, err = spool.Open(cfg.Spool, log, reg); err != nil {
		return nil, err
	}
	p := newPressure(c.spool.Stats, log, c.metrics)
	c.fleet = newFleet(newDesk(id.CollectorID, cat, p.upTo, log, reg, c.sections), log, c.metrics)
	if c.gatherer, err = newGatherer(cfg.sender(id), c.spool, log, c.metrics); err != nil {
		return nil, errors.Join(err, c.spool.Close())
	}
	c.client = uplink.NewClient(id, cfg.StateDir, reg)
	c.pusher = uplink.NewPusher(cfg.Pusher, c.client, c.spool, log)
	c.puller = uplink.NewPuller(uplink.PullerConfig{
		File: filepath.Join(cfg.StateDir, uplink.PulledName), Apply: c.Apply, Resend: c.resend,
	}, c.client, cat, log)
	c.Apply(c.puller.Document())
	c.teller = newTeller(&cfg, c.spool, c.pusher, reg, log)
	return c, nil
}

// Close closes spool and connections once the parts have ended.
func (c *Collector) Close() error {
	c.client.Close()
	if err := c.spool.Close(); err != nil {
		return fmt.Errorf("close spool: %w", err)
	}
	return nil
}

// Parts returns what has to run. Stopped in reverse order, reading ends first,
// and then the pusher has its grace for what is spooled.
func (c *Collector) Parts() []daemon.Part {
	return []daemon.Part{
		{Name: "status", Run: func(ctx context.Context, ready func()) error {
			ready()
			c.teller.run(ctx)
			return nil
		}},
		{Name: "certificate", Run: func(ctx context.Context, ready func()) error {
			ready()
			return c.client.KeepCertificate(ctx, c.log)
		}},
		{Name: "push", Run: func(ctx context.Context, ready func()) error {
			ready()
			return c.pusher.Run(ctx)
		}},
		{Name: "configuration", Run: func(ctx context.Context, ready func()) error {
			ready()
			return c.puller.Run(ctx)
		}},
		{Name: "collect", Run: func(ctx context.Context, ready func()) error {
			ready()
			return c.collect(ctx)
		}},
	}
}

// resend sends the batches of these numbers again.
func (c *Collector) resend(ctx context.Context, numbers []pulled.Range) (found, missing int, err error) {
	ranges := make([]spool.Range, len(numbers))
	for i, r := range numbers {
		ranges[i] = spool.Range(r)
	}
	return c.pusher.Resend(ctx, ranges)
}

// collect reads all servers until ctx ends and returns when everything that
// was read is in the spool.
func (c *Collector) collect(ctx context.Context) error {
	var gathering errgroup.Group
	gathering.Go(func() error {
		c.gatherer.run(ctx, c.sections)
		return nil
	})
	err := c.fleet.run(ctx)
	close(c.sections)
	return errors.Join(err, gathering.Wait())
}
