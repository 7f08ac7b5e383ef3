package collector

import (
	"context"
	"os"
	"reflect"

	"pganalytics/pkg/daemon"
	"pganalytics/pkg/policy"
)

// Reload replaces the configuration. Servers that it adds, removes or changes
// are started, ended or started anew; the others are not touched. What needs a
// new start of the program is said and stays as it was. A faulty configuration
// changes nothing: the error has all faults.
func (c *Collector) Reload(cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	cfg.setDefaults(c.identity)
	if !reflect.DeepEqual(cfg.Spool, c.cfg.Spool) {
		c.log.Warn("changed settings of the spool need a new start of the collector")
	}
	c.cfg = cfg
	from := cfg.sender(c.identity)
	c.gatherer.sender.Store(&from)
	c.fleet.want(c.cfg.sources(c.catalogue, c.pulled))
	return nil
}

// Apply lays a pulled document over the configuration.
func (c *Collector) Apply(doc policy.Document) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range doc.Servers {
		if !c.cfg.has(name) && name != c.cfg.Host.Name {
			c.log.Warn("pulled configuration names a server that this collector does not have", "server", name)
		}
	}
	c.pulled = doc
	c.fleet.want(c.cfg.sources(c.catalogue, c.pulled))
}

// Reloading reads the configuration anew whenever something comes from
// signals. One that is faulty is refused, logged and counted, and the former
// one stays in force.
func (c *Collector) Reloading(signals <-chan os.Signal, load func() (Config, error)) daemon.Part {
	return daemon.Part{Name: "reload", Run: func(ctx context.Context, ready func()) error {
		ready()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-signals:
			}
			cfg, err := load()
			if err == nil {
				err = c.Reload(cfg)
			}
			c.metrics.reload(err)
			if err != nil {
				c.log.Error("the configuration is faulty; the former one stays in force", "err", err)
				continue
			}
			c.log.Info("configuration read again", "servers", len(cfg.Servers))
		}
	}}
}
