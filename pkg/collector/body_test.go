package collector

import (
	"bytes"
	"math"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/uuid"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/batchpb"
	"pganalytics/pkg/batch/native"
	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/collector/spool"
)

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
	goldenSections = []batch.Section{
		locksSection("db1", goldenAt.Add(-1500*time.Microsecond), "app", 3, "x", math.MaxInt64),
		locksSection("db2", goldenAt, "<ü>", 0),
	}
)

// locksSection makes rows of texts and numbers in turn.
func locksSection(server string, at time.Time, values ...any) batch.Section {
	s := batch.Section{
		Family: "pg_locks", Server: server, ServerID: batch.ServerID(golden.collectorID, server), MinTime: at, MaxTime: at,
		Columns: []batch.Column{{Name: "datname", Type: catalogue.Text}, {Name: "count", Type: catalogue.BigInt}},
	}
	for i := 0; i < len(values); i += 2 {
		s.Tuples = batch.AppendTuple(s.Tuples, batch.LeadFields+2, at, s.ServerID)
		s.Tuples = batch.AppendText(s.Tuples, values[i].(string))
		s.Tuples = batch.AppendInt64(s.Tuples, int64(values[i+1].(int)))
		s.Rows++
	}
	return s
}

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

func TestTheGatewaysDecoderAcceptsTheBody(t *testing.T) {
	t.Parallel()
	stamp, now := goldenStamp, time.Now().UTC().Truncate(time.Microsecond)
	stamp.BatchID = uuid.Must(uuid.NewV7())
	stamp.Refused = nil // batch 1 has none before it
	sections := []batch.Section{locksSection("db1", now, "app", 3, "x", math.MaxInt64), locksSection("db2", now, "<ü>", 0)}
	b := decode(t, golden.push(stamp, sections).Append(nil))
	require.Equal(t, 3, b.Rows())
	require.Equal(t, stamp.BatchID, b.ID)
	require.Equal(t, stamp.Epoch, b.Epoch)
	require.Equal(t, stamp.Sequence, b.Sequence)
	require.Equal(t, stamp.Previous, b.Previous)
	require.Equal(t, golden.labels, b.Labels)
	require.Equal(t, now, b.Sections[0].MinTime)
	require.Equal(t, sections[1].Tuples, b.Sections[1].Tuples)

	stamp.Sequence, stamp.Previous, stamp.Refused = 10, batch.Mark{}, goldenStamp.Refused
	require.Equal(t, stamp.Refused, decode(t, golden.push(stamp, sections).Append(nil)).Refused)
}

// decode reads a body as the gateway does.
func decode(t *testing.T, body []byte) *batch.Batch {
	t.Helper()
	b, report, err := native.Decode(bytes.NewReader(body), golden.collectorID, loadLocks(t), push.DefaultLimits(), time.Now())
	require.NoError(t, err)
	require.Empty(t, report.Rejected)
	return b
}

// parse reads a body by the generated code, of whatever age its rows are.
func parse(t *testing.T, body []byte) *batchpb.PushRequest {
	t.Helper()
	m := &batchpb.PushRequest{}
	require.NoError(t, proto.Unmarshal(body, m))
	return m
}

// inflate returns the push of a spooled body.
func inflate(t *testing.T, body []byte) []byte {
	t.Helper()
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
	require.NoError(t, err)
	defer z.Close()
	push, err := z.DecodeAll(body, nil)
	require.NoError(t, err)
	return push
}
