package collector

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/uuid"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/jsonpush"
	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/collector/pgread"
	"pganalytics/pkg/collector/spool"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	golden = sender{
		collectorID: uuid.MustParse("5d9e3a52-0f6b-4d6c-9f63-0a4d1f3f6a01"),
		hostname:    "db-host", version: "v1.2.3",
		labels: []batch.Label{{Name: "env", Value: "prod"}, {Name: "site", Value: `a"b`}},
	}
	goldenAt    = time.Date(2024, 10, 1, 12, 0, 0, 123000000, time.UTC)
	goldenStamp = spool.Stamp{
		Mark:     batch.Mark{Epoch: uuid.MustParse("01924800-0000-7000-8000-000000000001"), Sequence: 1},
		BatchID:  uuid.MustParse("01924801-0000-7000-8000-000000000002"),
		Previous: batch.Mark{Epoch: uuid.MustParse("01924700-0000-7000-8000-000000000003"), Sequence: 41},
		Refused:  []uint64{7, 9},
	}
	goldenItems = []pgread.Item{
		{
			Family: "pg_locks", Server: "db1", At: goldenAt.Add(-1500 * time.Microsecond),
			Columns: []string{"datname", "count"}, Rows: [][]byte{[]byte(`["app",3]`), []byte(`["x","9223372036854775807"]`)},
		},
		{Family: "pg_locks", Server: "db2", At: goldenAt, Columns: []string{"datname", "count"}, Rows: [][]byte{[]byte(`["<ü>",null]`)}},
	}
)

const locks = `
name: pg_locks
description: Locks.
scope: instance
interval: 60s
retention: 30d
chunk: 1d
key: [datname]
columns:
  - {name: datname, type: text, help: x}
  - {name: count, type: bigint, kind: gauge, help: x}
queries:
  - {min_version: 13, sql: "select 'app'::text as datname, 3::bigint as count"}
`

func loadLocks(t *testing.T) *catalogue.Catalogue {
	t.Helper()
	cat, err := catalogue.Load(fstest.MapFS{"pg_locks.yaml": &fstest.MapFile{Data: []byte(locks)}})
	require.NoError(t, err)
	return cat
}

func TestBodyIsGolden(t *testing.T) {
	t.Parallel()
	body, err := golden.appendBody(nil, goldenStamp, goldenAt, goldenItems)
	require.NoError(t, err)
	var pretty bytes.Buffer
	require.NoError(t, json.Indent(&pretty, body, "", "  "))
	pretty.WriteByte('\n')
	if *update {
		require.NoError(t, os.WriteFile("testdata/body.json", pretty.Bytes(), 0o600))
	}
	want, err := os.ReadFile("testdata/body.json")
	require.NoError(t, err)
	require.Equal(t, string(want), pretty.String())
}

func TestTheGatewaysDecoderAcceptsTheBody(t *testing.T) {
	t.Parallel()
	now := time.Now().UTC()
	stamp := goldenStamp
	stamp.BatchID = uuid.Must(uuid.NewV7())
	items := append([]pgread.Item(nil), goldenItems...)
	for i := range items {
		items[i].At = now.Truncate(time.Microsecond)
	}
	stamp.Refused = nil // batch 1 has none before it
	body, err := golden.appendBody(nil, stamp, now, items)
	require.NoError(t, err)
	b, report, err := jsonpush.Decode(bytes.NewReader(body), golden.collectorID, loadLocks(t), push.DefaultLimits(), now)
	require.NoError(t, err)
	require.Empty(t, report.Rejected)
	require.Equal(t, 3, b.Rows())
	require.Equal(t, stamp.BatchID, b.ID)
	require.Equal(t, stamp.Epoch, b.Epoch)
	require.Equal(t, stamp.Sequence, b.Sequence)
	require.Equal(t, stamp.Previous, b.Previous)
	require.Equal(t, golden.labels, b.Labels)
	require.Equal(t, items[0].At, b.Sections[0].MinTime)

	stamp.Sequence, stamp.Previous, stamp.Refused = 10, batch.Mark{}, goldenStamp.Refused
	body, err = golden.appendBody(nil, stamp, now, items)
	require.NoError(t, err)
	b, _, err = jsonpush.Decode(bytes.NewReader(body), golden.collectorID, loadLocks(t), push.DefaultLimits(), now)
	require.NoError(t, err)
	require.Equal(t, stamp.Refused, b.Refused)
}

// inflate returns the JSON of a spooled body.
func inflate(t *testing.T, body []byte) []byte {
	t.Helper()
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
	require.NoError(t, err)
	defer z.Close()
	text, err := z.DecodeAll(body, nil)
	require.NoError(t, err)
	return text
}
