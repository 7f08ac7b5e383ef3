package main

import (
	"context"
	"syscall"
	"time"

	"pganalytics/pkg/bus"
)

// What a sabotaged drill breaks.
const (
	sabotageHold   = "hold"   // holds are released as soon as they are taken
	sabotageLedger = "ledger" // the restored ledger is empty
	sabotageRewind = "rewind" // the restored database pretends to hold what was committed
)

// pretend makes every row of an ingester's progress, also those that it made
// after the backup, one of more commits than it remembers.
const pretend = `
insert into ingest.progress (ingester, slot, commits, stream_incarnation, ack_floor, at)
select ingester, n, 1000000000, max(stream_incarnation), max(ack_floor), now()
from ingest.progress p, generate_series(0, 1000) as s(n)
group by ingester, n
on conflict (ingester, slot) do update set commits = excluded.commits`

// tamper changes the restored database before any ingester sees it.
func (d *drill) tamper(ctx context.Context) error {
	switch d.o.sabotage {
	case sabotageLedger:
		return d.cluster.exec(ctx, "truncate ingest.batch")
	case sabotageRewind:
		return d.cluster.exec(ctx, pretend)
	}
	return nil
}

// restore puts the backup in the place of the database. A sabotaged drill stops
// the services meanwhile, so that they see only what it has made of it.
func (d *drill) restore(ctx context.Context) error {
	if d.o.sabotage == "" {
		return d.cluster.restore()
	}
	if err := syscall.Kill(d.serve.PID(), syscall.SIGSTOP); err != nil {
		return err
	}
	defer func() { _ = syscall.Kill(d.serve.PID(), syscall.SIGCONT) }() // it is there as long as we are
	if err := d.cluster.restore(); err != nil {
		return err
	}
	return d.tamper(ctx)
}

// letGo releases every hold until ctx ends.
func letGo(ctx context.Context, holds *bus.Holds) {
	for ctx.Err() == nil {
		list, err := holds.List(ctx)
		for _, h := range list {
			if err == nil {
				_ = holds.Release(ctx, h) // the next round tries again
			}
		}
		time.Sleep(time.Millisecond)
	}
}
