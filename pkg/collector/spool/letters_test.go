package spool

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

func refusedOne(t *testing.T, s *Spool, body string) Stamp {
	t.Helper()
	stamp := put(t, s, body)
	require.NoError(t, s.Refused(oldest(t, s), Refusal{Status: 400, Code: "invalid", Text: []byte("no")}))
	return stamp
}

func TestALetterIsSentAgainWhenAskedAndThenGone(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir()}
	s := open(t, cfg)
	stamp := refusedOne(t, s, "one")
	asked, err := s.Asked()
	require.NoError(t, err)
	require.Empty(t, asked)
	require.NoError(t, AskResend(cfg.Dir, stamp.BatchID))
	require.ErrorIs(t, AskResend(cfg.Dir, uuid.New()), ErrNoLetter)

	require.NoError(t, s.Close()) // the wish survives a restart
	s = open(t, cfg)
	asked, err = s.Asked()
	require.NoError(t, err)
	require.Len(t, asked, 1)
	l, body, err := ReadLetter(cfg.Dir, stamp.BatchID)
	require.NoError(t, err)
	require.Equal(t, asked[0], l)
	require.Equal(t, "one", string(body))
	require.Equal(t, stamp.Sequence, l.Sequence)

	require.NoError(t, s.LetterRefused(l, body, Refusal{Status: 413, Code: "batch_too_large", Text: []byte("still no")}))
	asked, err = s.Asked()
	require.NoError(t, err)
	require.Empty(t, asked, "it is asked for once")
	l, body, err = ReadLetter(cfg.Dir, stamp.BatchID)
	require.NoError(t, err)
	require.Equal(t, 413, l.Status)
	require.Equal(t, "one", string(body))

	require.NoError(t, s.LetterAccepted(l, body, Answer{Rows: 1}))
	_, _, err = ReadLetter(cfg.Dir, stamp.BatchID)
	require.ErrorIs(t, err, ErrNoLetter)
	require.Zero(t, s.Stats().DeadBytes)
	require.Equal(t, []uint64{1}, put(t, s, "two").Refused, "that its number was refused was true, and is told")
	accept(t, s)
	require.NoError(t, s.Close())
	accepted, err := ReadAccepted(cfg.Dir)
	require.NoError(t, err)
	require.Len(t, accepted, 1, "and is not the cursor's business")
}

func TestRefusedItemsThatWereToldApartAreALetterOfTheirOwn(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir()}
	s := open(t, cfg)
	stamp := put(t, s, "good and bad")
	rest := Answer{Rows: 3, Rejected: 1, Text: []byte("why"), Rest: []byte("bad"), RestID: uuid.New()}
	require.NoError(t, s.Accepted(oldest(t, s), rest))
	l, body, err := ReadLetter(cfg.Dir, rest.RestID)
	require.NoError(t, err)
	require.Equal(t, "bad", string(body))
	require.Equal(t, stamp.BatchID, l.PartOf)
	require.NoError(t, AskResend(cfg.Dir, rest.RestID))

	again := Answer{Rows: 1, Rejected: 1, Rest: []byte("worse"), RestID: uuid.New()}
	require.NoError(t, s.LetterAccepted(l, body, again))
	letters, err := Letters(cfg.Dir)
	require.NoError(t, err)
	require.Len(t, letters, 1)
	require.Equal(t, again.RestID, letters[0].BatchID)
	require.Equal(t, stamp.Sequence, letters[0].Sequence)
	require.False(t, letters[0].Asked)
}

func TestDiscardedLettersGiveTheirRoomBack(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir(), MaxBytes: 1500}
	s := open(t, cfg)
	stamp := refusedOne(t, s, string(make([]byte, 900)))
	require.Equal(t, 1, s.Stats().DeadLetters)
	_, err := s.Append(func(Stamp) ([]byte, error) { return make([]byte, 600), nil })
	require.ErrorIs(t, err, ErrFull)
	require.NoError(t, DiscardLetter(cfg.Dir, stamp.BatchID))
	require.ErrorIs(t, DiscardLetter(cfg.Dir, stamp.BatchID), ErrNoLetter)
	_, err = s.Asked()
	require.NoError(t, err)
	<-s.Room()
	put(t, s, string(make([]byte, 600)))
	names, err := os.ReadDir(filepath.Join(cfg.Dir, deadDir))
	require.NoError(t, err)
	require.Empty(t, names)
}
