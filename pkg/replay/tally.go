package replay

import (
	"context"
	"sync"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/ingester"
)

// tally counts what a run does, by watching the store and the dead letters from
// the ingester's side.
type tally struct {
	store   ingester.Store
	letters ingester.DeadLetters

	mu      sync.Mutex
	done    Done
	waiting string
}

// Load counts what was stored.
func (t *tally) Load(ctx context.Context, items []batch.Item) ([]batch.Outcome, error) {
	outcomes, err := t.store.Load(ctx, items)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waits(err)
	for i, o := range outcomes {
		switch o {
		case batch.Stored:
			t.done.Stored.add(items[i].Batch, 0)
		case batch.AlreadyStored:
			t.done.Skipped++
		}
	}
	return outcomes, err
}

// Probe asks the store.
func (t *tally) Probe(ctx context.Context) error {
	err := t.store.Probe(ctx)
	t.wait(err)
	return err
}

// Bury counts what could not be stored.
func (t *tally) Bury(ctx context.Context, letter batch.Letter) error {
	err := t.letters.Bury(ctx, letter)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waits(err)
	if err == nil {
		t.done.Buried++
	}
	return err
}

func (t *tally) saw(some []seen) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range some {
		switch some[i].state {
		case stored:
			t.done.Skipped++
		case unreadable:
			t.done.Unreadable++
		}
	}
}

// wait notes why nothing goes on, or with nil that it does.
func (t *tally) wait(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waits(err)
}

func (t *tally) waits(err error) {
	t.waiting = ""
	if err != nil {
		t.waiting = err.Error()
	}
}

func (t *tally) yield() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting = "live batches go first"
}

func (t *tally) look() (done Done, waiting string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.done, t.waiting
}
