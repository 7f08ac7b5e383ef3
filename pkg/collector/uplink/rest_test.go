package uplink

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/uuid"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/native"
	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/catalogue"
)

func familiesOf(t *testing.T, names ...string) *catalogue.Catalogue {
	t.Helper()
	files := fstest.MapFS{}
	for _, name := range names {
		files[name+".yaml"] = &fstest.MapFile{Data: fmt.Appendf(nil, `
name: %s
description: x
scope: instance
interval: 60s
retention: 30d
chunk: 1d
key: []
columns:
  - {name: count, type: bigint, kind: gauge, help: x}
queries:
  - {min_version: 13, sql: "select 3::bigint as count"}
`, name)}
	}
	cat, err := catalogue.Load(files)
	require.NoError(t, err)
	return cat
}

// A gateway that is older than its collectors refuses the items of families
// that it does not know. Once it does, it takes just these.
func TestAGatewayTakesTheRefusedItemsOnceItKnowsThem(t *testing.T) {
	t.Parallel()
	at := time.Now().Add(-time.Minute).UTC().Truncate(time.Microsecond)
	p := &native.Push{
		CollectorID: uuid.New(), Hostname: "h", Version: "v", BatchID: uuid.Must(uuid.NewV7()),
		Epoch: uuid.Must(uuid.NewV7()), Sequence: 1, Previous: batch.Mark{Epoch: uuid.Must(uuid.NewV7()), Sequence: 9},
	}
	for i, family := range []string{"old", "new_one", "new_two"} {
		id := batch.ServerID(p.CollectorID, "db1")
		s := batch.Section{
			Family: family, Server: "db1", ServerID: id, MinTime: at, MaxTime: at, Rows: 1,
			Columns: []batch.Column{{Name: "count", Type: catalogue.BigInt}},
		}
		s.Tuples = batch.AppendInt64(batch.AppendTuple(nil, batch.LeadFields+1, at, id), int64(i))
		p.Sections = append(p.Sections, s)
	}
	z, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	body := z.EncodeAll(p.Append(nil), nil)
	take := func(body []byte, cat *catalogue.Catalogue) (*batch.Batch, *push.Report) {
		r, err := zstd.NewReader(bytes.NewReader(body))
		require.NoError(t, err)
		defer r.Close()
		b, report, err := native.Decode(r, p.CollectorID, cat, push.DefaultLimits(), time.Now())
		require.NoError(t, err)
		return b, report
	}
	whole, report := take(body, familiesOf(t, "old"))
	require.Equal(t, p.Sequence, whole.Sequence)
	require.Len(t, report.Rejected, 2)

	text, err := json.Marshal(map[string]any{"rejected": report.Rejected})
	require.NoError(t, err)
	var a acceptance
	require.NoError(t, json.Unmarshal(text, &a))
	id, rest := a.rest(body)
	later, report := take(rest, familiesOf(t, "old", "new_one", "new_two"))
	require.Empty(t, report.Rejected)
	require.Equal(t, id, later.ID)
	require.Equal(t, whole.SentAt, later.SentAt)
	require.Zero(t, later.Sequence)
	require.Zero(t, later.Epoch)
	require.Len(t, later.Sections, 2)
	for _, s := range later.Sections {
		require.NotEqual(t, "old", s.Family)
	}
}
