package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/authsvc/pgstore"
	"pganalytics/pkg/batch"
	"pganalytics/pkg/bus"
	"pganalytics/pkg/replay/repair"
	"pganalytics/pkg/store"
)

var (
	_ repair.Letters = (*bus.DeadLetters)(nil)
	_ repair.Stream  = repairStream{}
	_ repair.Ledger  = repairLedger{}
)

// Letters returns a bench for what needs the stream alone: to list dead
// letters, to show and to export them.
func (i *Installation) Letters(ctx context.Context, stderr io.Writer) (*repair.Bench, func(), error) {
	cat, err := i.Load()
	if err != nil {
		return nil, nil, err
	}
	b, err := i.Bus(ctx, stderr)
	if err != nil {
		return nil, nil, err
	}
	end := func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), benchClose)
		defer cancel()
		_ = b.Close(ctx) // every publish was answered
	}
	return &repair.Bench{Letters: b.DeadLetters(), Stream: repairStream{b}, Catalogue: cat}, end, nil
}

// benchClose bounds the farewell to a server that may be away.
const benchClose = 2 * time.Second

// Repair returns a bench that reaches the database too. actor goes into the
// audit.
func (i *Installation) Repair(ctx context.Context, actor string, stderr io.Writer) (*repair.Bench, func(), error) {
	url, urlErr := i.Database.URL()
	bench, closeBus, err := i.Letters(ctx, stderr)
	if err := errors.Join(urlErr, err); err != nil {
		if closeBus != nil {
			closeBus()
		}
		return nil, nil, err
	}
	st, err := i.Store(ctx, stderr)
	if err != nil {
		closeBus()
		return nil, nil, err
	}
	audit, err := pgstore.Open(ctx, url)
	if err != nil {
		st.Close()
		closeBus()
		return nil, nil, err
	}
	end := func() { audit.Close(); st.Close(); closeBus() }
	probe, cancel := context.WithTimeout(ctx, i.Timeout)
	defer cancel()
	if err := audit.Ping(probe); err != nil {
		end()
		// For a person, so on one line: the driver lists each address that it tried.
		return nil, nil, fmt.Errorf("the database does not answer: %s", strings.Join(strings.Fields(err.Error()), " "))
	}
	bench.Ledger = repairLedger{st, audit, actor}
	return bench, end, nil
}

// repairStream is the stream as people work on it.
type repairStream struct{ *bus.Bus }

// Republish publishes a message again.
func (s repairStream) Republish(ctx context.Context, collector uuid.UUID, payload []byte) (uint64, error) {
	return s.Publisher().Republish(ctx, collector, payload)
}

// AckFloor asks the shared consumer.
func (s repairStream) AckFloor(ctx context.Context) (uint64, error) {
	status, err := s.Status(ctx)
	return status.AckFloor, err
}

// repairLedger writes each act down in the transaction of the change.
type repairLedger struct {
	*store.Store
	audit *pgstore.Store
	actor string
}

// Discard gives a batch up.
func (l repairLedger) Discard(ctx context.Context, it batch.Item, reason string, act repair.Act) (batch.Outcome, error) {
	entry, err := l.entry(act)
	if err != nil {
		return 0, err
	}
	return l.Store.Discard(ctx, it, reason, pgstore.Witness(entry))
}

// Remove takes a batch out.
func (l repairLedger) Remove(ctx context.Context, b *batch.Batch, discard string, act repair.Act) ([]batch.Holding, error) {
	entry, err := l.entry(act)
	if err != nil {
		return nil, err
	}
	return l.Store.Remove(ctx, b, discard, pgstore.Witness(entry))
}

// Note writes into the audit alone.
func (l repairLedger) Note(ctx context.Context, act repair.Act) error {
	entry, err := l.entry(act)
	if err != nil {
		return err
	}
	return l.audit.Record(ctx, entry)
}

func (l repairLedger) entry(act repair.Act) (authsvc.AuditEntry, error) {
	changes, err := json.Marshal(act.Changes)
	return authsvc.AuditEntry{
		At: time.Now().UTC(), Actor: l.actor, Action: act.Action, Result: "success",
		ResourceType: act.ResourceType, ResourceID: act.ResourceID, Changes: changes,
	}, err
}
