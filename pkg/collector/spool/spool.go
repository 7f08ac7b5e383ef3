// Package spool keeps batches on disk until the gateway has answered for them.
//
// Invariants: a batch that Append confirmed is on disk and stays there until
// it is settled, that is accepted or moved to the dead letters; batches are
// read oldest first and settled in that order; a number, once confirmed, is
// never given to another batch. The spool is bounded: when it is full it takes
// nothing more, and it never makes room by dropping what is not settled; no
// unsent batch is ever too old. Settled ones are kept for a while, as long as
// nothing else needs their room. The spool knows nothing of what a body means
// and never sends anything itself.
//
// Files in the directory: *.segment with the records, settled.log with what
// became of them, dead/ with the bodies that were refused, lock.
package spool

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"pganalytics/pkg/batch"
)

// Errors that a caller may act on.
var (
	ErrFull   = errors.New("spool is full")             // Append: wait for Room
	ErrLocked = errors.New("spool is in use")           // Open: another collector has it
	ErrClosed = errors.New("spool is closed")           // every method
	errStale  = errors.New("record is not the oldest")  // settling out of order: a bug
	errSize   = errors.New("body is empty or too long") // Append
)

// Config of a spool.
type Config struct {
	// Dir holds the spool and nothing else. It is created if missing. Two
	// collectors can't share one.
	Dir string

	// MaxBytes bounds unsent batches and dead letters together, in bytes. Disk
	// use goes beyond it by what is kept, at most three segments and the journal
	// (64 MiB). When it is reached the collector stops collecting. Defaults to
	// 1 GiB.
	MaxBytes int64

	// Keep and KeepBytes say how long, and how much, batches that were answered
	// are kept to be sent again on request; whichever ends first. They take no
	// room from those that wait: when the disk is full they go. A segment goes
	// as a whole, and the last one stays, so up to SegmentBytes more is kept.
	// Negative: nothing is. Default to 24 h and 256 MiB.
	Keep      time.Duration
	KeepBytes int64

	// SegmentBytes is the length at which a new file is begun. Defaults to
	// 8 MiB; opening reads one segment at a time into memory.
	SegmentBytes int64

	// Replaced by tests.
	now  func() time.Time
	boot string
}

// DefaultMaxBytes is what a spool that is not told otherwise may take.
const DefaultMaxBytes = 1 << 30

func (c *Config) setDefaults() {
	if c.MaxBytes == 0 {
		c.MaxBytes = DefaultMaxBytes
	}
	if c.SegmentBytes == 0 {
		c.SegmentBytes = 8 << 20
	}
	if c.Keep == 0 {
		c.Keep = 24 * time.Hour
	}
	if c.KeepBytes == 0 {
		c.KeepBytes = 256 << 20
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.boot == "" {
		c.boot = bootID()
	}
}

// Validate reports all faults.
func (c *Config) Validate() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, errors.New("spool directory is not set"))
	}
	if c.MaxBytes < 0 {
		errs = append(errs, fmt.Errorf("spool max bytes %d: must be positive", c.MaxBytes))
	}
	if c.SegmentBytes < 0 {
		errs = append(errs, fmt.Errorf("spool segment bytes %d: must be positive", c.SegmentBytes))
	}
	return errors.Join(errs...)
}

// Spool is an open spool. Its methods may be called concurrently.
type Spool struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	lock    io.Closer
	arrived chan struct{} // size 1: a forgotten signal, not a queue
	room    chan struct{} // size 1, likewise

	mu       sync.Mutex
	closed   bool
	journal  *journal
	segments []*segment // oldest first; the last one is appended to
	kept     []*segment // those before, all settled
	active   *os.File   // the last segment, nil until the first Append
	headOff  int64      // of the oldest unsettled record in segments[0]
	head     *Record    // that record once read
	numbering
	load
	accepted Acceptance // the last one
	renumber bool       // a new epoch is due
	watch    watch
	buf      []byte
}

// Open opens the spool in cfg.Dir, or makes one. Damage is cut off, logged,
// counted, and begins a new epoch, as does a spool that cannot prove where its
// numbering ended. Errors: ErrLocked.
func Open(cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Spool, error) {
	cfg.setDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(cfg.Dir, deadDir), 0o700); err != nil {
		return nil, fmt.Errorf("make spool directory: %w", err)
	}
	lock, err := takeLock(cfg.Dir)
	if err != nil {
		return nil, err
	}
	s := &Spool{
		cfg: cfg, log: log, metrics: newMetrics(reg, cfg.MaxBytes), lock: lock,
		arrived: make(chan struct{}, 1), room: make(chan struct{}, 1), watch: look(),
	}
	if err := s.recover(); err != nil {
		return nil, errors.Join(fmt.Errorf("open spool %s: %w", cfg.Dir, err), s.Close())
	}
	return s, nil
}

// lock is the hold on a spool's directory.
type lock struct{ *os.File }

// Close lets go of the directory. The lock is given back before the file is
// closed: a process that is being started at this moment has the file too.
func (l lock) Close() error {
	return errors.Join(unix.Flock(int(l.Fd()), unix.LOCK_UN), l.File.Close())
}

// takeLock holds the directory until the result is closed; the kernel lets go
// of it when the process ends in whatever way.
func takeLock(dir string) (io.Closer, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock spool: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", dir, ErrLocked)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return lock{f}, nil
}

// Hold keeps collectors out of the spool in dir until the result is closed,
// also once the directory has another name. Without a spool there is nothing to
// hold. Errors: ErrLocked.
func Hold(dir string) (io.Closer, error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return io.NopCloser(nil), nil
	}
	return takeLock(dir)
}

// recover reads what is there, decides which epoch counts and repairs.
func (s *Spool) recover() error {
	here := origin(s.cfg.boot, s.cfg.Dir, journalName)
	st, err := readState(s.cfg.Dir)
	if err != nil {
		return err
	}
	if s.journal, err = openJournal(s.cfg.Dir, st.journal.size, s.cfg.SegmentBytes); err != nil {
		return err
	}
	if st.journal.torn > 0 || st.journal.lines > 0 {
		s.log.Warn("spool journal was damaged; batches may be sent once more",
			"unfinished_bytes", st.journal.torn, "unreadable_lines", st.journal.lines)
	}
	s.numbering = st.numbering
	if st.newEpoch {
		if err := s.beginEpoch(); err != nil {
			return err
		}
	} else if st.origin != here {
		s.log.Info("the machine was started anew, or the spool is a copy; a new epoch begins", "previous_epoch", s.last.Epoch)
		s.renumber = true
	}
	// The epoch must be on disk before the damage is gone: it is what tells
	// that the numbering does not simply go on.
	for _, seg := range st.segments {
		if seg.damage.bytes == 0 {
			continue
		}
		s.metrics.cutBytes.Add(float64(seg.damage.bytes))
		s.log.Error("spool segment was damaged; the damaged part is cut off and a new epoch begins",
			"segment", filepath.Base(seg.path), "bytes", seg.damage.bytes,
			"unfinished_append_only", seg.damage.torn, "previous_epoch", s.previous.Epoch, "previous_sequence", s.previous.Sequence)
		if err := seg.rewrite(); err != nil {
			return err
		}
	}
	s.segments, s.kept, s.headOff = st.segments, st.kept, st.headOff
	s.load, s.accepted = st.load, st.accepted
	s.gauge()
	if s.unsent > 0 {
		signal(s.arrived)
	}
	return s.keepSettled()
}

// beginEpoch makes a new epoch durable, before any batch is numbered in it.
func (s *Spool) beginEpoch() error {
	epoch, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("begin epoch: %w", err)
	}
	previous := s.last
	if previous.Sequence == 0 { // nothing was numbered in the epoch that ends
		previous = s.previous
	}
	if len(s.refused) > 0 {
		s.log.Warn("refused numbers of an ended epoch cannot be reported any more", "numbers", s.refused)
	}
	s.numbering = numbering{last: batch.Mark{Epoch: epoch}, previous: previous}
	s.metrics.epochs.Inc()
	return s.squeeze(func() error { return s.journal.append(s.epochLine(journalName)) })
}

// epochLine is the entry of the current epoch in the journal file of that name.
func (s *Spool) epochLine(name string) line {
	return line{
		Kind: kindEpoch, At: s.now(), Epoch: s.last.Epoch,
		PreviousEpoch: s.previous.Epoch, PreviousSequence: s.previous.Sequence,
		Origin: origin(s.cfg.boot, s.cfg.Dir, name),
	}
}

// renew begins a new epoch if one is due for another reason than damage. It
// waits for the batch that tells the refused numbers of the current one.
func (s *Spool) renew() error {
	if s.watch.stoodStill() {
		s.log.Info("the machine stood still, or its clock was set; a new epoch begins", "previous_epoch", s.last.Epoch)
		s.renumber = true
	}
	if !s.renumber || len(s.refused) > 0 {
		return nil
	}
	if err := s.beginEpoch(); err != nil {
		return err
	}
	s.renumber = false
	return nil
}

// Append numbers a batch, lets encode make its body and returns once the
// record is on disk. After an error the batch is not taken and its number is
// given to the next. Errors: ErrFull, ErrClosed.
func (s *Spool) Append(encode func(Stamp) ([]byte, error)) (Stamp, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return Stamp{}, ErrClosed
	}
	if err := s.renew(); err != nil {
		return Stamp{}, fmt.Errorf("begin epoch: %w", err)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return Stamp{}, fmt.Errorf("make batch id: %w", err)
	}
	r := Record{Stamp: Stamp{
		Mark:    batch.Mark{Epoch: s.last.Epoch, Sequence: s.last.Sequence + 1},
		BatchID: id,
		Refused: append([]uint64(nil), s.refused[:min(len(s.refused), maxRefused)]...),
	}}
	if r.Sequence == 1 {
		r.Previous = s.previous
	}
	if r.Body, err = encode(r.Stamp); err != nil {
		return Stamp{}, fmt.Errorf("encode batch: %w", err)
	}
	if len(r.Body) == 0 || len(r.Body) > maxBodyBytes {
		return Stamp{}, fmt.Errorf("append %d bytes: %w", len(r.Body), errSize)
	}
	s.buf = appendRecord(s.buf[:0], &r)
	if err := s.checkRoom(int64(len(s.buf))); err != nil {
		s.metrics.full.Inc()
		return Stamp{}, err
	}
	if err := s.squeeze(func() error { return s.write(s.buf) }); err != nil {
		s.metrics.failed.Inc()
		return Stamp{}, fmt.Errorf("append batch: %w", err)
	}
	s.last = r.Mark
	s.markReported(r.Refused)
	s.unsent++
	s.unsentBytes += int64(len(s.buf))
	s.gauge()
	signal(s.arrived)
	return r.Stamp, nil
}

func (s *Spool) checkRoom(n int64) error {
	if s.unsentBytes+s.deadBytes+n <= s.cfg.MaxBytes {
		return nil
	}
	// Somebody may have discarded dead letters meanwhile.
	if err := s.countLetters(); err != nil {
		return err
	}
	if s.unsentBytes+s.deadBytes+n <= s.cfg.MaxBytes {
		return nil
	}
	return fmt.Errorf("%w: %d bytes unsent and %d in dead letters of %d", ErrFull, s.unsentBytes, s.deadBytes, s.cfg.MaxBytes)
}

// markReported forgets refused numbers that a confirmed batch now carries. If
// the journal fails they stay and are reported twice, which is harmless.
func (s *Spool) markReported(numbers []uint64) {
	if len(numbers) == 0 {
		return
	}
	err := s.journal.append(line{Kind: kindReported, At: s.now(), Epoch: s.last.Epoch, Numbers: numbers})
	if err != nil {
		s.log.Warn("refused numbers will be reported again", "err", err)
		return
	}
	s.refused = append([]uint64(nil), s.refused[len(numbers):]...)
}

// Arrived is signalled when a batch was appended.
func (s *Spool) Arrived() <-chan struct{} { return s.arrived }

// Room is signalled when a batch was settled.
func (s *Spool) Room() <-chan struct{} { return s.room }

// Close ends the use of the directory. Unsent batches stay in it.
func (s *Spool) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	var errs []error
	if s.active != nil {
		errs = append(errs, s.active.Close())
	}
	if s.journal != nil {
		errs = append(errs, s.journal.close())
	}
	return errors.Join(append(errs, s.lock.Close())...)
}

func (s *Spool) gauge() {
	s.metrics.bytes.Set(float64(s.unsentBytes))
	s.metrics.batches.Set(float64(s.unsent))
	s.metrics.keptBytes.Set(float64(s.keptBytes))
	s.metrics.deadBytes.Set(float64(s.deadBytes))
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (s *Spool) now() time.Time { return s.cfg.now().UTC().Truncate(time.Microsecond) }
