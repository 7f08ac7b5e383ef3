package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/ingester"
	"pganalytics/pkg/replay"
	"pganalytics/pkg/replay/archive"
)

// archiveStream is an export in the place of the stream. Live batches are still
// those of the stream.
type archiveStream struct {
	history
	dir  string
	skip func(*archive.DamageError) // nil: damage ends the replay
}

// Read returns a reader of the archive.
func (s archiveStream) Read(_ context.Context, part ingester.Gap) (ingester.Reader, error) {
	r, err := archive.NewReader(s.dir, s.skip)
	if err != nil {
		return nil, err
	}
	if r.Incarnation() != part.Incarnation {
		return nil, fault.Wrap(fault.Conflict, fmt.Errorf("%s is another export now", s.dir))
	}
	r.Limit(part.From, part.To)
	return r, nil
}

// noJobs keeps nothing: an archive needs no hold, and one that is replayed once
// more is soon through with what is stored.
type noJobs struct{}

func (noJobs) Save(context.Context, *replay.Job) error                   { return nil }
func (noJobs) End(context.Context, *replay.Job) error                    { return nil }
func (noJobs) Fill(context.Context, replay.Gap) (filled bool, err error) { return false, nil }

// beginFile is begin for an archive.
func (op *replayOp) beginFile(ctx context.Context, req ReplayRequest, con ReplayConsole) (plan replay.Plan, res replay.Result, err error) {
	x, err := openArchive(ctx, req.File, op.store)
	if err != nil {
		return plan, res, err
	}
	stream := archiveStream{history: history{op.bus}, dir: req.File}
	if req.AllowPartial {
		told := map[archive.DamageError]bool{} // each is met in every pass
		stream.skip = func(d *archive.DamageError) {
			if key := (archive.DamageError{File: d.File, First: d.First, Last: d.Last}); !told[key] {
				told[key] = true
				fmt.Fprintln(con.Stderr, "left out:", d)
			}
		}
	}
	op.Stream, op.Jobs = stream, noJobs{}
	job := &replay.Job{
		ID: uuid.NewString()[:8], Worker: uuid.NewString(), Incarnation: x.Incarnation, First: x.First, Last: x.Last, Next: x.First,
		Selection: req.Selection, Rate: req.Rate, Partial: req.AllowPartial, Begun: time.Now().UTC(),
	}
	plan, err = op.Plan(ctx, job)
	return op.decide(ctx, req, job, plan, err, con.Agree)
}

// openArchive returns the index of an archive whose batches may be replayed into
// the database. Below the ledger's floor nothing can tell a batch from one that
// is stored, so one that has such is refused with fault.Conflict.
func openArchive(ctx context.Context, dir string, ledger interface {
	Floor(ctx context.Context) (time.Time, error)
}) (*archive.Index, error) {
	x, err := archive.ReadIndex(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is no export: %w", dir, err)
	}
	if err != nil {
		return nil, err
	}
	floor, err := ledger.Floor(ctx)
	if err != nil {
		return nil, err
	}
	if oldest := x.OldestSent; !oldest.IsZero() && oldest.Before(floor) {
		return nil, fault.Wrap(fault.Conflict, fmt.Errorf("%s has batches sent at %s, and the ledger knows only those since %s: what is older might be stored twice",
			dir, oldest.Format(time.RFC3339), floor.Format(time.RFC3339)))
	}
	return x, nil
}
