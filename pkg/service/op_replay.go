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
	"pganalytics/pkg/bus"
	"pganalytics/pkg/cmdline"
	"pganalytics/pkg/replay"
	"pganalytics/pkg/store"
)

var (
	_ replay.Stream  = history{}
	_ replay.Ledger  = (*store.Store)(nil)
	_ replay.Letters = (*bus.DeadLetters)(nil)
	_ replay.Jobs    = replayJobs{}
)

// ReplayRequest says which part of the stream to replay. Without From and
// FromSequence it is the gap that ingesters hold because the database went
// back.
type ReplayRequest struct {
	From, To     time.Time // of the arrival on the stream, the second one not included; zero: unbounded
	FromSequence uint64    // used instead of From if above zero
	replay.Selection
	Rate         int    // rows a second; 0: as many as possible
	AllowPartial bool   // although some of it has left the stream
	DryRun       bool   // plan and change nothing
	Resume       bool   // take up the oldest replay that was interrupted, and heed nothing else
	File         string // directory of an export, used instead of the stream; From, To and FromSequence do not count then
	By           string
}

// ReplayConsole is where a replay is told of. Its functions may be nil.
type ReplayConsole struct {
	Stderr io.Writer
	Agree  func(replay.Plan) error // errs unless the plan is to be carried out
	Tell   func(replay.Progress)   // about every second
}

// Errors of Replay that leave everything as it was.
var (
	ErrNothingHeld    = errors.New("nothing is known to be missing: say from when on with --from or --from-seq")
	ErrNothingOpen    = errors.New("no replay was interrupted")
	ErrPartial        = errors.New("part of what was asked for is no longer on the stream; --allow-partial replays the rest")
	ErrAnotherReplay  = errors.New("another replay is under way")
	errDatabaseBehind = errors.New("the database went back meanwhile; the replay begins anew")
)

// Replay stores again what the database lacks of a part of the stream. The plan
// is empty for a replay that was resumed, the result for one that was only
// planned. With an error of its own nothing was done, with any other the replay
// can be resumed if the result has an ID.
func (i *Installation) Replay(ctx context.Context, req ReplayRequest, con ReplayConsole) (plan replay.Plan, res replay.Result, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	op, err := i.openReplay(ctx, con, func(context.Context, store.Rewind) error {
		cancel(errDatabaseBehind)
		return errDatabaseBehind
	})
	if err != nil {
		return plan, res, err
	}
	defer op.close()
	begun := false
	work := func(ctx context.Context) error {
		begun = true
		switch {
		case req.Resume:
			res, err = op.resume(ctx, req.By)
		case req.File != "":
			plan, res, err = op.beginFile(ctx, req, con)
		default:
			plan, res, err = op.begin(ctx, req, con.Agree)
		}
		return nil // the lock's errors are told apart from ours
	}
	for deadline := time.Now().Add(i.Timeout); ; {
		// An ingester that looks whether there is a gap has it for a moment too.
		_, lockErr := op.store.Alone(ctx, work)
		switch {
		case begun && err != nil && errors.Is(context.Cause(ctx), errDatabaseBehind):
			return plan, res, errDatabaseBehind
		case begun:
			return plan, res, err // a lock that was lost meanwhile did no harm
		case lockErr != nil:
			return plan, res, lockErr
		case time.Now().After(deadline):
			return plan, res, ErrAnotherReplay
		}
		select {
		case <-ctx.Done():
			return plan, res, ctx.Err()
		case <-time.After(replayPoll):
		}
	}
}

// replayPoll is the time between two looks whether another replay is over.
const replayPoll = 200 * time.Millisecond

// replayOp is what a replay works with.
type replayOp struct {
	replay.Replayer
	bus   *bus.Bus
	store *store.Store
	jobs  replayJobs
	audit func(ctx context.Context, e authsvc.AuditEntry) error
}

func (i *Installation) openReplay(ctx context.Context, con ReplayConsole, onRewind func(context.Context, store.Rewind) error) (op *replayOp, err error) {
	url, err := i.Database.URL()
	if err != nil {
		return nil, err
	}
	b, err := i.Bus(ctx, con.Stderr)
	if err != nil {
		return nil, err
	}
	st, err := i.storeWith(ctx, con.Stderr, func(c *store.Config) {
		c.OnRewind, c.FrozenAfter = onRewind, b.AckWait()
	})
	if err != nil {
		return nil, errors.Join(err, b.Close(ctx))
	}
	op = &replayOp{bus: b, store: st, jobs: replayJobs{b.Holds()}}
	op.Replayer = replay.Replayer{
		Stream: history{b}, Ledger: st, Jobs: op.jobs, Store: st, Letters: b.DeadLetters(),
		Log: commandLog(con.Stderr), Tell: con.Tell,
	}
	op.audit = func(ctx context.Context, e authsvc.AuditEntry) error {
		s, err := pgstore.Open(ctx, url)
		if err != nil {
			return err
		}
		defer s.Close()
		return s.Record(ctx, e)
	}
	err = cmdline.Defaults(&op.Loading)
	if err == nil {
		err = i.answers(ctx, st)
	}
	if err != nil {
		op.close()
		return nil, err
	}
	return op, nil
}

// answers errs unless the database takes writes.
func (i *Installation) answers(ctx context.Context, st *store.Store) error {
	ctx, cancel := context.WithTimeout(ctx, i.Timeout)
	defer cancel()
	if err := st.Probe(ctx); err != nil {
		return fmt.Errorf("the database does not answer: %s", strings.Join(strings.Fields(err.Error()), " ")) // in one line
	}
	return nil
}

func (op *replayOp) close() {
	op.store.Close()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = op.bus.Close(ctx) // nothing is left to flush
}

const closeTimeout = 5 * time.Second

// begin plans and, if that is wanted, carries out. It holds the range before it
// plans and lets go of it unless something was begun.
func (op *replayOp) begin(ctx context.Context, req ReplayRequest, agree func(replay.Plan) error) (plan replay.Plan, res replay.Result, err error) {
	job, late, err := op.job(ctx, req)
	if err != nil {
		return plan, res, err
	}
	if err := op.jobs.Save(ctx, job); err != nil {
		return plan, res, err
	}
	if err = op.caughtUp(ctx, job.Last); err == nil {
		plan, err = op.Plan(ctx, job)
	}
	plan.Late = late
	return op.decide(ctx, req, job, plan, err, agree)
}

// decide carries out what was planned if that is wanted, and else lets go of it.
func (op *replayOp) decide(ctx context.Context, req ReplayRequest, job *replay.Job, plan replay.Plan, err error, agree func(replay.Plan) error) (replay.Plan, replay.Result, error) {
	switch {
	case err != nil:
	case plan.Partial() && !req.AllowPartial:
		err = ErrPartial
	case req.DryRun:
	case plan.Missing.Batches+plan.Unknown == 0:
		job.Next = job.Last + 1 // no need to read it again
	case agree != nil:
		err = agree(plan)
	}
	if err != nil || req.DryRun {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		return plan, replay.Result{}, errors.Join(err, op.Jobs.End(end, job))
	}
	res, err := op.run(ctx, job, req.By)
	return plan, res, err
}

// caughtUp gives the ingesters a moment to store what they have in hand, for it
// would look missing. A backlog that is longer is missing.
func (op *replayOp) caughtUp(ctx context.Context, last uint64) error {
	for deadline := time.Now().Add(liveMoment); ; {
		status, err := op.bus.Status(ctx)
		if err != nil || status.AckFloor >= last || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(replayPoll):
		}
	}
}

// liveMoment is more than a batch needs from its push to its commit.
const liveMoment = 3 * time.Second

// job makes a job of what was asked for. late says that the stream begins only
// after that.
func (op *replayOp) job(ctx context.Context, req ReplayRequest) (job *replay.Job, late bool, err error) {
	status, err := op.bus.Status(ctx)
	if err != nil {
		return nil, false, err
	}
	job = &replay.Job{
		ID: uuid.NewString()[:8], Worker: uuid.NewString(), Incarnation: status.Incarnation,
		First: req.FromSequence, Last: status.LastSequence,
		Selection: req.Selection, Rate: req.Rate, Partial: req.AllowPartial, Begun: time.Now().UTC(),
	}
	gap, held, err := op.jobs.gap(ctx)
	if err != nil {
		return nil, false, err
	}
	switch {
	case req.FromSequence > 0:
	case !req.From.IsZero():
		late = status.FirstSequence > 1 && (status.Messages == 0 || req.From.Before(status.FirstTime))
		job.First, err = op.bus.SequenceAt(ctx, req.From)
	case held:
		job.First, job.Last = max(1, gap.From), gap.To
	default:
		err = ErrNothingHeld
	}
	if err == nil && !req.To.IsZero() {
		var end uint64
		end, err = op.bus.SequenceAt(ctx, req.To)
		job.Last = min(job.Last, end-1)
	}
	if err == nil && job.First > job.Last {
		err = errors.New("the stream has nothing of that time")
	}
	if held {
		job.Fills(gap, status.FirstSequence)
	}
	job.Next = job.First
	return job, late, err
}

// resume takes up the oldest job that was interrupted.
func (op *replayOp) resume(ctx context.Context, by string) (res replay.Result, err error) {
	open, err := op.jobs.open(ctx)
	if err != nil {
		return res, err
	}
	if len(open) == 0 {
		return res, ErrNothingOpen
	}
	job := open[0]
	status, err := op.bus.Status(ctx)
	if err != nil {
		return res, err
	}
	if status.Incarnation != job.Incarnation {
		return res, errors.Join(fmt.Errorf("replay %s was of a stream that is gone; it is over", job.ID), op.jobs.End(ctx, &job))
	}
	job.Worker = uuid.NewString()
	if err := op.jobs.Save(ctx, &job); err != nil {
		return res, err
	}
	if err := op.Resume(ctx, &job); err != nil {
		return res, err
	}
	return op.run(ctx, &job, by)
}

// run carries out and writes down who did.
func (op *replayOp) run(ctx context.Context, job *replay.Job, by string) (replay.Result, error) {
	before := job.Done
	res, err := op.Run(ctx, job)
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err != nil && res.Done == before {
		return res, err
	}
	changes, encodeErr := json.Marshal(struct {
		replay.Result
		Interrupted bool `json:"interrupted"`
	}{res, err != nil})
	return res, errors.Join(err, encodeErr, op.audit(end, authsvc.AuditEntry{
		At: time.Now().UTC(), Actor: by, Action: "stream.replay", ResourceType: "replay", ResourceID: job.ID,
		Result: "success", Changes: changes,
	}))
}

// Live tells how far the shared consumer is.
func (h history) Live(ctx context.Context) (ended, waiting uint64, err error) {
	s, err := h.bus.Status(ctx)
	waiting = s.Pending + uint64(s.AckPending)
	return s.LastSequence - min(s.LastSequence, waiting), waiting, err
}
