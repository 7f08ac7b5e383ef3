package replay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/ingester"
)

const (
	// saveEvery is how much of a replay is looked at again after a crash.
	saveEvery = time.Second
	// tries is how often the range is gone through while some of it is left:
	// most often other loaders had it in hand.
	tries    = 5
	tryPause = 2 * time.Second
	// endTimeout bounds what is done after the context has ended.
	endTimeout = 10 * time.Second
)

// Run stores what is missing from the job's position on. When nothing is left
// it ends the job, and the gap that it filled. The job stays as it is then, to
// be taken up again, if ctx ends first, which is the error, or if batches are
// left. The error is fault.Conflict if somebody else works on the job or the
// stream was made anew.
func (r *Replayer) Run(ctx context.Context, job *Job) (Result, error) {
	begin := time.Now()
	res := Result{}
	var err error
	for try := 1; ; try++ {
		var gone []Jump
		res.Left, gone, err = r.pass(ctx, job)
		if try == 1 {
			res.Gone = gone
		}
		if err != nil || res.Left == 0 || try == tries {
			break
		}
		if err = sleep(ctx, tryPause); err != nil {
			break
		}
	}
	if err == nil && res.Left == 0 {
		res.Filled, err = r.finish(ctx, job)
	}
	res.Job, res.Seconds = *job, time.Since(begin).Seconds()
	return res, err
}

func (r *Replayer) finish(ctx context.Context, job *Job) (filled bool, err error) {
	if job.Gap != nil {
		if filled, err = r.Jobs.Fill(ctx, *job.Gap); err != nil {
			return filled, fmt.Errorf("end the replay: %w", err)
		}
	}
	if err := r.Jobs.End(ctx, job); err != nil {
		return filled, fmt.Errorf("end the replay: %w", err)
	}
	return filled, nil
}

// pass goes through the rest of the range once.
func (r *Replayer) pass(ctx context.Context, job *Job) (left int, gone []Jump, err error) {
	reader, err := r.Stream.Read(ctx, job.part(job.Next, job.Last))
	if err != nil {
		return 0, nil, fmt.Errorf("replay: %w", err)
	}
	run, end := context.WithCancelCause(ctx)
	defer end(nil)
	t := &tally{store: r.Store, letters: r.Letters, done: job.Done}
	src := newSource(newScan(reader, r.Ledger, job.Selection, job.Next),
		&deference{live: r.Stream.Live, every: lookEvery}, &pace{rate: job.Rate}, t, r.Loading.Loaders, end)
	in, err := ingester.New(r.Loading, src, t, t, r.Log, prometheus.NewRegistry())
	if err != nil {
		return 0, nil, err
	}
	var g errgroup.Group
	g.Go(func() error {
		defer end(nil)
		return in.Run(run)
	})
	g.Go(func() error { return r.keep(run, job, src, end) })
	err = g.Wait()
	left = r.note(job, src)
	if cause := context.Cause(run); !errors.Is(cause, context.Canceled) {
		err = errors.Join(err, cause)
	}
	if err == nil {
		err = ctx.Err()
	}
	if fault.ClassOf(err) != fault.Conflict {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
		defer cancel()
		err = errors.Join(err, r.Jobs.Save(last, job))
	}
	if err == nil {
		src.scan.pass(job.Last + 1)
	}
	return left, src.scan.jumps, err
}

// keep writes down how far the job is, and tells it, until ctx ends.
func (r *Replayer) keep(ctx context.Context, job *Job, src *source, end context.CancelCauseFunc) error {
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	rate := newRate(job.Done)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		r.note(job, src)
		_, waiting := src.tally.look()
		if err := r.Jobs.Save(ctx, job); err != nil {
			if fault.ClassOf(err) == fault.Conflict {
				end(err)
				return nil
			}
			waiting = err.Error()
		}
		r.tell(Progress{
			First: job.First, Last: job.Last, Next: job.Next, Missing: job.Missing, Done: job.Done,
			RowsPerSec: rate.add(job.Done), Waiting: waiting,
		})
	}
}

// note takes over how far the run is.
func (r *Replayer) note(job *Job, src *source) (left int) {
	// First the position: what is counted after it may be counted again.
	job.Next, left = src.position()
	job.Done, _ = src.tally.look()
	return left
}

// rate is rows a second over all of a run.
type rate struct {
	begin time.Time
	rows  uint64
}

func newRate(d Done) rate { return rate{time.Now(), d.Stored.Rows} }

func (r rate) add(d Done) float64 {
	return float64(d.Stored.Rows-r.rows) / time.Since(r.begin).Seconds()
}
