package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"pganalytics/pkg/bus"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/ingester"
	"pganalytics/pkg/store"
)

var (
	_ ingester.Source      = (*bus.Consumer)(nil)
	_ ingester.DeadLetters = (*bus.DeadLetters)(nil)
	_ ingester.Store       = (*store.Store)(nil)
	_ ingester.Ledger      = (*store.Store)(nil)
	_ ingester.Buried      = (*bus.DeadLetters)(nil)
	_ ingester.History     = history{}
	_ ingester.Holds       = gapHolds{}
)

// Ingester is the configuration of the ingester process.
type Ingester struct {
	Process
	NATS     StreamFlags   `embed:"" prefix:"nats-"`
	Database DatabaseFlags `embed:"" prefix:"database-"`
	CatalogueFlags
	IngestFlags
}

// IngestFlags say how batches get from the stream into the store.
type IngestFlags struct {
	ingester.Config
	TrimFlags
	AutoRewind    time.Duration `default:"15m" help:"How much of the stream is stored again without asking when the database turns out to be behind it: restored from a backup, or replaced by a stale standby. More waits for people, and stays on the stream; 0 always waits."`
	MaintainEvery time.Duration `default:"10m" help:"Time between two rounds that drop what has outlived its retention."`
}

// Validate reports every fault at once.
func (c *Ingester) Validate() error {
	_, err := c.Load()
	_, urlErr := c.Database.URL()
	return errors.Join(c.check(c.NATS.AckWait, c.Database.MaxConns), err, urlErr)
}

func (f *IngestFlags) check(ackWait time.Duration, maxConns int32) error {
	errs := []error{f.Config.Validate(), f.TrimFlags.config().Validate()}
	if f.ExtendEvery > ackWait/2 {
		errs = append(errs, fmt.Errorf("extend-every: %v is above half of ack-wait, %v", f.ExtendEvery, ackWait))
	}
	if least := f.Loaders + 4; int(maxConns) < least {
		errs = append(errs, fmt.Errorf("database-max-conns: %d is below loaders + 4, %d", maxConns, least))
	}
	if f.AutoRewind < 0 {
		errs = append(errs, fmt.Errorf("auto-rewind: %v is below zero", f.AutoRewind))
	}
	if f.MaintainEvery <= 0 {
		errs = append(errs, fmt.Errorf("maintain-every: %v is not above zero", f.MaintainEvery))
	}
	return errors.Join(errs...)
}

// RunIngester runs the ingester process until ctx ends.
func RunIngester(ctx context.Context, cfg Ingester, stderr io.Writer, onReady func(Endpoints)) (err error) {
	if err := cfg.Validate(); err != nil {
		return err
	}
	cat, err := cfg.Load()
	if err != nil {
		return err
	}
	p := newProcess(cfg.Process, stderr)
	p.onReady = onReady
	defer func() { err = errors.Join(err, p.close()) }()
	b, err := p.connect(ctx, cfg.NATS.config("ingester"))
	if err != nil {
		return err
	}
	p.guard(b)
	if err := p.ingest(ctx, &cfg.IngestFlags, &cfg.Database, cat, b); err != nil {
		return err
	}
	return p.run(ctx)
}

// ingest adds the ingester and the housekeeping of stream and tables.
func (p *process) ingest(ctx context.Context, flags *IngestFlags, db *DatabaseFlags, cat *catalogue.Catalogue, b *bus.Bus) error {
	dbConfig, err := db.config(flags.ReplayWindow)
	if err != nil {
		return err
	}
	dbConfig.FrozenAfter = b.AckWait() // by then others were handed its batches
	// A family or column that is new in this version is added live.
	err = p.retry(ctx, "prepare the tables", func(ctx context.Context) error {
		return store.EnsureSchema(ctx, dbConfig.URL, cat)
	})
	if err != nil {
		return err
	}
	var recovery *ingester.Recovery // set below, before anything is committed that could be lost
	dbConfig.OnRewind = func(ctx context.Context, r store.Rewind) error { return recovery.Rewound(ctx, r.Incarnation, r.From) }
	st, err := store.Open(ctx, dbConfig, cat, p.log, p.registry)
	if err != nil {
		return err
	}
	p.closeLater(func() error { st.Close(); return nil })
	p.check("database", st.Probe)

	consumer, err := p.consumer(ctx, b, flags.FetchBytes)
	if err != nil {
		return err
	}
	in, err := ingester.New(flags.Config, consumer, st, b.DeadLetters(), p.log, p.registry)
	if err != nil {
		return err
	}
	recovery = ingester.NewRecovery(flags.AutoRewind, in, history{b}, st, gapHolds{b.Holds()}, b.DeadLetters(), p.log, p.registry)
	if err := p.retry(ctx, "compare the database with the stream", recovery.Check); err != nil {
		return err
	}
	vouch := vouch(b, st)
	// Before the first load, so that it says from where on it may get lost.
	if err := p.retry(ctx, "tell the database how far the stream is stored", vouch); err != nil {
		return err
	}
	p.part("trimmer", b.Trimmer(flags.TrimFlags.config(), vouch).Run)
	p.part("recovery", recovery.Run)
	k := &keeper{store: st, bus: b, every: flags.MaintainEvery, log: p.log}
	p.part("maintenance", k.run)
	p.part("ingester", in.Run)
	return nil
}

// consumer opens the shared consumer, once the stream is there.
func (p *process) consumer(ctx context.Context, b *bus.Bus, fetchBytes int) (consumer *bus.Consumer, err error) {
	err = p.retry(ctx, "open the stream", func(ctx context.Context) error {
		consumer, err = b.Consumer(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	if least := 2 * b.MaxPayload(); int64(fetchBytes) < least {
		return nil, fmt.Errorf("fetch-bytes: %d is below twice the largest message of the NATS server, %d", fetchBytes, least)
	}
	return consumer, nil
}

// vouch returns what the trimmer asks in each round: whether the database takes
// writes. With that write goes up to where the stream is acknowledged and
// stored, so that a database tells by itself what it vouches for, also one that
// was restored. What lies in a gap it does not vouch for.
func vouch(b *bus.Bus, st *store.Store) func(context.Context) error {
	return func(ctx context.Context) error {
		status, err := b.Status(ctx)
		if err != nil {
			return err
		}
		gap, held, err := gapHolds{b.Holds()}.Held(ctx)
		if err != nil {
			return err
		}
		floor := status.AckFloor
		if held && gap.Incarnation == status.Incarnation {
			floor = min(floor, max(gap.From, 1)-1)
		}
		st.NoteAckFloor(status.Incarnation, floor)
		return st.Probe(ctx)
	}
}
