package spool

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
)

// The journal says what became of each batch, and which epoch counts. It is
// also the cursor: batches are settled oldest first, so all records up to the
// last one named here are done. One line per entry: CRC32C in eight hex
// digits, a space, JSON.
const (
	journalName = "settled.log"
	journalPast = "settled.log.1"   // what journalName was before it grew too long
	journalNext = "settled.log.new" // what journalName will be; nobody reads it

	// 32 MiB are about 150,000 batches, two weeks of a batch every ten seconds.
	journalMaxBytes = 32 << 20
)

// kind of a journal entry.
type kind string

const (
	kindEpoch    kind = "epoch"    // an epoch began; previous() is the end of the one before
	kindAccepted kind = "accepted" // answered 202
	kindRefused  kind = "refused"  // refused for good, lies in the dead letters
	kindReported kind = "reported" // Numbers were reported as refused
	kindDamaged  kind = "damaged"  // unreadable when its turn came
	kindResent   kind = "resent"   // a dead letter was sent again and answered 202
)

// line is one entry of the journal.
type line struct {
	Kind      kind      `json:"kind"`
	At        time.Time `json:"at"` // collector's clock
	Epoch     uuid.UUID `json:"epoch"`
	Sequence  uint64    `json:"sequence,omitzero"`
	BatchID   uuid.UUID `json:"batch_id,omitzero"`
	Rows      int       `json:"rows,omitzero"`
	Duplicate bool      `json:"duplicate,omitzero"`
	Rejected  int       `json:"rejected,omitzero"`
	Status    int       `json:"status,omitzero"`
	Code      string    `json:"code,omitzero"`
	Numbers   []uint64  `json:"numbers,omitempty"`

	PreviousEpoch    uuid.UUID `json:"previous_epoch,omitzero"`
	PreviousSequence uint64    `json:"previous_sequence,omitzero"`
	Origin           string    `json:"origin,omitzero"` // see origin
}

// mark returns the number that the entry is about.
func (l *line) mark() batch.Mark { return batch.Mark{Epoch: l.Epoch, Sequence: l.Sequence} }

// previous returns the end of the epoch before, in an entry of kindEpoch.
func (l *line) previous() batch.Mark {
	return batch.Mark{Epoch: l.PreviousEpoch, Sequence: l.PreviousSequence}
}

// settles reports whether the entry moves the cursor.
func (l *line) settles() bool {
	return l.Kind == kindAccepted || l.Kind == kindRefused || l.Kind == kindDamaged
}

// Acceptance is one batch that the gateway answered with 202.
type Acceptance struct {
	batch.Mark
	BatchID   uuid.UUID
	Rows      int       // rows that the gateway accepted
	Rejected  int       // items that it did not
	Duplicate bool      // the stream had it already
	At        time.Time // collector's clock
}

// ReadAccepted returns the batches that the journal in dir remembers as
// accepted, oldest first. It may run beside a collector: an entry being
// written is not yet seen.
func ReadAccepted(dir string) ([]Acceptance, error) {
	var accepted []Acceptance
	_, err := readJournals(dir, func(l *line) {
		if l.Kind == kindAccepted {
			accepted = append(accepted, l.acceptance())
		}
	})
	return accepted, err
}

// acceptance returns what an entry of kindAccepted says.
func (l *line) acceptance() Acceptance {
	return Acceptance{
		Mark: l.mark(), BatchID: l.BatchID, Rows: l.Rows,
		Rejected: l.Rejected, Duplicate: l.Duplicate, At: l.At,
	}
}

// journalDamage is what a journal could not tell.
type journalDamage struct {
	lines int   // unreadable complete lines
	torn  int64 // bytes of an unfinished last line of the current file
	size  int64 // bytes of the current file before it
}

// readJournals calls f with the readable entries of both files, in order. It
// holds one of them at a time: a journal is longer than a collector is large.
func readJournals(dir string, f func(*line)) (journalDamage, error) {
	var d journalDamage
	for _, name := range []string{journalPast, journalName} {
		d.size, d.torn = 0, 0
		file, err := os.Open(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return d, fmt.Errorf("read journal: %w", err)
		}
		var bad int
		bad, d.size, d.torn, err = decodeJournal(file, f)
		d.lines += bad
		if err := errors.Join(err, file.Close()); err != nil {
			return d, fmt.Errorf("read journal: %w", err)
		}
	}
	return d, nil
}

// decodeJournal calls f with the readable entries. It returns the number of
// unreadable ones, the bytes up to the end of the last complete line, and those
// behind it.
func decodeJournal(r io.Reader, f func(*line)) (bad int, size, torn int64, err error) {
	for lines := bufio.NewReaderSize(r, 64<<10); ; {
		text, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return bad, size, int64(len(text)), nil
		}
		if err != nil {
			return bad, size, 0, err
		}
		var l line
		if err := l.decode(text[:len(text)-1]); err != nil {
			bad++
		} else {
			f(&l)
		}
		size += int64(len(text))
	}
}

func (l *line) decode(text []byte) error {
	if len(text) < 9 || text[8] != ' ' {
		return errDamaged
	}
	sum, err := strconv.ParseUint(string(text[:8]), 16, 32)
	if err != nil || uint32(sum) != crc32.Checksum(text[9:], castagnoli) {
		return errDamaged
	}
	if err := json.Unmarshal(text[9:], l); err != nil {
		return fmt.Errorf("decode journal line: %w", err)
	}
	return nil
}

func (l *line) encode() ([]byte, error) {
	text, err := json.Marshal(l)
	if err != nil {
		return nil, fmt.Errorf("encode journal line: %w", err)
	}
	return fmt.Appendf(nil, "%08x %s\n", crc32.Checksum(text, castagnoli), text), nil
}

// journal is the open journal.
type journal struct {
	dir   string
	file  *os.File
	size  int64
	ahead int64 // see reserve
	max   int64 // length at which a new file is begun
}

// reserve keeps room on the disk for as many bytes as a segment has. Without
// it a spool that has filled its disk could never be emptied: a batch is
// settled by a line here, and only a segment of settled batches gives room
// back. Lines are shorter than records, so the room lasts until a segment goes,
// and then it is renewed. Not every file system can reserve, and a disk that is
// full has nothing to reserve; neither is a reason to stop.
func (j *journal) reserve() { _ = allocate(j.file, j.size, j.ahead) }

// openJournal opens the current file for appending behind its first size
// bytes, cuts the rest off and keeps room for ahead bytes more.
func openJournal(dir string, size, ahead int64) (*journal, error) {
	return journalAt(dir, journalName, size, ahead)
}

func journalAt(dir, name string, size, ahead int64) (*journal, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	if err := errors.Join(f.Truncate(size), f.Sync(), syncDir(dir)); err != nil {
		return nil, errors.Join(fmt.Errorf("open journal: %w", err), f.Close())
	}
	j := &journal{dir: dir, file: f, size: size, ahead: ahead, max: journalMaxBytes}
	j.reserve()
	return j, nil
}

// append writes the entry and returns once it is on disk. After an error
// nothing of it is.
func (j *journal) append(l line) error {
	text, err := l.encode()
	if err != nil {
		return err
	}
	if err := appendSynced(j.file, j.size, text); err != nil {
		return fmt.Errorf("append to journal: %w", err)
	}
	j.size += int64(len(text))
	return nil
}

// rotate begins a new file once the old one is too long. epoch makes its first
// line: the current epoch, which must not go with the file before. The new file
// is complete before it gets its name, so that a failure at whatever step leaves
// the entries where they are found.
func (j *journal) rotate(epoch func(name string) line) error {
	if j.size < j.max {
		return nil
	}
	next, err := journalAt(j.dir, journalNext, 0, j.ahead)
	if err != nil {
		return err
	}
	next.max = j.max
	if err := next.append(epoch(journalNext)); err != nil {
		return errors.Join(err, next.close())
	}
	_ = j.file.Truncate(j.size) // gives back what was reserved
	if err := j.replaceBy(journalNext); err != nil {
		return errors.Join(fmt.Errorf("rotate journal: %w", err), next.close())
	}
	_ = j.file.Close() // every entry in it is synced
	*j = *next
	return nil
}

// replaceBy gives the current file its past name, and next the current one. The
// current one is missing if that failed half way before.
func (j *journal) replaceBy(next string) error {
	current := filepath.Join(j.dir, journalName)
	if err := os.Rename(current, filepath.Join(j.dir, journalPast)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(filepath.Join(j.dir, next), current); err != nil {
		return err
	}
	return syncDir(j.dir)
}

func (j *journal) close() error { return j.file.Close() }

// appendSynced writes data at offset off, the end of what counts in the file,
// and returns once it is on disk. After a failure it cuts the file back to
// off. Should even that fail, the next call writes over what is left.
func appendSynced(f *os.File, off int64, data []byte) error {
	_, err := f.WriteAt(data, off)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		return nil
	}
	return errors.Join(err, f.Truncate(off))
}

// syncDir makes created, renamed and removed names in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// writeFile writes a whole file so that it is either there complete, on disk,
// or not at all.
func writeFile(path string, data []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}
