package collector

import (
	"math"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/batchpb"
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

func TestAPushSaysAllThatTheSpoolNumberedIt(t *testing.T) {
	t.Parallel()
	p := golden.push(goldenStamp, goldenSections)
	m := parse(t, p.Append(nil))
	require.Equal(t, golden.collectorID[:], m.CollectorId)
	require.Equal(t, "db-host v1.2.3", m.Hostname+" "+m.Version)
	require.Equal(t, goldenStamp.BatchID[:], m.BatchId)
	require.Equal(t, goldenStamp.Epoch[:], m.Epoch)
	require.Equal(t, goldenStamp.Sequence, m.Sequence)
	require.Equal(t, goldenStamp.Previous.Epoch[:], m.Previous.Epoch)
	require.Equal(t, goldenStamp.Previous.Sequence, m.Previous.Sequence)
	require.Equal(t, goldenStamp.Refused, m.Refused)
	require.Equal(t, []string{"env=prod", `site=a"b`}, []string{m.Labels[0].Name + "=" + m.Labels[0].Value, m.Labels[1].Name + "=" + m.Labels[1].Value})
	require.Len(t, m.Sections, 2)
	require.Equal(t, goldenSections[0].Tuples, m.Sections[0].Tuples)
}

// parse reads a body by the generated code.
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
