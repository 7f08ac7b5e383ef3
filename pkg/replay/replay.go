// Package replay stores batches of the stream again that the database lacks,
// because it was restored from a backup or its place was taken by a standby
// that was behind.
//
// Its invariants: what it stores goes the way of every batch, through an
// ingester that reads the stream again instead of consuming it, so the ledger
// decides what is stored once; and a range counts as done only when each of its
// batches was found in the ledger, stored, or buried. It must not know the
// stream's protocol nor the database's.
package replay

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/ingester"
)

// Stream is the stream as it can be read again.
type Stream interface {
	// Read returns what is left of a range, in the stream's order.
	Read(ctx context.Context, part ingester.Gap) (ingester.Reader, error)
	// Live tells how many batches the shared consumer has brought to their end
	// and how many wait for it.
	Live(ctx context.Context) (ended, waiting uint64, err error)
}

// Ledger tells what the database holds.
type Ledger interface {
	// Missing returns the indexes of the items that it lacks.
	Missing(ctx context.Context, items []batch.Item) ([]int, error)
}

// Letters keeps what cannot be stored.
type Letters interface {
	ingester.DeadLetters
	ingester.Buried
}

// Jobs keeps a job, and with it its part of the stream, durably.
type Jobs interface {
	// Save errs with fault.Conflict if somebody else has changed the job.
	Save(ctx context.Context, job *Job) error
	// End lets go of the job's part of the stream.
	End(ctx context.Context, job *Job) error
	// Fill lets go of the gap unless it was held again meanwhile: then it is
	// not filled.
	Fill(ctx context.Context, gap Gap) (filled bool, err error)
}

// Job is one replay: what was asked for and how far it is. It outlives the
// process that works on it.
type Job struct {
	ID          string    `json:"id"`
	Incarnation string    `json:"incarnation"` // of the stream that the sequences are of
	First       uint64    `json:"first"`       // sequences that were asked for, both included
	Last        uint64    `json:"last"`
	Next        uint64    `json:"next"` // all before it are done
	Selection   Selection `json:"selection"`
	Rate        int       `json:"rate,omitzero"` // rows a second, 0: as many as possible
	Partial     bool      `json:"partial"`       // although some of it has left the stream
	Gap         *Gap      `json:"gap,omitzero"`  // held for the database, and filled by this job
	Missing     Counts    `json:"missing"`       // as planned
	Done        Done      `json:"done"`
	Begun       time.Time `json:"begun"`

	// Worker is who works on it: a process that lost it to another notices.
	Worker   string `json:"worker"`
	Revision uint64 `json:"-"` // for whoever keeps it
}

// ParseJob reads a job that was saved as JSON.
func ParseJob(text []byte) (Job, error) {
	var j Job
	if err := json.Unmarshal(text, &j); err != nil {
		return j, err
	}
	if j.ID == "" || j.First < 1 || j.First > j.Next || j.Next-1 > j.Last || j.Rate < 0 {
		return j, fmt.Errorf("job %q of sequences %d to %d at %d makes no sense", j.ID, j.First, j.Last, j.Next)
	}
	return j, nil
}

// Gap is what is held because the database may lack it. Revision tells whether
// it was held again since, because the database went back once more.
type Gap struct {
	ingester.Gap
	Revision uint64
}

// Selection narrows a replay. The zero value takes every batch.
type Selection struct {
	Collectors []uuid.UUID `json:"collectors,omitempty"`
	Families   []string    `json:"families,omitempty"` // batches with rows of one of them, always whole
}

func (s Selection) all() bool { return len(s.Collectors)+len(s.Families) == 0 }

func (s Selection) takes(b *batch.Batch) bool {
	if len(s.Collectors) > 0 && !slices.Contains(s.Collectors, b.CollectorID) {
		return false
	}
	return len(s.Families) == 0 || slices.ContainsFunc(b.Sections, func(sec batch.Section) bool {
		return slices.Contains(s.Families, sec.Family)
	})
}

// Counts is an amount of batches. Bytes are as they lie on the stream.
type Counts struct {
	Batches uint64 `json:"batches"`
	Rows    uint64 `json:"rows"`
	Bytes   uint64 `json:"bytes"`
}

func (c *Counts) add(b *batch.Batch, bytes int) {
	c.Batches++
	c.Rows += uint64(b.Rows())
	c.Bytes += uint64(bytes)
}

// Done is what became of the batches of a job, over all its runs.
type Done struct {
	Stored     Counts `json:"stored"`     // by this job; without Bytes
	Skipped    uint64 `json:"skipped"`    // batches that were stored already
	Buried     uint64 `json:"buried"`     // batches that lie in the dead letters, perhaps once more
	Unreadable uint64 `json:"unreadable"` // messages that are no batch
}

// Progress is one look at a job at work.
type Progress struct {
	Planning    bool
	First, Last uint64
	Next        uint64
	Missing     Counts // found so far, or planned
	Done        Done
	RowsPerSec  float64
	Waiting     string // for what it waits, empty if it does not
}

// Result is what a job came to.
type Result struct {
	Job
	Left int    `json:"left"` // batches that another try may store
	Gone []Jump `json:"gone"` // what had left the stream, the first few ranges
	// Filled says that the database lacks nothing more of the gap that was held.
	Filled  bool    `json:"filled"`
	Seconds float64 `json:"seconds"` // of this run, without the plan
}

// Replayer works on jobs, one at a time.
type Replayer struct {
	Stream  Stream
	Ledger  Ledger
	Jobs    Jobs
	Store   ingester.Store
	Letters Letters
	Loading ingester.Config
	Log     *slog.Logger
	Tell    func(Progress) // is called every second or so, from one goroutine at a time
}

// part is a range of the job's stream.
func (j *Job) part(first, last uint64) ingester.Gap {
	return ingester.Gap{Incarnation: j.Incarnation, From: first, To: last}
}

// Fills lets the job end a gap, if nothing of it is left out. streamFirst is the
// first sequence of the stream: what is gone cannot be had any more.
func (j *Job) Fills(gap Gap, streamFirst uint64) {
	if j.Selection.all() && gap.Incarnation == j.Incarnation && j.First <= max(gap.From, streamFirst) && gap.To <= j.Last {
		j.Gap = &gap
	}
}

// tailBack is how many batches before a job's position are looked up when it is
// taken up again.
const tailBack = 20

// Resume puts the job back to its beginning if the database has gone back
// since. Like the check of a starting ingester it looks up the newest of what
// was stored.
func (r *Replayer) Resume(ctx context.Context, job *Job) error {
	from := job.Next - min(job.Next, tailBack)
	if from = max(from, job.First); from == job.Next {
		return nil
	}
	reader, err := r.Stream.Read(ctx, job.part(from, job.Next-1))
	if err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	s := newScan(reader, r.Ledger, job.Selection, from)
	for {
		seen, err := s.next(ctx)
		if err != nil || len(seen) == 0 {
			return err
		}
		for _, x := range seen {
			if x.state != missing {
				continue
			}
			buried, err := r.Letters.Buried(ctx, x.batch)
			if err != nil {
				return err
			}
			if !buried {
				job.Next = job.First
				return r.Jobs.Save(ctx, job)
			}
		}
	}
}
