package bus

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
)

// heads returns all that Heads gives.
func (w *world) heads(collector *uuid.UUID, after uint64, since time.Time) []batch.FiledLetter {
	w.t.Helper()
	var all []batch.FiledLetter
	require.NoError(w.t, w.DeadLetters().Heads(w.t.Context(), collector, after, since, func(l batch.FiledLetter) (bool, error) {
		all = append(all, l)
		return true, nil
	}))
	return all
}

func (w *world) layDown(letters ...batch.Letter) {
	w.t.Helper()
	for _, l := range letters {
		require.NoError(w.t, w.DeadLetters().Bury(w.t.Context(), l))
	}
}

func TestHeadsTellAllButThePayload(t *testing.T) {
	t.Parallel()
	w := setup(t)
	require.Empty(t, w.heads(nil, 0, time.Time{}))
	first, second := newLetter(1<<20), newLetter(10)
	first.Rows = 17
	w.layDown(first, second)
	got := w.heads(nil, 0, time.Time{})
	require.Len(t, got, 2)
	for i, l := range []batch.Letter{first, second} {
		require.Equal(t, len(l.Payload), got[i].Size)
		whole, err := w.DeadLetters().Get(t.Context(), got[i].ID)
		require.NoError(t, err)
		require.Equal(t, l, whole.Letter)
		require.WithinDuration(t, time.Now(), whole.BuriedAt, patience)
		whole.Payload = nil
		require.Equal(t, whole, got[i])
	}
}

func TestHeadsCanBeOfOneCollectorAndFromAPlaceOrTimeOn(t *testing.T) {
	t.Parallel()
	w := setup(t)
	var letters []batch.Letter
	for range headsAtOnce + 7 { // more than one request
		l := newLetter(1)
		letters = append(letters, l)
		w.layDown(l)
	}
	all := w.heads(nil, 0, time.Time{})
	require.Len(t, all, len(letters))
	require.Equal(t, letters[3].BatchID, all[3].BatchID, "oldest first")
	require.Equal(t, all[3:4], w.heads(&letters[3].CollectorID, 0, time.Time{}))
	require.Equal(t, all[4:], w.heads(nil, all[3].Sequence, time.Time{}))
	require.Equal(t, all[5:], w.heads(nil, 0, all[5].BuriedAt))
	seen := 0
	require.NoError(t, w.DeadLetters().Heads(t.Context(), nil, 0, time.Time{}, func(batch.FiledLetter) (bool, error) {
		seen++
		return seen < 3, nil
	}))
	require.Equal(t, 3, seen)
	failed := errors.New("the caller's")
	require.ErrorIs(t, w.DeadLetters().Heads(t.Context(), nil, 0, time.Time{}, func(batch.FiledLetter) (bool, error) { return true, failed }), failed)
}

func TestALetterIsFoundByItsIDAlone(t *testing.T) {
	t.Parallel()
	w := setup(t)
	l := newLetter(10)
	other := l // the same digest by somebody's forgery
	other.CollectorID = uuid.New()
	w.layDown(l)
	id := w.heads(nil, 0, time.Time{})[0].ID
	found, err := w.DeadLetters().Get(t.Context(), id)
	require.NoError(t, err)
	w.layDown(other)
	_, err = w.DeadLetters().Get(t.Context(), id)
	require.Equal(t, fault.Conflict, fault.ClassOf(err))
	again, err := w.DeadLetters().Get(t.Context(), l.CollectorID.String()+"."+l.BatchID.String()+"."+id)
	require.NoError(t, err)
	require.Equal(t, found, again)
	for _, wrong := range []string{"", "0123456789abcdef", "*", ">", id + ".>", "*.*." + id} {
		_, err := w.DeadLetters().Get(t.Context(), wrong)
		require.Equal(t, fault.NotFound, fault.ClassOf(err), wrong)
	}
}

func TestOnlyTheLetterThatWasReadIsDeleted(t *testing.T) {
	t.Parallel()
	w := setup(t)
	l, other := newLetter(10), newLetter(10)
	w.layDown(l, other)
	read := w.heads(nil, 0, time.Time{})
	for range 2 { // the second time it is gone
		require.NoError(t, w.DeadLetters().Delete(t.Context(), read[0]))
		require.Equal(t, read[1:], w.heads(nil, 0, time.Time{}))
	}
	w.layDown(l)
	require.NoError(t, w.DeadLetters().Delete(t.Context(), read[0]))
	require.Len(t, w.heads(nil, 0, time.Time{}), 2, "the one that was buried since stays")
}

func TestAMessagePublishedAgainIsAnotherMessage(t *testing.T) {
	t.Parallel()
	w := setup(t)
	begin := time.Now().Add(-time.Minute)
	b := newBatch(10)
	_, err := w.Publisher().Publish(t.Context(), b)
	require.NoError(t, err)
	_, err = w.Publisher().Publish(t.Context(), newBatch(10))
	require.NoError(t, err)
	payload, err := b.Marshal()
	require.NoError(t, err)
	for _, want := range []uint64{3, 4} {
		sequence, err := w.Publisher().Republish(t.Context(), b.CollectorID, payload)
		require.NoError(t, err)
		require.Equal(t, want, sequence, "the duplicate window does not hold it back")
	}
	var found []uint64
	require.NoError(t, w.OfCollector(t.Context(), b.CollectorID, begin, func(d batch.Delivery) error {
		require.Equal(t, payload, d.Payload)
		found = append(found, d.Sequence)
		return nil
	}))
	require.Equal(t, []uint64{1, 3, 4}, found)
	require.NoError(t, w.OfCollector(t.Context(), uuid.New(), begin, func(batch.Delivery) error { return errors.New("not of it") }))
}

func TestLettersWithoutAServerAreUnavailable(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.layDown(newLetter(1))
	l := w.heads(nil, 0, time.Time{})[0]
	w.stopAndNotice()
	ctx := context.WithoutCancel(t.Context())
	requireUnavailable(t, w.DeadLetters().Heads(ctx, nil, 0, time.Time{}, nil))
	_, err := w.DeadLetters().Get(ctx, l.ID)
	requireUnavailable(t, err)
	requireUnavailable(t, w.DeadLetters().Delete(ctx, l))
	_, err = w.Publisher().Republish(ctx, l.CollectorID, l.Payload)
	requireUnavailable(t, err)
}
