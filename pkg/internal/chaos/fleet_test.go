package chaos

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
)

// fleet is a number of collectors that send, each one batch after the other,
// and repeat each until they are told that it is taken.
type fleet struct {
	t       *testing.T
	quit    chan struct{}
	wg      sync.WaitGroup
	stopped sync.Once

	taken   atomic.Int64 // batches
	refused atomic.Int64 // attempts that failed, their outcome unknown
	broken  atomic.Value // error of the journal
}

type fleetConfig struct {
	collectors int                           // defaults to 20
	rows       int                           // of a batch; defaults to 20
	pace       time.Duration                 // between two batches of one collector; defaults to 100 ms
	change     func(collector int, row *row) // alters a row before it is encoded
	// ids of the collectors, and send, which hands over one batch: an error
	// means that the outcome is unknown. Default to any, and to publishing the
	// batch as it is, which a gateway does not: it makes its own of the rows.
	ids  []uuid.UUID
	send func(ctx context.Context, collector int, b *batch.Batch, rows []row) error

	exact bool // what is stored has the digest of what was sent
}

// collect starts a fleet. It ends with stop or the test.
func (s *site) collect(cfg fleetConfig) *fleet {
	s.t.Helper()
	orElse(&cfg.collectors, 20)
	orElse(&cfg.rows, 20)
	orElse(&cfg.pace, 100*time.Millisecond)
	cfg.exact = cfg.send == nil
	if cfg.exact {
		publisher := s.bus.Publisher()
		cfg.send = func(ctx context.Context, _ int, b *batch.Batch, _ []row) error {
			_, err := publisher.Publish(ctx, b)
			return err
		}
	}
	for len(cfg.ids) < cfg.collectors {
		cfg.ids = append(cfg.ids, uuid.New())
	}
	f := &fleet{t: s.t, quit: make(chan struct{})}
	for i := range cfg.collectors {
		f.wg.Go(func() { f.run(&cfg, i, s.journal) })
	}
	s.t.Cleanup(f.end)
	return f
}

func orElse[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (f *fleet) run(cfg *fleetConfig, i int, j *journal) {
	tick := time.NewTicker(cfg.pace)
	defer tick.Stop()
	for {
		select {
		case <-f.quit:
			return
		case <-tick.C:
		}
		b, rows := newBatch(cfg.ids[i], cfg.rows, func(r *row) {
			if cfg.change != nil {
				cfg.change(i, r)
			}
		})
		if !f.deliver(cfg, i, b, rows) {
			return
		}
		a := acceptedOf(b, rows)
		if !cfg.exact {
			a.Digest = ""
		}
		if err := j.note(a); err != nil {
			f.broken.Store(err)
			return
		}
		f.taken.Add(1)
	}
}

// patience is how long a collector repeats one batch. What it gives up on then
// may be stored or not, so the test fails.
const patience = time.Minute

func (f *fleet) deliver(cfg *fleetConfig, collector int, b *batch.Batch, rows []row) bool {
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		err := cfg.send(ctx, collector, b, rows)
		cancel()
		if err == nil {
			return true
		}
		f.refused.Add(1)
		<-time.After(50 * time.Millisecond) // the pace of a sender that is refused
	}
	f.broken.Store(context.DeadlineExceeded)
	return false
}

func (f *fleet) end() {
	f.stopped.Do(func() { close(f.quit) })
	f.wg.Wait()
}

// stop ends the fleet once each collector was told that its last batch is
// taken.
func (f *fleet) stop() {
	f.t.Helper()
	f.end()
	require.Nil(f.t, f.broken.Load(), "a collector stopped by itself")
	require.Positive(f.t, f.taken.Load())
}
