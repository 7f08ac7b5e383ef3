package archive

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"pganalytics/pkg/batch"
)

// DamageError is a part of an archive that cannot be read. Its text names it.
type DamageError struct {
	File        string
	First, Last uint64 // sequences among which it lies
	Err         error
}

// Error names the messages.
func (d *DamageError) Error() string {
	if d.First == d.Last {
		return fmt.Sprintf("message %d in %s cannot be read: %v", d.First, d.File, d.Err)
	}
	return fmt.Sprintf("messages among %d to %d in %s cannot be read: %v", d.First, d.Last, d.File, d.Err)
}

func (d *DamageError) Unwrap() error { return d.Err }

// Reader reads an archive in the stream's order, as bus.Reader does the stream.
// Its methods must not be called concurrently.
type Reader struct {
	dir     string
	index   *Index
	to      uint64             // the last sequence wanted
	skip    func(*DamageError) // nil: damage is an error
	segment int                // the next one to open
	file    *os.File           // nil when none is open
	in      *bufio.Reader
	next    uint64 // sequence after the last message
	read    uint64 // messages of the segment
	before  uint64 // sequence of the last of them
	missing uint64
	pending *batch.Delivery // read, not returned yet
	failed  error           // ends the reading
}

// NewReader returns a reader of the archive in dir. With skip, what is damaged is
// told to it and left out; without, Next returns it as an error. An export that
// did not come to its end is an error, as half of it would look like all.
func NewReader(dir string, skip func(*DamageError)) (*Reader, error) {
	x, err := ReadIndex(dir)
	if err != nil {
		return nil, fmt.Errorf("open archive: %w", err)
	}
	if !x.Complete {
		return nil, fmt.Errorf("open archive %s: the export did not come to its end; run it once more", dir)
	}
	return &Reader{dir: dir, index: x, to: x.Last, skip: skip, next: x.First}, nil
}

// Limit narrows the reading to the sequences from and to and all between them,
// before the first Next.
func (r *Reader) Limit(from, to uint64) {
	r.next, r.to = max(r.next, from), min(r.to, to)
	for r.segment < len(r.index.Segments) && r.index.Segments[r.segment].Last < r.next {
		r.segment++
	}
}

// Index says what the archive holds.
func (r *Reader) Index() *Index { return r.index }

// Incarnation returns that of the stream which was exported.
func (r *Reader) Incarnation() string { return r.index.Incarnation }

// Missing returns how many of the sequences up to the last one returned, or of
// all at the end, are not in the archive: they had left the stream, or are
// damaged.
func (r *Reader) Missing() uint64 { return r.missing }

// Close ends the reading.
func (r *Reader) Close() error {
	f := r.file
	if f == nil {
		return nil
	}
	r.file = nil
	return f.Close()
}

// Next returns the next messages: at most maxMessages, and at most maxBytes of
// payload unless the next one alone is larger. None without error means that all
// have been returned. A *DamageError is returned after all that lies before it. Ack
// and Extend of these deliveries do nothing.
func (r *Reader) Next(ctx context.Context, maxMessages, maxBytes int) ([]batch.Delivery, error) {
	var all []batch.Delivery
	for bytes := 0; len(all) < max(1, maxMessages); {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		d, err := r.peek()
		if err == io.EOF || err == nil && d.Sequence > r.to { //nolint:errorlint // peek returns it as it is
			r.skipTo(r.to + 1)
			return all, r.Close()
		}
		if err != nil {
			if r.failed = err; len(all) > 0 {
				return all, nil
			}
			return nil, err
		}
		if bytes += len(d.Payload); len(all) > 0 && bytes > maxBytes {
			break
		}
		r.pending = nil
		r.skipTo(d.Sequence)
		r.next = d.Sequence + 1
		all = append(all, *d)
	}
	return all, nil
}

// peek returns the next message, again until it is taken; io.EOF at the end.
func (r *Reader) peek() (*batch.Delivery, error) {
	for r.pending == nil {
		if r.failed != nil {
			return nil, r.failed
		}
		if r.file == nil && r.segment == len(r.index.Segments) {
			return nil, io.EOF
		}
		if r.file == nil {
			r.segment++
			if err := r.open(); err != nil {
				return nil, err
			}
			continue
		}
		if err := r.advance(); err != nil {
			return nil, err
		}
	}
	return r.pending, nil
}

func (r *Reader) current() *Segment { return &r.index.Segments[r.segment-1] }

// open opens the current segment. One that is not there or begins with something
// else is damaged as a whole.
func (r *Reader) open() error {
	s := r.current()
	f, err := os.Open(filepath.Join(r.dir, s.File))
	if err != nil {
		return r.damaged(&DamageError{File: s.File, First: s.First, Last: s.Last, Err: err})
	}
	r.file, r.in, r.read = f, bufio.NewReaderSize(f, 1<<20), 0
	begins := make([]byte, len(magic))
	if _, err := io.ReadFull(r.in, begins); err != nil || string(begins) != magic {
		return errors.Join(r.Close(), r.damaged(&DamageError{File: s.File, First: s.First, Last: s.Last, Err: errors.New("it is no segment")}))
	}
	return nil
}

// advance reads the next record of the open segment.
func (r *Reader) advance() error {
	s := r.current()
	d, err := readRecord(r.in)
	switch {
	case err == io.EOF && r.read >= s.Messages: //nolint:errorlint // readRecord returns it as it is
		return r.Close()
	case err == io.EOF, errors.Is(err, errCut): //nolint:errorlint // as above
		damage := &DamageError{File: s.File, First: r.place(s), Last: s.Last, Err: errCut}
		return errors.Join(r.Close(), r.damaged(damage))
	case err == nil && (d.Sequence < s.First || d.Sequence > s.Last || r.read > 0 && d.Sequence <= r.before):
		err = errDamaged // a record of another place
	}
	first := r.place(s)
	r.read++
	if errors.Is(err, errDamaged) {
		damage := &DamageError{File: s.File, First: first, Last: s.Last, Err: err}
		if s.whole() {
			damage.Last = first
		}
		return r.damaged(damage)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", s.File, err)
	}
	if r.before = d.Sequence; d.Sequence < r.next {
		return nil // before what is wanted
	}
	d.Incarnation, d.Delivered = r.index.Incarnation, 1
	d.Ack = func(context.Context) error { return nil }
	d.Extend = func() error { return nil }
	r.pending = &d
	return nil
}

// place returns the sequence of the next record: in a segment with no gap by
// counting, else the first that it can be.
func (r *Reader) place(s *Segment) uint64 {
	if s.whole() {
		return min(s.First+r.read, s.Last)
	}
	return min(max(r.next, s.First), s.Last)
}

// whole reports whether the segment has every sequence of its range.
func (s *Segment) whole() bool { return s.Messages == s.Last-s.First+1 }

func (r *Reader) damaged(d *DamageError) error {
	if r.skip == nil {
		return d
	}
	r.skip(d)
	return nil
}

// skipTo counts what lies before a sequence as missing.
func (r *Reader) skipTo(sequence uint64) {
	if sequence > r.next {
		r.missing += sequence - r.next
		r.next = sequence
	}
}
