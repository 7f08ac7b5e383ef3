package spool

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

const segmentSuffix = ".segment"

// segment is one file of records.
type segment struct {
	id     uint64
	path   string
	size   int64 // of readable records; what lies beyond does not count
	damage damage

	settledAt time.Time // when its last record was; only of kept ones
}

// write appends a record's bytes to the last segment, or to a new one when
// that is long enough.
func (s *Spool) write(data []byte) error {
	var seg *segment
	if n := len(s.segments); n > 0 {
		seg = s.segments[n-1]
	}
	if seg == nil || seg.size > 0 && seg.size+int64(len(data)) > s.cfg.SegmentBytes {
		if err := s.addSegment(); err != nil {
			return err
		}
		seg = s.segments[len(s.segments)-1]
	}
	if s.active == nil {
		f, err := os.OpenFile(seg.path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		s.active = f
	}
	if err := appendSynced(s.active, seg.size, data); err != nil {
		return err
	}
	seg.size += int64(len(data))
	return nil
}

// addSegment begins a new file. What a failed append may have left at the end
// of the last one is cut off first: there it would come to life when the spool
// is opened again, under a number that another batch has by then.
func (s *Spool) addSegment() error {
	if s.active != nil {
		last := s.segments[len(s.segments)-1]
		if err := errors.Join(s.active.Truncate(last.size), s.active.Sync()); err != nil {
			return err
		}
	}
	var id uint64 = 1
	if n := len(s.segments); n > 0 {
		id = s.segments[n-1].id + 1
	}
	path := filepath.Join(s.cfg.Dir, fmt.Sprintf("%016x%s", id, segmentSuffix))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if err := syncDir(s.cfg.Dir); err != nil {
		return errors.Join(err, f.Close())
	}
	if s.active != nil {
		_ = s.active.Close() // every record in it is synced
	}
	s.active = f
	s.segments = append(s.segments, &segment{id: id, path: path})
	return nil
}

// read reads the record at off. With errDamaged or errTorn the record has its
// stamp if the header was readable.
func (g *segment) read(off int64) (*Record, error) { return g.readWithin(off, g.size) }

// readWithin reads the record at off of a file of that size.
func (g *segment) readWithin(off, size int64) (*Record, error) {
	f, err := os.Open(g.path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	head := make([]byte, min(fixedHeaderLen+8*maxRefused, size-off))
	n, err := f.ReadAt(head, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	h, err := decodeHeader(head[:n])
	if err != nil {
		return &Record{}, err
	}
	data := make([]byte, min(int64(h.size+h.bodyLen), size-off))
	if n, err = f.ReadAt(data, off); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	r, _, err := decodeRecord(data[:n])
	return &r, err
}

// rewrite replaces a damaged file by one with its readable records only.
func (g *segment) rewrite() error {
	data, err := os.ReadFile(g.path)
	if err != nil {
		return err
	}
	entries, _ := scan(data)
	good := make([]byte, 0, g.size)
	for _, e := range entries {
		good = append(good, data[e.off:e.off+e.size]...)
	}
	if err := writeFile(g.path, good); err != nil {
		return fmt.Errorf("cut damage off: %w", err)
	}
	return nil
}
