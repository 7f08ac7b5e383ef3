// Package logread counts the messages in a PostgreSQL server's log files by
// severity and SQLSTATE. Nothing else of a message leaves the package.
//
// Invariants: only complete records are counted, each once; a record that makes
// no sense is counted as unreadable and passed over; reading is bounded per
// call. What was logged while no reader followed is not counted.
package logread

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// Key is what messages are counted by.
type Key struct {
	Severity string // as in the log, at most 32 bytes
	SQLState string // 5 characters
}

// Bounds of reading.
const (
	maxRecord = 1 << 20  // bytes of one record; a longer one is unreadable
	maxKeys   = 1000     // that are told apart in one call
	maxRead   = 32 << 20 // bytes of one file in one call; the rest comes with the next
	chunk     = 64 << 10
)

// Follower follows the files that match a pattern. It is not safe for
// concurrent use.
type Follower struct {
	pattern string
	files   map[identity]*file
	begun   bool
	buf     []byte
}

// identity tells a file from one that takes its name later.
type identity struct{ device, inode uint64 }

// file is how far one was read.
type file struct {
	path   string
	offset int64 // after the last complete record
	lost   bool  // until a record makes sense again: it was counted that none does
}

// New makes a follower of the files that match pattern, as of filepath.Match:
// those whose name ends in .csv are read as csvlog, in .json as jsonlog.
func New(pattern string) (*Follower, error) {
	if _, err := filepath.Match(pattern, ""); err != nil || !filepath.IsAbs(pattern) {
		return nil, fmt.Errorf("log files %q: must be an absolute path or pattern", pattern)
	}
	if ext := filepath.Ext(pattern); ext != ".csv" && ext != ".json" {
		return nil, fmt.Errorf("log files %q: must end in .csv or .json, the formats of csvlog and jsonlog", pattern)
	}
	return &Follower{pattern: pattern, files: map[identity]*file{}, buf: make([]byte, 0, chunk)}, nil
}

// Count is what was logged since the call before.
type Count struct {
	Messages   map[Key]int64
	Unreadable int64 // places where the files make no sense, or a record is too long
}

// Read returns what was logged since the call before; the first call only finds
// the files' ends. What could be counted is returned beside an error. No file at
// all is an error that is fs.ErrNotExist.
func (f *Follower) Read() (Count, error) {
	count := Count{Messages: map[Key]int64{}}
	paths, err := filepath.Glob(f.pattern)
	if err != nil {
		return count, fmt.Errorf("find log files: %w", err)
	}
	if len(paths) == 0 {
		clear(f.files) // their identities may be given to others
		return count, fmt.Errorf("no log file %s: %w", f.pattern, fs.ErrNotExist)
	}
	var errs []error
	there := map[identity]bool{}
	for _, path := range paths {
		if err := f.follow(path, there, &count); err != nil {
			errs = append(errs, err)
		}
	}
	maps.DeleteFunc(f.files, func(id identity, _ *file) bool { return !there[id] })
	f.begun = f.begun || len(errs) < len(paths)
	return count, errors.Join(errs...)
}

// follow reads what one file has more than before.
func (f *Follower) follow(path string, there map[identity]bool, count *Count) error {
	in, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // or a pipe of that name would be waited for, for ever
	if err != nil {
		return fmt.Errorf("open log file: %w", err)
	}
	defer func() { _ = in.Close() }()
	info, err := in.Stat()
	if err != nil {
		return fmt.Errorf("look at log file: %w", err)
	}
	id, ok := identify(info)
	if !ok || !info.Mode().IsRegular() {
		return fmt.Errorf("log file %s is no regular file", path)
	}
	there[id] = true
	at, known := f.files[id]
	switch {
	case !known && !f.begun: // what was logged before is not ours to count
		at = &file{offset: info.Size(), lost: true} // maybe within a record
	case !known, info.Size() < at.offset: // new, or cut back by a rotation
		at = &file{}
	}
	at.path, f.files[id] = path, at
	return f.read(in, at, min(info.Size(), at.offset+maxRead), count)
}

func identify(info fs.FileInfo) (identity, bool) {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}, false
	}
	return identity{uint64(s.Dev), s.Ino}, true //nolint:unconvert // of other sizes on other systems
}

// read counts the records between the file's offset and end.
func (f *Follower) read(in io.ReaderAt, at *file, end int64, count *Count) error {
	format := csvlog
	if filepath.Ext(at.path) == ".json" {
		format = jsonlog
	}
	f.buf = f.buf[:0]
	for next := at.offset; next < end; {
		f.buf = slices.Grow(f.buf, chunk)
		n, err := in.ReadAt(f.buf[len(f.buf):len(f.buf)+int(min(chunk, end-next))], next)
		f.buf, next = f.buf[:len(f.buf)+n], next+int64(n)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read log file: %w", err)
		}
		if n == 0 {
			break
		}
		f.take(at, format, count)
	}
	return nil
}

// take counts the complete records in the buffer and leaves the rest in it.
//
// Of what makes no sense only the first line is passed over: a quote that is
// never closed would make one record of all that follows.
func (f *Follower) take(at *file, format format, count *Count) {
	done := 0
	for {
		rest := f.buf[done:]
		size := format.end(rest)
		if size == 0 && len(rest) <= maxRecord {
			break
		}
		key, ok := Key{}, false
		if size > 0 {
			key, ok = format.key(rest[:size])
		}
		if ok {
			at.lost = false
			count.add(key)
			done += size
			continue
		}
		line := bytes.IndexByte(rest, '\n') + 1
		if line == 0 {
			line = len(rest)
		}
		if !at.lost && len(bytes.TrimSpace(rest[:line])) > 0 {
			at.lost = true
			count.Unreadable++
		}
		done += line
	}
	f.drop(at, done)
}

// drop lets go of the first n bytes of the buffer, which are done with.
func (f *Follower) drop(at *file, n int) {
	at.offset += int64(n)
	f.buf = f.buf[:copy(f.buf, f.buf[n:])]
}

// add counts a message. Whoever may run statements may make up as many SQLSTATEs
// as there are: beyond maxKeys they are counted as what their class is called.
func (c *Count) add(key Key) {
	if _, known := c.Messages[key]; !known && len(c.Messages) >= maxKeys {
		key.SQLState = key.SQLState[:2] + "000"
	}
	c.Messages[key]++
}

// Keys returns the keys in a stable order.
func (c *Count) Keys() []Key {
	return slices.SortedFunc(maps.Keys(c.Messages), func(a, b Key) int {
		return cmp.Or(cmp.Compare(a.Severity, b.Severity), cmp.Compare(a.SQLState, b.SQLState))
	})
}
