// Package ingester moves batches from the stream into the store. Its one
// invariant: a message is acknowledged only after its rows are committed or
// its bytes lie in the dead letters. Everything else that happens to it leaves
// it on the stream. It knows neither the stream's protocol nor the store's.
package ingester

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
)

// Source hands out messages, each to one caller at a time.
type Source interface {
	Fetch(ctx context.Context, maxMessages, maxBytes int, wait time.Duration) ([]batch.Delivery, error)
}

// Store commits batches.
type Store interface {
	// Load stores the items in one transaction and says what became of each.
	// With an error nothing of the load is stored, or, when the connection
	// broke during the commit, all of it; loading it again settles which.
	Load(ctx context.Context, items []batch.Item) ([]batch.Outcome, error)
	// Probe returns nil when a small writing transaction commits.
	Probe(ctx context.Context) error
}

// DeadLetters keeps what cannot be stored. The same letter may be buried again.
type DeadLetters interface {
	Bury(ctx context.Context, letter batch.Letter) error
}

// Config of an ingester.
type Config struct {
	Loaders       int           `help:"Loads under way at once, each on a connection of its own." default:"2"`
	FetchMessages int           `help:"Most messages fetched at once; fewer are asked for when they are large." default:"2000"`
	FetchBytes    int           `help:"Bytes fetched at once; at least twice the stream's largest message, or that one blocks for ever." default:"16777216"`
	FetchWait     time.Duration `help:"Longest wait for a load to fill; rows become visible this much later." default:"100ms"`
	LoadRows      int           `help:"Rows of one transaction; a larger batch is a transaction of its own." default:"20000"`
	LoadBytes     int           `help:"Bytes of one transaction; a larger batch is a transaction of its own." default:"8388608"`
	ExtendEvery   time.Duration `help:"How often the stream hears that a message is still at work; well below the stream's AckWait, or messages are handed out twice." default:"20s"`
	LoadTimeout   time.Duration `help:"Longest time for one transaction; after it the load has failed and the store is probed." default:"60s"`
	UnknownFor    time.Duration `help:"How long a batch waits whose family or column this ingester does not know, before it becomes a dead letter." default:"1h"`
	UnresolvedFor time.Duration `help:"How long a batch is tried that fails alone for no reason of its own, before it becomes a dead letter." default:"15m"`
	UnresolvedTry int           `help:"How often such a batch is tried at least." default:"10"`
}

// Validate reports every value that cannot work.
func (c *Config) Validate() error {
	var errs []error
	positive := func(flag string, ok bool, value any) {
		if !ok {
			errs = append(errs, fmt.Errorf("%s: %v is not above zero", flag, value))
		}
	}
	positive("loaders", c.Loaders > 0, c.Loaders)
	positive("fetch-messages", c.FetchMessages > 0, c.FetchMessages)
	positive("fetch-bytes", c.FetchBytes > 0, c.FetchBytes)
	positive("fetch-wait", c.FetchWait > 0, c.FetchWait)
	positive("load-rows", c.LoadRows > 0, c.LoadRows)
	positive("load-bytes", c.LoadBytes > 0, c.LoadBytes)
	positive("extend-every", c.ExtendEvery > 0, c.ExtendEvery)
	positive("load-timeout", c.LoadTimeout > 0, c.LoadTimeout)
	positive("unknown-for", c.UnknownFor > 0, c.UnknownFor)
	positive("unresolved-for", c.UnresolvedFor > 0, c.UnresolvedFor)
	positive("unresolved-try", c.UnresolvedTry > 0, c.UnresolvedTry)
	return errors.Join(errs...)
}

// Ingester runs a number of loaders over one source.
type Ingester struct {
	cfg      Config
	source   Source
	store    Store
	letters  DeadLetters
	suspects *suspects
	log      *slog.Logger
	metrics  *metrics
}

// New returns an ingester; Run starts it.
func New(cfg Config, source Source, store Store, letters DeadLetters, log *slog.Logger, reg prometheus.Registerer) (*Ingester, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("ingester: %w", err)
	}
	return &Ingester{
		cfg:      cfg,
		source:   source,
		store:    store,
		letters:  letters,
		suspects: newSuspects(),
		log:      log,
		metrics:  newMetrics(reg),
	}, nil
}

// Run loads until ctx ends. What was fetched by then is stored if the store
// answers, within LoadTimeout; the rest stays on the stream.
func (in *Ingester) Run(ctx context.Context) error {
	var g errgroup.Group
	for range in.cfg.Loaders {
		g.Go(func() error { return in.loop(ctx) })
	}
	return g.Wait()
}

// loop fetches and loads, one after the other: messages that wait in memory
// for a store that is busy would only age towards their redelivery.
func (in *Ingester) loop(ctx context.Context) error {
	wait := newBackoff()
	hunger := newAppetite(in.cfg.FetchMessages, in.cfg.LoadRows)
	for ctx.Err() == nil {
		fetched, err := in.source.Fetch(ctx, hunger.messages(), in.cfg.FetchBytes, in.cfg.FetchWait)
		if err != nil && ctx.Err() == nil {
			in.metrics.fetchErrors.Inc()
			in.log.Warn("fetch from stream", "err", err)
			wait.sleep(ctx)
		} else {
			wait.reset()
		}
		if len(fetched) > 0 {
			hunger.learn(in.handle(ctx, fetched), len(fetched))
		}
	}
	return nil
}

// handle brings every fetched message to its end or leaves it on the stream.
// It returns the number of rows in them.
func (in *Ingester) handle(ctx context.Context, fetched []batch.Delivery) (rows int) {
	hand := newHand(fetched)
	defer hand.keepAlive(in.cfg.ExtendEvery, in.onExtendError)()
	return in.storeAll(ctx, hand)
}

// replay does the same with messages that were acknowledged before. It returns
// those that were not brought to their end; the batch of one that a newer
// gateway has written is nil.
func (in *Ingester) replay(ctx context.Context, fetched []batch.Delivery) (left []batch.Item) {
	hand := newHand(fetched)
	for _, m := range hand.messages {
		m.replayed = true
	}
	in.storeAll(ctx, hand)
	for _, m := range hand.messages {
		if !m.ended {
			left = append(left, batch.Item{Batch: m.batch, Position: m.Position})
		}
	}
	return left
}

func (in *Ingester) storeAll(ctx context.Context, hand *hand) (rows int) {
	good := in.decode(ctx, hand.messages)
	for _, m := range good {
		rows += m.batch.Rows()
	}
	for _, load := range cut(good, in.suspects, in.cfg.LoadRows, in.cfg.LoadBytes) {
		if !in.storeLoad(ctx, load) {
			break
		}
	}
	return rows
}

func (in *Ingester) onExtendError(m *message, err error) {
	in.metrics.extendErrors.Inc()
	in.log.Warn("extend message", "stream_seq", m.Sequence, "err", err)
}

// decode opens the envelopes. One that cannot be opened is a dead letter, one
// from a newer gateway waits for a newer ingester.
func (in *Ingester) decode(ctx context.Context, messages []*message) []*message {
	good := messages[:0:0]
	for _, m := range messages {
		b, err := batch.Unmarshal(m.Payload)
		switch {
		case fault.ClassOf(err) == fault.Behind:
			in.judge(ctx, m, err)
			continue
		case err != nil:
			in.bury(ctx, m, "undecodable", err)
			continue
		}
		m.batch = b
		good = append(good, m)
	}
	return good
}
