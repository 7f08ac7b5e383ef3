package service

import (
	"context"
	"time"

	"pganalytics/pkg/authsvc/pgstore"
	"pganalytics/pkg/bus"
	"pganalytics/pkg/gateway"
	"pganalytics/pkg/policy/pulled"
)

var (
	_ gateway.Configs = (*pulled.Snapshot)(nil)
	_ bus.Sink        = (*pulled.Snapshot)(nil)
	_ pulled.Bucket   = (*bus.Bucket)(nil)
	_ pulled.Versions = (*pgstore.Store)(nil)
)

// configs follows the bucket. It is no condition of being ready: without it
// collectors go on with what they have, and their pushes are taken.
func (p *process) configs(b *bus.Bus) *pulled.Snapshot {
	s := pulled.NewSnapshot(b.ConfigBucket())
	p.part("collectors' configuration", func(ctx context.Context) error { return b.ConfigBucket().Follow(ctx, s) })
	return s
}

// reconcileEvery is how late a configuration reaches the gateways at the latest
// whose publication failed, and how long a bucket made anew lacks them.
const reconcileEvery = 30 * time.Second

// reconcileConfigs publishes what is committed and not published, for as long
// as the process runs.
func (p *process) reconcileConfigs(pg *pgstore.Store, b *bus.Bus) {
	p.part("publish configurations", func(ctx context.Context) error {
		tick := time.NewTicker(reconcileEvery)
		defer tick.Stop()
		for {
			if err := pulled.Reconcile(ctx, pg, b.ConfigBucket()); err != nil && ctx.Err() == nil {
				p.log.Warn("configurations are not reconciled", "err", err)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	})
}
