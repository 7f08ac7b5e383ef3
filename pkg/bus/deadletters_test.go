package bus

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/bus/natsserver"
)

func newLetter(size int) batch.Letter {
	b := newBatch(size)
	payload, _ := b.Marshal() // cannot fail
	return batch.Letter{
		CollectorID: b.CollectorID, BatchID: b.ID, Digest: b.Digest,
		Reason: "data_error", Detail: "value too long", SQLState: "22001",
		Position: batch.Position{Sequence: 7, Incarnation: "2026-01-02T03:04:05Z", Delivered: 3, StoredAt: b.SentAt},
		Payload:  payload,
	}
}

func TestALetterIsKeptAsItCame(t *testing.T) {
	t.Parallel()
	w := setup(t)
	letters := []batch.Letter{newLetter(10), newLetter(1 << 20), newLetter(0)}
	for _, l := range letters {
		require.NoError(t, w.DeadLetters().Bury(t.Context(), l))
	}
	w.restart(natsserver.Config{})
	got, err := w.DeadLetters().List(t.Context(), 10)
	require.NoError(t, err)
	require.Equal(t, letters, got)
	got, err = w.DeadLetters().List(t.Context(), 2)
	require.NoError(t, err)
	require.Equal(t, letters[:2], got)
	n, err := w.DeadLetters().Count(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 3, n)
}

func TestARepeatedLetterIsTheSameLetter(t *testing.T) {
	t.Parallel()
	w := setup(t)
	l := newLetter(10)
	for i := range 3 {
		l.Detail = fmt.Sprint("attempt ", i)
		require.NoError(t, w.DeadLetters().Bury(t.Context(), l))
	}
	other := l
	other.Digest = sha256.Sum256([]byte("other content under the same id"))
	require.NoError(t, w.DeadLetters().Bury(t.Context(), other))
	got, err := w.DeadLetters().List(t.Context(), 10)
	require.NoError(t, err)
	require.Len(t, got, 2)
	require.Equal(t, "attempt 0", got[0].Detail, "the first one stays")
}

func TestWhatWasBuriedIsFound(t *testing.T) {
	t.Parallel()
	w := setup(t)
	buried := newBatch(10)
	payload, err := buried.Marshal()
	require.NoError(t, err)
	require.NoError(t, w.DeadLetters().Bury(t.Context(), batch.Letter{
		CollectorID: buried.CollectorID, BatchID: buried.ID, Digest: buried.Digest, Reason: "data_error", Payload: payload,
	}))
	other := *buried
	other.Digest = sha256.Sum256([]byte("other content under the same id"))
	for b, want := range map[*batch.Batch]bool{buried: true, &other: false, newBatch(10): false} {
		got, err := w.DeadLetters().Buried(t.Context(), b)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	w.stopAndNotice()
	_, err = w.DeadLetters().Buried(t.Context(), buried)
	requireUnavailable(t, err)
}

func TestAFullDeadLetterStreamRefusesAndKeepsWhatItHas(t *testing.T) {
	t.Parallel()
	w := setup(t, func(c *Config) { c.DeadLettersMaxBytes = 1 << 20 })
	first := newLetter(600_000)
	require.NoError(t, w.DeadLetters().Bury(t.Context(), first))
	requireUnavailable(t, w.DeadLetters().Bury(t.Context(), newLetter(600_000)))
	require.NoError(t, w.DeadLetters().Bury(t.Context(), first), "it lies there, though the stream is full")
	got, err := w.DeadLetters().List(t.Context(), 10)
	require.NoError(t, err)
	require.Equal(t, []batch.Letter{first}, got)
}

func TestAPayloadThatTellsNothingIsStillALetter(t *testing.T) {
	t.Parallel()
	w := setup(t)
	for _, payload := range []string{"no batch", "no batch", "another"} {
		require.NoError(t, w.DeadLetters().Bury(t.Context(), batch.Letter{Reason: "undecodable", Payload: []byte(payload)}))
	}
	got, err := w.DeadLetters().List(t.Context(), 10)
	require.NoError(t, err)
	require.Len(t, got, 2)
	require.Equal(t, uuid.Nil, got[0].CollectorID)
	require.Equal(t, sha256.Sum256([]byte("no batch")), got[0].Digest)
	msg, err := w.js.Stream(t.Context(), w.names.deadLetters)
	require.NoError(t, err)
	raw, err := msg.GetMsg(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf("pganalytics.dead.%s.%s.%x", uuid.Nil, uuid.Nil, got[0].Digest[:8]), raw.Subject)
}

func TestTheLargestBatchCanBeBuried(t *testing.T) {
	t.Parallel()
	w := setup(t, func(c *Config) { c.RequestTimeout = patience }) // 8 MiB of base64 in JSON, under the race detector
	l := newLetter(0)
	l.Payload = make([]byte, natsserver.MaxPayload-Headroom)
	l.Detail = strings.Repeat("ä\n", 100_000)
	l.Reason, l.SQLState, l.Position.Incarnation = l.Detail, l.Detail, l.Detail
	require.NoError(t, w.DeadLetters().Bury(t.Context(), l))
	got, err := w.DeadLetters().List(t.Context(), 1)
	require.NoError(t, err)
	require.Len(t, got[0].Detail, len(singleLine(l.Detail)))
}

func TestBuryWithoutAServerIsUnavailable(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.stopAndNotice()
	requireUnavailable(t, w.DeadLetters().Bury(t.Context(), newLetter(1)))
	w.start(natsserver.Config{})
}

func TestLettersLeaveGapsThatAListSkips(t *testing.T) {
	t.Parallel()
	w := setup(t)
	for range 5 {
		require.NoError(t, w.DeadLetters().Bury(t.Context(), newLetter(1)))
	}
	stream, err := w.js.Stream(t.Context(), w.names.deadLetters)
	require.NoError(t, err)
	for _, seq := range []uint64{1, 3, 5} {
		require.NoError(t, stream.DeleteMsg(t.Context(), seq))
	}
	got, err := w.DeadLetters().List(t.Context(), 10)
	require.NoError(t, err)
	require.Len(t, got, 2)
}

func FuzzSingleLine(f *testing.F) {
	f.Fuzz(func(t *testing.T, s string) {
		got := singleLine(s)
		require.LessOrEqual(t, len(got), maxHeaderValue)
		require.True(t, utf8.ValidString(got))
		require.Equal(t, -1, strings.IndexFunc(got, unicode.IsControl))
		require.Equal(t, got, singleLine(got), "it must not change any more")
	})
}

func FuzzLetterHeader(f *testing.F) {
	f.Fuzz(func(t *testing.T, reason, detail, sequence, stored, digest string) {
		h := nats.Header{headerReason: {reason}, headerDetail: {detail}, headerSequence: {sequence}, headerStoredAt: {stored}, headerDigest: {digest}}
		l := letterFrom(h, nil)
		again := letterFrom(letterHeader(l, time.Time{}), nil)
		l.Reason, l.Detail = singleLine(l.Reason), singleLine(l.Detail)
		l.Position.StoredAt = l.Position.StoredAt.UTC()
		require.Equal(t, l, again)
	})
}
