package service

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"pganalytics/pkg/bus"
	"pganalytics/pkg/fault"
	"pganalytics/pkg/replay/archive"
)

// Export is a part of the stream to be written to a directory.
type Export struct {
	From, To     time.Time // by the stream's clock; To is not included, zero stands for now
	Dir          string
	SegmentBytes int64
}

// Exported is what an export came to.
type Exported struct {
	First    uint64 `json:"first"` // sequences asked for, both included
	Last     uint64 `json:"last"`
	Messages uint64 `json:"messages"`
	Bytes    int64  `json:"bytes"`
	Segments int    `json:"segments"`
	Missing  uint64 `json:"missing"` // sequences that were no longer on the stream
	Late     bool   `json:"late"`    // the stream begins after From
}

// Run writes the part, going on where a run before was interrupted. Meanwhile
// the stream is held; when the process is killed, the hold stays until the
// export is run once more.
func (e Export) Run(ctx context.Context, in *Installation, stderr io.Writer) (Exported, error) {
	b, err := in.Bus(ctx, stderr)
	if err != nil {
		return Exported{}, err
	}
	defer func() { _ = b.Close(context.WithoutCancel(ctx)) }()
	want, late, err := e.plan(ctx, b)
	if err != nil {
		return Exported{}, err
	}
	x, err := archive.Open(e.Dir, want)
	if err != nil {
		return Exported{}, err
	}
	if !x.Complete {
		err = e.write(ctx, b, x)
	}
	done := Exported{First: x.First, Last: x.Last, Segments: len(x.Segments), Missing: x.Missing(), Late: late}
	done.Messages, done.Bytes = x.Messages()
	return done, err
}

// plan finds the sequences that were stored between the times. What an earlier
// run had asked for without an end keeps the end of that time.
func (e Export) plan(ctx context.Context, b *bus.Bus) (want archive.Index, late bool, err error) {
	status, err := b.Status(ctx)
	if err != nil {
		return want, false, err
	}
	until := "the end"
	want = archive.Index{Incarnation: status.Incarnation, Last: status.LastSequence}
	if want.First, err = b.SequenceAt(ctx, e.From); err != nil {
		return want, false, err
	}
	if !e.To.IsZero() {
		until = e.To.UTC().Format(time.RFC3339Nano)
		next, err := b.SequenceAt(ctx, e.To)
		if err != nil {
			return want, false, err
		}
		want.Last = min(want.Last, next-1)
	}
	want.Last = max(want.Last, want.First-1)
	want.Scope = fmt.Sprintf("from %s to %s", e.From.UTC().Format(time.RFC3339Nano), until)
	return want, status.FirstSequence > 1 && status.FirstTime.After(e.From), nil
}

// write holds what is not written yet, for as long as it writes.
func (e Export) write(ctx context.Context, b *bus.Bus, x *archive.Index) (err error) {
	from, to := x.Next(), x.Last
	if from <= to {
		hold, err := b.Holds().Take(ctx, bus.Hold{
			Name: e.holdName(), Incarnation: x.Incarnation, From: from, To: to, Reason: "export to " + e.Dir, By: "pganalytics stream export",
		})
		if err != nil {
			return fmt.Errorf("hold what is exported: %w", err)
		}
		defer func() { err = errors.Join(err, release(ctx, b, hold)) }()
	}
	r, err := b.Reader(ctx, from, to)
	if err != nil {
		return err
	}
	if r.Incarnation() != x.Incarnation {
		return fault.Wrap(fault.Conflict, fmt.Errorf("the stream is of %s now, the export of %s", r.Incarnation(), x.Incarnation))
	}
	return archive.Export(ctx, e.Dir, x, r, archive.Limits{SegmentBytes: e.SegmentBytes, FetchBytes: int(2 * b.MaxPayload())})
}

// release is done also when the export was interrupted: the next run takes the
// hold again, and one that nobody works on would fill the stream.
func release(ctx context.Context, b *bus.Bus, hold bus.Hold) error {
	if err := b.Holds().Release(context.WithoutCancel(ctx), hold); err != nil {
		return fmt.Errorf("release hold %s: %w", hold.Name, err)
	}
	return nil
}

// holdName is the same for each run into one directory.
func (e Export) holdName() string {
	path, err := filepath.Abs(e.Dir)
	if err != nil {
		path = e.Dir
	}
	sum := sha256.Sum256([]byte(path))
	return fmt.Sprintf("export-%x", sum[:6])
}
