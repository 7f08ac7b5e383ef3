package service

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"pganalytics/pkg/bus"
	"pganalytics/pkg/fault"
	"pganalytics/pkg/ingester"
	"pganalytics/pkg/replay"
)

// replayPrefix begins the names of the holds of replays.
const replayPrefix = "replay-"

// replayJobs keeps jobs in holds, each with its part of the stream.
type replayJobs struct{ holds *bus.Holds }

// Save takes the hold, or advances it to the job's position.
func (j replayJobs) Save(ctx context.Context, job *replay.Job) error {
	work, err := json.Marshal(job)
	if err != nil {
		return err
	}
	hold := bus.Hold{
		Name: replayPrefix + job.ID, Incarnation: job.Incarnation, From: min(job.Next, job.Last), To: job.Last,
		Reason: "a replay", By: "pganalytics replay", Since: job.Begun, Work: string(work), Revision: job.Revision,
	}
	put := j.holds.Advance
	if job.Revision == 0 {
		put = j.holds.Take
	}
	saved, err := put(ctx, hold)
	if fault.ClassOf(err) == fault.Conflict {
		// It may be our own of before, whose answer was lost.
		if saved, err = j.ours(ctx, job, err); err == nil {
			hold.Revision = saved.Revision
			saved, err = j.holds.Advance(ctx, hold)
		}
	}
	if err != nil {
		return fmt.Errorf("save replay %s: %w", job.ID, err)
	}
	job.Revision = saved.Revision
	return nil
}

// ours returns the job's hold if this process wrote it last, else the conflict.
func (j replayJobs) ours(ctx context.Context, job *replay.Job, conflict error) (bus.Hold, error) {
	list, err := j.holds.List(ctx)
	if err != nil {
		return bus.Hold{}, err
	}
	for _, h := range list {
		var there replay.Job
		if h.Name == replayPrefix+job.ID && json.Unmarshal([]byte(h.Work), &there) == nil && there.Worker == job.Worker {
			return h, nil
		}
	}
	return bus.Hold{}, conflict
}

// End releases the hold.
func (j replayJobs) End(ctx context.Context, job *replay.Job) error {
	return j.holds.Release(ctx, bus.Hold{Name: replayPrefix + job.ID, Revision: job.Revision})
}

// open returns the jobs that are not ended, the oldest first.
func (j replayJobs) open(ctx context.Context) ([]replay.Job, error) {
	list, err := j.holds.List(ctx)
	if err != nil {
		return nil, err
	}
	var jobs []replay.Job
	for _, h := range list {
		if !strings.HasPrefix(h.Name, replayPrefix) {
			continue
		}
		job, err := replay.ParseJob([]byte(h.Work))
		if err != nil {
			return nil, fmt.Errorf("read what %s was to do: %w", h.Name, err)
		}
		job.Revision = h.Revision
		jobs = append(jobs, job)
	}
	slices.SortFunc(jobs, func(a, b replay.Job) int { return cmp.Or(a.Begun.Compare(b.Begun), cmp.Compare(a.ID, b.ID)) })
	return jobs, nil
}

// gap returns what the ingesters hold because the database went back.
func (j replayJobs) gap(ctx context.Context) (replay.Gap, bool, error) {
	hold, held, err := gapHolds(j).find(ctx)
	return replay.Gap{
		Gap:      ingester.Gap{Incarnation: hold.Incarnation, From: hold.From, To: hold.To},
		Revision: hold.Revision,
	}, held, err
}

// Fill releases the ingesters' gap unless it was taken again since.
func (j replayJobs) Fill(ctx context.Context, gap replay.Gap) (bool, error) {
	err := j.holds.Release(ctx, bus.Hold{Name: gapName, Revision: gap.Revision})
	if fault.ClassOf(err) == fault.Conflict {
		return false, nil
	}
	return err == nil, err
}
