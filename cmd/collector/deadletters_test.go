package main

import (
	"encoding/json"
	"log/slog"
	"testing"

	"github.com/google/uuid"
	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"pganalytics/pkg/batch/batchpb"
	"pganalytics/pkg/collector"
	"pganalytics/pkg/collector/spool"
)

// refusedBatches is a state directory whose spool, which stays open as that of
// a running collector, has two dead letters: a batch, and one of which an item
// was refused.
func refusedBatches(t *testing.T) (state string, s *spool.Spool, ids []string) {
	t.Helper()
	text, err := proto.Marshal(&batchpb.PushRequest{Sections: []*batchpb.Section{{
		Family: "pg_locks", Server: "db1", Rows: 7, Columns: []*batchpb.Column{{Name: "mode"}, {Name: "count"}},
	}}})
	require.NoError(t, err)
	z, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	state = t.TempDir()
	s, err = spool.Open(spool.Config{Dir: collector.SpoolDir(state)}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	for range 2 {
		stamp, err := s.Append(func(spool.Stamp) ([]byte, error) { return z.EncodeAll(text, nil), nil })
		require.NoError(t, err)
		ids = append(ids, stamp.BatchID.String())
	}
	r, _, err := s.Oldest()
	require.NoError(t, err)
	require.NoError(t, s.Refused(r, spool.Refusal{Status: 400, Code: "nothing_accepted", Text: []byte(`{"code":"nothing_accepted"}`)}))
	r, _, err = s.Oldest()
	require.NoError(t, err)
	require.NoError(t, s.Accepted(r, spool.Answer{Rejected: 1, Text: []byte(`{"rejected_more":1}`)}))
	return state, s, ids
}

func TestDeadLettersAreListedAndShownBesideACollector(t *testing.T) {
	t.Parallel()
	state, _, ids := refusedBatches(t)
	out, err := command(t, "deadletters", "list", "--state-dir", state)
	require.NoError(t, err)
	require.Regexp(t, ids[0]+` +\S+ +1 +400 +nothing_accepted +batch `, out)
	require.Regexp(t, ids[1]+` +\S+ +2 +202 +- +1 items, in their batch `, out)

	out, err = command(t, "deadletters", "list", "--state-dir", state, "--output", "json")
	require.NoError(t, err)
	var list []map[string]any
	require.NoError(t, json.Unmarshal([]byte(out), &list))
	require.Equal(t, ids[0], list[0]["batch_id"])
	require.Equal(t, true, list[0]["resendable"])
	require.Equal(t, false, list[1]["resendable"])
	require.Positive(t, list[0]["bytes"])

	out, err = command(t, "deadletters", "show", ids[0], "--state-dir", state)
	require.NoError(t, err)
	require.Contains(t, out, "pg_locks of db1, 7 rows")
	require.Contains(t, out, "mode count")
	out, err = command(t, "deadletters", "show", ids[0], "--state-dir", state, "--output", "json")
	require.NoError(t, err)
	require.Contains(t, out, `"code": "nothing_accepted"`)
	_, err = command(t, "deadletters", "show", uuid.NewString(), "--state-dir", state)
	require.ErrorIs(t, err, spool.ErrNoLetter)
}

func TestDeadLettersAreAskedForAndDiscardedBesideACollector(t *testing.T) {
	t.Parallel()
	state, s, ids := refusedBatches(t)
	_, err := command(t, "deadletters", "resend", "--state-dir", state)
	require.ErrorContains(t, err, "--all")
	out, err := command(t, "deadletters", "resend", "--all", "--state-dir", state)
	require.ErrorContains(t, err, ids[1], "what is stored under this id is not sent again")
	require.Contains(t, out, "1 letters are sent again")
	asked, err := s.Asked()
	require.NoError(t, err)
	require.Len(t, asked, 1)
	require.Equal(t, ids[0], asked[0].BatchID.String())

	out, err = command(t, "deadletters", "discard", ids[1], "--state-dir", state)
	require.NoError(t, err)
	require.Contains(t, out, "1 letters are gone")
	asked, err = s.Asked()
	require.NoError(t, err)
	require.Len(t, asked, 1)
	require.Equal(t, 1, s.Stats().DeadLetters)
}
