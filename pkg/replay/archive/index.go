package archive

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// IndexFile is the name of the index.
const IndexFile = "index.json"

const segmentSuffix = ".segment"

// Index says what a directory holds. It is written anew with every segment.
type Index struct {
	Version     int    `json:"version"` // 1
	Incarnation string `json:"incarnation"`
	// Scope says what was asked for. An export goes on with one of equal scope
	// only.
	Scope string `json:"scope"`
	First uint64 `json:"first"` // sequences that were asked for, both included; Last is one less for none
	Last  uint64 `json:"last"`

	Segments []Segment `json:"segments"`
	// OldestSent is when the oldest batch of all was sent, by its sender; zero
	// when there is none.
	OldestSent time.Time `json:"oldest_sent,omitzero"`
	// Complete means that the segments hold all of the range that was on the
	// stream.
	Complete bool `json:"complete"`
}

// Segment is one file.
type Segment struct {
	File     string `json:"file"`
	First    uint64 `json:"first"` // sequences, both included
	Last     uint64 `json:"last"`
	Messages uint64 `json:"messages"`
	Bytes    int64  `json:"bytes"`
}

// Messages returns how many there are.
func (x *Index) Messages() (messages uint64, bytes int64) {
	for _, s := range x.Segments {
		messages += s.Messages
		bytes += s.Bytes
	}
	return messages, bytes
}

// Next returns the first sequence that no segment holds yet.
func (x *Index) Next() uint64 {
	if n := len(x.Segments); n > 0 {
		return x.Segments[n-1].Last + 1
	}
	return x.First
}

// Missing returns how many sequences of the range were no longer on the stream,
// so far.
func (x *Index) Missing() uint64 {
	end := x.Next()
	if x.Complete {
		end = x.Last + 1
	}
	messages, _ := x.Messages()
	return end - x.First - messages
}

// ReadIndex reads a directory's index; fs.ErrNotExist when there is none.
func ReadIndex(dir string) (*Index, error) {
	data, err := os.ReadFile(filepath.Join(dir, IndexFile))
	if err != nil {
		return nil, err
	}
	x, err := parseIndex(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, IndexFile), err)
	}
	return x, nil
}

// parseIndex believes nothing: the file may have come from anywhere.
func parseIndex(data []byte) (*Index, error) {
	var x Index
	if err := json.Unmarshal(data, &x); err != nil {
		return nil, err
	}
	if x.Version != 1 {
		return nil, fmt.Errorf("version %d is not known here", x.Version)
	}
	if x.First == 0 || x.Last < x.First-1 || x.Last+1 == 0 {
		return nil, fmt.Errorf("sequences %d to %d are no range", x.First, x.Last)
	}
	next := x.First
	for _, s := range x.Segments {
		switch {
		case s.File != filepath.Base(s.File) || filepath.Ext(s.File) != segmentSuffix:
			return nil, fmt.Errorf("%q is no name of a segment", s.File)
		case s.First < next || s.Last < s.First || s.Last > x.Last || s.Messages == 0 || s.Messages-1 > s.Last-s.First:
			return nil, fmt.Errorf("segment %s: %d messages from %d to %d do not fit in after %d", s.File, s.Messages, s.First, s.Last, next-1)
		}
		next = s.Last + 1
	}
	return &x, nil
}

// write puts the index in the place of the one before, durably.
func (x *Index) write(dir string) error {
	data, err := json.MarshalIndent(x, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(dir, IndexFile, func(f *os.File) error {
		_, err := f.Write(append(data, '\n'))
		return err
	})
}

// partSuffix is of files that are being written. What is left of one is
// overwritten or ignored.
const partSuffix = ".part"

// replaceFile writes a file that is there under its name whole or not at all.
func replaceFile(dir, name string, write func(*os.File) error) error {
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path+partSuffix, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return rename(dir, name)
}

// rename gives a part its name. Both lie on the disk then.
func rename(dir, name string) error {
	path := filepath.Join(dir, name)
	if err := os.Rename(path+partSuffix, path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// begin returns the index to go on with, or a new one. A directory with
// anything else in it is refused: nobody would find that again.
func begin(dir string, want Index) (*Index, error) {
	x, err := ReadIndex(dir)
	if err == nil {
		if x.Incarnation != want.Incarnation || x.Scope != want.Scope {
			return nil, fmt.Errorf("%s holds something else already: %s of the stream of %s", dir, x.Scope, x.Incarnation)
		}
		return x, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if filepath.Ext(e.Name()) != partSuffix {
			return nil, fmt.Errorf("%s is not empty and no export: it has %s", dir, e.Name())
		}
	}
	want.Version = 1
	return &want, want.write(dir)
}
