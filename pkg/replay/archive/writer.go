package archive

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"

	"pganalytics/pkg/batch"
)

// Source reads the stream's messages in order.
type Source interface {
	// Next returns no message at the end.
	Next(ctx context.Context, maxMessages, maxBytes int) ([]batch.Delivery, error)
}

// Limits of one export.
type Limits struct {
	SegmentBytes int64 // a segment ends with the message that reaches it
	FetchBytes   int   // read at once; two of the largest messages must fit in
}

// fetchMessages is enough for small batches to be read at the disk's speed.
const fetchMessages = 1000

// Open returns the index of the export in dir: that of want.Scope and
// want.Incarnation if one was begun, else a new one with want's range.
func Open(dir string, want Index) (*Index, error) {
	x, err := begin(dir, want)
	if err != nil {
		return nil, fmt.Errorf("open export: %w", err)
	}
	return x, nil
}

// Export writes what source has from x.Next() on to dir, until its end. When it
// is interrupted, the segments that were ended stay, and Open and Export go on
// after them.
func Export(ctx context.Context, dir string, x *Index, source Source, limits Limits) error {
	w := &writer{dir: dir, index: x, limits: limits}
	err := w.run(ctx, source)
	if w.file != nil {
		err = errors.Join(err, w.file.Close())
	}
	if err != nil {
		return fmt.Errorf("export to %s: %w", dir, err)
	}
	return nil
}

type writer struct {
	dir    string
	index  *Index
	limits Limits

	file    *os.File // nil between segments
	out     *bufio.Writer
	segment Segment
	record  []byte
}

func (w *writer) run(ctx context.Context, source Source) error {
	for {
		some, err := source.Next(ctx, fetchMessages, w.limits.FetchBytes)
		if err != nil {
			return err
		}
		if len(some) == 0 {
			break
		}
		for i := range some {
			if err := w.add(ctx, &some[i]); err != nil {
				return err
			}
		}
	}
	if w.file != nil {
		if err := w.end(); err != nil {
			return err
		}
	}
	w.index.Complete = true
	return w.index.write(w.dir)
}

func (w *writer) add(ctx context.Context, d *batch.Delivery) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if w.file == nil {
		if err := w.begin(d.Sequence); err != nil {
			return err
		}
	}
	var err error
	if w.record, err = appendRecord(w.record[:0], d); err != nil {
		return err
	}
	if _, err := w.out.Write(w.record); err != nil {
		return err
	}
	w.segment.Last = d.Sequence
	w.segment.Messages++
	w.segment.Bytes += int64(len(w.record))
	if b, err := batch.Unmarshal(d.Payload); err == nil && (w.index.OldestSent.IsZero() || b.SentAt.Before(w.index.OldestSent)) {
		w.index.OldestSent = b.SentAt // of what cannot be read there is none
	}
	if w.segment.Bytes < w.limits.SegmentBytes {
		return nil
	}
	return w.end()
}

func (w *writer) begin(first uint64) error {
	w.segment = Segment{File: fmt.Sprintf("%020d%s", first, segmentSuffix), First: first, Bytes: int64(len(magic))}
	f, err := os.OpenFile(w.path()+partSuffix, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	w.file, w.out = f, bufio.NewWriterSize(f, 1<<20)
	_, err = w.out.WriteString(magic)
	return err
}

// end makes the segment durable, and only then names it in the index.
func (w *writer) end() error {
	f := w.file
	w.file = nil
	err := w.out.Flush()
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := rename(w.dir, w.segment.File); err != nil {
		return err
	}
	w.index.Segments = append(w.index.Segments, w.segment)
	return w.index.write(w.dir)
}

func (w *writer) path() string { return w.dir + string(os.PathSeparator) + w.segment.File }
