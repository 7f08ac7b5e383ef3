package verify

import (
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
)

// A dead letter of a collector is sent again under its own id and number, which
// a later batch has told as refused, as it was.
func TestANumberThatWasRefusedAndThenStoredIsStored(t *testing.T) {
	t.Parallel()
	of := func(n uint64, refused ...uint64) *batch.Batch {
		return &batch.Batch{CollectorID: uuid.UUID{1}, ID: uuid.New(), SentAt: start, Epoch: uuid.UUID{2}, Sequence: n, Refused: refused}
	}
	tally := newTally(Request{})
	tally.add(of(1), Stored)
	tally.add(of(3, 2), Stored)
	var r Report
	tally.report(&r)
	require.Equal(t, Counts{Stored: 2, Refused: 1}, r.Collectors[0].Batches)
	tally.add(of(2), Stored)
	r = Report{}
	tally.report(&r)
	require.Equal(t, Counts{Stored: 3}, r.Collectors[0].Batches)
	require.Empty(t, r.Gaps)
	require.True(t, r.Clean())
}
