package uplink

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"pganalytics/pkg/batch/batchpb"
	"pganalytics/pkg/collector/internal/farend"
	"pganalytics/pkg/collector/spool"
)

func (c *collector) spoolDir() string { return filepath.Join(c.dir, "spool") }

// until runs the pusher until ok says so.
func (c *collector) until(t *testing.T, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.pusher.Run(ctx) }()
	require.Eventually(t, ok, time.Minute, time.Millisecond)
	cancel()
	require.NoError(t, <-done)
}

// restart closes the spool and opens it again, with a new pusher.
func (c *collector) restart(t *testing.T) {
	t.Helper()
	require.NoError(t, c.spool.Close())
	var err error
	c.spool, err = spool.Open(spool.Config{Dir: c.spoolDir()}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.spool.Close() })
	c.pusher = NewPusher(c.pusher.cfg, c.client, c.spool, slog.New(slog.DiscardHandler))
}

func TestNumbersThatAreAskedForAreSentAgainAsTheyWere(t *testing.T) {
	t.Parallel()
	b := farend.New(t, nil, farend.OK)
	c := enrolled(t, b)
	for i := range 9 {
		c.put(t, fmt.Sprintf("batch %d", i+1))
	}
	c.push(t)
	c.put(t, "new")
	epoch := c.spool.Stats().Last.Epoch
	found, missing, err := c.pusher.Resend(t.Context(), []spool.Range{{Epoch: epoch, First: 2, Last: 4}, {Epoch: epoch, First: 9, Last: 12}, {Epoch: uuid.Max, First: 1, Last: ^uint64(0)}})
	require.NoError(t, err)
	require.Equal(t, 4, found)
	require.Equal(t, 1<<31-1, missing)
	c.restart(t) // the wish survives
	want := []string{"new", "batch 2", "batch 3", "batch 4", "batch 9"}
	c.until(t, func() bool {
		_, asked := c.pusher.again.first()
		return !asked && len(b.Seen().Pushes) >= 9+len(want)
	})
	require.Equal(t, want, bodies(b)[9:], "what is new goes first")
	accepted, err := spool.ReadAccepted(c.spoolDir())
	require.NoError(t, err)
	require.Len(t, accepted, 10, "what is sent again settles nothing")

	wanted, err := c.spool.WantedResend()
	require.NoError(t, err)
	require.Empty(t, wanted, "and is done")
	c.restart(t)
	c.put(t, "last")
	c.until(t, func() bool { return slices.Contains(bodies(b), "last") })
	require.Len(t, bodies(b), 9+len(want)+1)
}

func TestWhatIsSentAgainHoldsNothingNew(t *testing.T) {
	t.Parallel()
	b := farend.New(t, nil, farend.OK)
	c := enrolled(t, b)
	c.put(t, "one")
	c.push(t)
	_, _, err := c.pusher.Resend(t.Context(), []spool.Range{{Epoch: c.spool.Stats().Last.Epoch, First: 1, Last: 1}})
	require.NoError(t, err)
	c.pusher.cfg.MinBackoff, c.pusher.cfg.MaxBackoff = time.Millisecond, 30*time.Minute
	b.Answer(farend.Refusal(http.StatusServiceUnavailable, "unavailable"), farend.OK)
	require.True(t, c.pusher.sendAgain(t.Context()))
	require.False(t, c.pusher.sendAgain(t.Context()), "it was held, and has its turn later")
	c.put(t, "new 0", "new 1")
	c.push(t)
	require.Equal(t, []string{"one", "one", "new 0", "new 1"}, bodies(b))
}

func TestADeadLetterIsSentAgainWhenAsked(t *testing.T) {
	t.Parallel()
	b := farend.New(t, nil, farend.Refusal(400, "nothing_accepted"), farend.OK)
	c := enrolled(t, b)
	c.put(t, "one", "two")
	c.push(t)
	letters, err := spool.Letters(c.spoolDir())
	require.NoError(t, err)
	require.Len(t, letters, 1)

	b.Answer(farend.Refusal(400, "batch_too_old"), farend.OK)
	ask := func() {
		require.NoError(t, spool.AskResend(c.spoolDir(), letters[0].BatchID))
		c.pusher.again.look = time.Time{}
	}
	ask()
	c.until(t, func() bool {
		again, err := spool.Letters(c.spoolDir())
		return err == nil && again[0].Code == "batch_too_old" && !again[0].Asked // kept, with what was said last
	})
	require.Len(t, bodies(b), 3)

	ask()
	c.until(t, func() bool { l, _ := spool.Letters(c.spoolDir()); return len(l) == 0 })
	require.Equal(t, []string{"one", "two", "one", "one"}, bodies(b))
	require.Zero(t, c.spool.Stats().DeadLetters)
}

// nativeBody returns a body of sections of these families.
func nativeBody(t *testing.T, id uuid.UUID, families ...string) string {
	t.Helper()
	push := &batchpb.PushRequest{
		BatchId: id[:], Hostname: "h", SectionCount: uint32(len(families)), Epoch: make([]byte, 16), Sequence: 7, Refused: []uint64{1},
		Labels: []*batchpb.Label{{Name: "env", Value: "test"}},
	}
	for i, f := range families {
		push.Sections = append(push.Sections, &batchpb.Section{Family: f, Server: "s", Rows: uint64(i), Tuples: []byte{byte(i), 1, 2, 3}})
	}
	text, err := proto.Marshal(push)
	require.NoError(t, err)
	z, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	return string(z.EncodeAll(text, nil))
}

func TestRefusedItemsCanBeSentAgainAsABatchOfTheirOwn(t *testing.T) {
	t.Parallel()
	partly := farend.OK
	partly.Body = `{"status":"accepted","rows_accepted":3,"rejected":[{"index":1,"code":"unknown_family"},{"index":3}],"rejected_more":0}`
	b := farend.New(t, nil, partly, farend.OK)
	c := enrolled(t, b)
	id := uuid.Must(uuid.NewV7())
	c.put(t, nativeBody(t, id, "a", "b", "c", "d"))
	c.push(t)
	letters, err := spool.Letters(c.spoolDir())
	require.NoError(t, err)
	require.Len(t, letters, 1)
	l := letters[0]
	require.NotEqual(t, id, l.BatchID)
	require.Equal(t, id.Time(), l.BatchID.Time(), "sent at the same time, so its rows are judged as before")
	require.Equal(t, uuid.Version(7), l.BatchID.Version())
	require.Equal(t, uuid.RFC4122, l.BatchID.Variant())
	require.NoError(t, spool.AskResend(c.spoolDir(), l.BatchID))
	c.pusher.again.look = time.Time{}
	c.until(t, func() bool { left, _ := spool.Letters(c.spoolDir()); return len(left) == 0 })

	sent, err := DecodeBody([]byte(bodies(b)[1]))
	require.NoError(t, err)
	require.Equal(t, l.BatchID[:], sent.GetBatchId())
	require.Empty(t, sent.GetEpoch(), "it is no part of the numbering")
	require.Zero(t, sent.GetSequence())
	require.Empty(t, sent.GetRefused())
	require.Equal(t, uint32(2), sent.GetSectionCount())
	require.Equal(t, "b", sent.GetSections()[0].GetFamily())
	require.Equal(t, []byte{3, 1, 2, 3}, sent.GetSections()[1].GetTuples())
	require.Equal(t, "test", sent.GetLabels()[0].GetValue())
}

// A batch whose acceptance could not be written down is accepted, and parted,
// once more.
func TestPartingABatchTwiceMakesTheSameBatch(t *testing.T) {
	t.Parallel()
	body := []byte(nativeBody(t, uuid.Must(uuid.NewV7()), "a", "b", "c"))
	a := acceptance{Rejected: []rejection{{Index: 2}}}
	id, rest := a.rest(body)
	again, same := a.rest(body)
	require.NotEmpty(t, rest)
	require.Equal(t, id, again)
	require.Equal(t, rest, same)

	for name, a := range map[string]acceptance{
		"not all are listed": {Rejected: []rejection{{Index: 2}}, RejectedMore: 1},
		"no such item":       {Rejected: []rejection{{Index: 3}}},
	} {
		_, rest := a.rest(body)
		require.Empty(t, rest, name)
	}
	_, rest = a.rest([]byte("not the native form"))
	require.Empty(t, rest)
}
