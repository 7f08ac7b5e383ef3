package spool

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
)

// deadDir holds what the gateway refused for good. A letter is <batch id>.body,
// the bytes to send, and <batch id>.json, what is known of them; the latter is
// written last and removed first, and makes the letter. Beside it <batch
// id>.resend asks the collector that has the spool to send it again. The
// commands that read, ask and discard need no lock: each is one step on one
// file, and the collector takes note of what is there.
const (
	deadDir      = "dead"
	bodySuffix   = ".body"
	letterSuffix = ".json"
	askSuffix    = ".resend"
)

// ErrNoLetter says that there is no dead letter of that id.
var ErrNoLetter = errors.New("there is no such dead letter")

// Letter is a batch, or the part of one, that the gateway refused for good.
type Letter struct {
	BatchID uuid.UUID `json:"batch_id"` // what the body is sent under
	At      time.Time `json:"at"`       // when it was last refused, collector's clock

	// Number of the batch that was refused, wholly or in part.
	Epoch    uuid.UUID `json:"epoch"`
	Sequence uint64    `json:"sequence"`

	// PartOf is the batch of which the body has the refused items, in a batch
	// of their own without a number; zero: the body is the refused batch.
	PartOf uuid.UUID `json:"part_of,omitzero"`

	// Rejected is how many items of an accepted batch were refused. If PartOf
	// is zero the body has the accepted ones too: under its id it would be taken
	// for stored, so it is there to be looked at and is not sent again.
	Rejected int `json:"rejected,omitzero"`

	Status int    `json:"status"`         // of the answer
	Code   string `json:"code,omitempty"` // of the problem
	Answer string `json:"answer"`         // the whole of it

	Bytes int64 `json:"-"` // of the body
	Asked bool  `json:"-"` // it is to be sent again
}

// Resendable reports whether the body may be sent again as it is.
func (l *Letter) Resendable() bool { return l.Rejected == 0 || l.PartOf != uuid.Nil }

// Letters returns the dead letters of the spool in dir, oldest first.
func Letters(dir string) ([]Letter, error) {
	names, err := filepath.Glob(filepath.Join(dir, deadDir, "*"+letterSuffix)) // sorted, and so by time
	if err != nil {
		return nil, fmt.Errorf("list dead letters: %w", err)
	}
	var letters []Letter
	for _, name := range names {
		id, err := uuid.Parse(strings.TrimSuffix(filepath.Base(name), letterSuffix))
		if err != nil {
			return nil, fmt.Errorf("unknown file %s among the dead letters: %w", name, err)
		}
		l, err := readLetter(dir, id)
		if errors.Is(err, ErrNoLetter) {
			continue // discarded meanwhile
		}
		if err != nil {
			return nil, err
		}
		letters = append(letters, l)
	}
	return letters, nil
}

// ReadLetter returns a dead letter and its body. Errors: ErrNoLetter.
func ReadLetter(dir string, id uuid.UUID) (Letter, []byte, error) {
	l, err := readLetter(dir, id)
	if err != nil {
		return l, nil, err
	}
	body, err := readBody(dir, id)
	return l, body, err
}

func readBody(dir string, id uuid.UUID) ([]byte, error) {
	body, err := os.ReadFile(letterPath(dir, id, bodySuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", id, ErrNoLetter)
	}
	if err != nil {
		return nil, fmt.Errorf("read dead letter %s: %w", id, err)
	}
	return body, nil
}

// LetterBody returns the body to send. Errors: ErrNoLetter, if it was discarded
// meanwhile.
func (s *Spool) LetterBody(l Letter) ([]byte, error) { return readBody(s.cfg.Dir, l.BatchID) }

func readLetter(dir string, id uuid.UUID) (l Letter, err error) {
	text, err := os.ReadFile(letterPath(dir, id, letterSuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return l, fmt.Errorf("%s: %w", id, ErrNoLetter)
	}
	if err == nil {
		err = json.Unmarshal(text, &l)
	}
	if err != nil {
		return l, fmt.Errorf("read dead letter %s: %w", id, err)
	}
	if info, err := os.Stat(letterPath(dir, id, bodySuffix)); err == nil {
		l.Bytes = info.Size()
	}
	_, err = os.Stat(letterPath(dir, id, askSuffix))
	l.Asked = err == nil
	return l, nil
}

// AskResend asks for the letter to be sent again, by the collector that has the
// spool or the next one. Errors: ErrNoLetter.
func AskResend(dir string, id uuid.UUID) error {
	l, err := readLetter(dir, id)
	if err != nil {
		return err
	}
	if !l.Resendable() {
		return fmt.Errorf("%s: the other items of the batch are stored under its id, so these would be taken for stored too", id)
	}
	if err := writeFile(letterPath(dir, id, askSuffix), nil); err != nil {
		return fmt.Errorf("ask for dead letter %s to be sent again: %w", id, err)
	}
	return nil
}

// DiscardLetter removes a letter. Errors: ErrNoLetter.
func DiscardLetter(dir string, id uuid.UUID) error {
	if _, err := readLetter(dir, id); err != nil {
		return err
	}
	return removeLetter(dir, id)
}

func removeLetter(dir string, id uuid.UUID) error {
	for _, suffix := range []string{letterSuffix, bodySuffix, askSuffix} {
		if err := os.Remove(letterPath(dir, id, suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove dead letter %s: %w", id, err)
		}
	}
	return syncDir(filepath.Join(dir, deadDir))
}

func letterPath(dir string, id uuid.UUID, suffix string) string {
	return filepath.Join(dir, deadDir, id.String()+suffix)
}

// countLetters returns how many letters there are, and the bytes of all files
// among them.
func countLetters(dir string) (n int, bytes int64, err error) {
	entries, err := os.ReadDir(filepath.Join(dir, deadDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, 0, fmt.Errorf("read dead letters: %w", err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), letterSuffix) {
			n++
		}
		if info, err := e.Info(); err == nil { // else removed meanwhile
			bytes += info.Size()
		}
	}
	return n, bytes, nil
}

// countLetters takes note of letters that came or went.
func (s *Spool) countLetters() error {
	n, bytes, err := countLetters(s.cfg.Dir)
	if err != nil {
		return err
	}
	s.dead, s.deadBytes = n, bytes
	s.gauge()
	return nil
}

// bury writes a dead letter.
func (s *Spool) bury(l Letter, body []byte) error {
	l.At = s.now()
	text, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return fmt.Errorf("encode dead letter: %w", err)
	}
	err = s.squeeze(func() error {
		if err := writeFile(letterPath(s.cfg.Dir, l.BatchID, bodySuffix), body); err != nil {
			return err
		}
		return writeFile(letterPath(s.cfg.Dir, l.BatchID, letterSuffix), text)
	})
	if err != nil {
		return fmt.Errorf("write dead letter: %w", err)
	}
	s.metrics.deadLetters.Inc()
	return s.countLetters()
}

// Asked returns the letters that are to be sent again, oldest first.
func (s *Spool) Asked() ([]Letter, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	room := s.deadBytes
	if err := s.countLetters(); err != nil {
		return nil, err
	}
	if s.deadBytes < room {
		signal(s.room)
	}
	asked, err := filepath.Glob(filepath.Join(s.cfg.Dir, deadDir, "*"+askSuffix))
	if err != nil || len(asked) == 0 {
		return nil, err
	}
	letters, err := Letters(s.cfg.Dir)
	return slices.DeleteFunc(letters, func(l Letter) bool { return !l.Asked || !l.Resendable() }), err
}

// LetterAccepted removes a letter after a 202. Items that were refused again
// become a letter in its place.
func (s *Spool) LetterAccepted(l Letter, body []byte, a Answer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	rest := a.rest(l.BatchID, batch.Mark{Epoch: l.Epoch, Sequence: l.Sequence})
	if a.Rejected > 0 {
		if err := s.bury(rest, a.body(body)); err != nil {
			return err
		}
	}
	err := s.squeeze(func() error {
		return s.journal.append(line{
			Kind: kindResent, At: s.now(), Epoch: l.Epoch, Sequence: l.Sequence, BatchID: l.BatchID,
			Rows: a.Rows, Duplicate: a.Duplicate, Rejected: a.Rejected,
		})
	})
	if err != nil {
		return err
	}
	if a.Rejected > 0 && rest.BatchID == l.BatchID { // buried in its place
		return s.noLongerAsked(l.BatchID)
	}
	if err := removeLetter(s.cfg.Dir, l.BatchID); err != nil {
		return err
	}
	signal(s.room)
	return s.countLetters()
}

// LetterRefused keeps a letter that was refused again, with the new answer.
func (s *Spool) LetterRefused(l Letter, body []byte, why Refusal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	if _, err := readLetter(s.cfg.Dir, l.BatchID); errors.Is(err, ErrNoLetter) {
		return nil // discarded meanwhile
	}
	l.Status, l.Code, l.Answer = why.Status, why.Code, string(why.Text)
	if err := s.bury(l, body); err != nil {
		return err
	}
	return s.noLongerAsked(l.BatchID)
}

func (s *Spool) noLongerAsked(id uuid.UUID) error {
	if err := os.Remove(letterPath(s.cfg.Dir, id, askSuffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("dead letter %s: %w", id, err)
	}
	return nil
}
