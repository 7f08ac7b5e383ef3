package replay

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
)

// Plan is what a replay would do.
type Plan struct {
	First      uint64          `json:"first"` // sequences, both included
	Last       uint64          `json:"last"`
	Begins     time.Time       `json:"begins"` // times of the first and the last message, by the stream's clock
	Ends       time.Time       `json:"ends"`
	Collectors []CollectorPlan `json:"collectors"` // by id
	Selected   Counts          `json:"selected"`
	Missing    Counts          `json:"missing"`
	Unreadable uint64          `json:"unreadable"` // messages that are no batch: they lie in the dead letters
	Unknown    uint64          `json:"unknown"`    // batches of a newer gateway, which this command cannot read
	Gone       []Jump          `json:"gone"`       // what has left the stream, the first few ranges
	Late       bool            `json:"late"`       // the stream begins after the time that was asked for
}

// Partial reports whether some of what was asked for is not on the stream.
func (p *Plan) Partial() bool { return p.Late || len(p.Gone) > 0 }

// CollectorPlan is the part of one collector.
type CollectorPlan struct {
	ID       uuid.UUID `json:"id"`
	Selected Counts    `json:"selected"`
	Missing  Counts    `json:"missing"`
}

// Plan reads the job's range once and tells what the database lacks of it. The
// job takes what is missing from it.
func (r *Replayer) Plan(ctx context.Context, job *Job) (Plan, error) {
	p := Plan{First: job.First, Last: job.Last}
	reader, err := r.Stream.Read(ctx, job.part(job.First, job.Last))
	if err != nil {
		return p, fmt.Errorf("plan: %w", err)
	}
	s := newScan(reader, r.Ledger, job.Selection, job.First)
	of := map[uuid.UUID]*CollectorPlan{}
	for {
		some, err := s.next(ctx)
		if err != nil {
			return p, fmt.Errorf("plan: %w", err)
		}
		if len(some) == 0 {
			break
		}
		for i := range some {
			p.count(&some[i], of)
		}
		r.tell(Progress{Planning: true, First: job.First, Last: job.Last, Next: s.at, Missing: p.Missing})
	}
	s.pass(job.Last + 1)
	p.Gone = s.jumps
	for _, c := range of {
		p.Collectors = append(p.Collectors, *c)
	}
	slices.SortFunc(p.Collectors, func(a, b CollectorPlan) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	job.Missing = p.Missing
	return p, nil
}

func (p *Plan) count(x *seen, of map[uuid.UUID]*CollectorPlan) {
	if p.Begins.IsZero() {
		p.Begins = x.StoredAt
	}
	p.Ends = x.StoredAt
	switch x.state {
	case unreadable:
		p.Unreadable++
	case unknown:
		p.Unknown++
	case stored, missing:
		c := of[x.batch.CollectorID]
		if c == nil {
			c = &CollectorPlan{ID: x.batch.CollectorID}
			of[c.ID] = c
		}
		p.Selected.add(x.batch, len(x.Payload))
		c.Selected.add(x.batch, len(x.Payload))
		if x.state == missing {
			p.Missing.add(x.batch, len(x.Payload))
			c.Missing.add(x.batch, len(x.Payload))
		}
	}
}

func (r *Replayer) tell(p Progress) {
	if r.Tell != nil {
		r.Tell(p)
	}
}
