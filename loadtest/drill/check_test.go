package main

import (
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

func TestTheCheckSeesWhatIsLostAndWhatIsThereTwice(t *testing.T) {
	t.Parallel()
	id := uuid.New()
	good := found{rows: 3, ledger: 1, sum: 42}
	for name, c := range map[string]struct {
		there            found
		lost, duplicated int
	}{
		"whole":              {good, 0, 0},
		"gone":               {found{}, 1, 0},
		"a row gone":         {found{2, 1, 40}, 1, 0},
		"a row changed":      {found{3, 1, 41}, 1, 0},
		"not in the ledger":  {found{3, 0, 42}, 1, 0},
		"a row twice":        {found{4, 1, 50}, 0, 1},
		"stored twice":       {found{6, 2, 84}, 0, 1},
		"twice in a ledger":  {found{3, 2, 42}, 0, 1},
		"twice, and no rows": {found{0, 2, 0}, 0, 1},
	} {
		var f figures
		tables := map[uuid.UUID]found{id: c.there, uuid.New(): good}
		f.check([]taken{{Batch: id, Rows: 3, Sum: 42}}, tables)
		require.Equal(t, figures{batches: 1, rows: 3, lost: c.lost, duplicated: c.duplicated}, f, name)
		require.Len(t, tables, 1, "what nobody was told of remains")
	}
}

func TestASumTellsARowFromEveryOther(t *testing.T) {
	t.Parallel()
	a, b := uuid.New(), uuid.New()
	sums := map[uint64]bool{}
	for _, batch := range []uuid.UUID{a, b} {
		for n := range int32(3) {
			for _, body := range []string{"x", "y", ""} {
				sums[sum(batch, n, body)] = true
			}
		}
	}
	require.Len(t, sums, 18)
}
