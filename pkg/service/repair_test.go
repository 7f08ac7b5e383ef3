package service_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
	"pganalytics/pkg/replay/repair"
	"pganalytics/pkg/service"
)

// repairs is a line with an operator.
type repairs struct {
	*line
	*repair.Bench
	at service.Installation
}

func newRepairs(t *testing.T) *repairs {
	t.Helper()
	l, dir := newLine(t, lineConfig{}), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "url"), []byte(l.url), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "probe.yaml"), []byte(family), 0o600))
	i := service.Installation{
		NATS: service.StreamFlags{URL: l.nats.URL()}, Database: service.DatabaseFlags{URLFile: filepath.Join(dir, "url")},
		CatalogueFlags: service.CatalogueFlags{CatalogueDir: []string{dir}}, Timeout: time.Minute,
	}
	bench, end, err := i.Repair(t.Context(), "cli:test", io.Discard)
	require.NoError(t, err)
	t.Cleanup(end)
	return &repairs{l, bench, i}
}

// bury lays a batch into the dead letters, as an ingester would, and returns
// its letter.
func (r *repairs) bury(reason string, b *batch.Batch) batch.FiledLetter {
	r.t.Helper()
	payload, err := b.Marshal()
	require.NoError(r.t, err)
	return r.buryRaw(batch.Letter{CollectorID: b.CollectorID, BatchID: b.ID, Digest: b.Digest, Reason: reason, Rows: b.Rows(), Payload: payload})
}

func (r *repairs) buryRaw(l batch.Letter) batch.FiledLetter {
	r.t.Helper()
	require.NoError(r.t, r.bus.DeadLetters().Bury(r.t.Context(), l))
	all := r.heads(repair.Selection{})
	return all[len(all)-1]
}

func (r *repairs) heads(sel repair.Selection) []batch.FiledLetter {
	r.t.Helper()
	heads, _, err := r.List(r.t.Context(), sel)
	require.NoError(r.t, err)
	return heads
}

// retry returns the ends of letters by their ids.
func (r *repairs) retry(wait time.Duration, heads ...batch.FiledLetter) map[string]repair.End {
	r.t.Helper()
	ends := map[string]repair.End{}
	require.NoError(r.t, r.Retry(r.t.Context(), heads, wait, func(x repair.Result) { ends[x.Letter.ID] = x.End }))
	return ends
}

func (r *repairs) discard(how repair.Discarding, heads ...batch.FiledLetter) map[string]repair.End {
	r.t.Helper()
	ends := map[string]repair.End{}
	require.NoError(r.t, r.Discard(r.t.Context(), heads, how, func(x repair.Result) { ends[x.Letter.ID] = x.End }))
	return ends
}

func (r *repairs) audited(action, resource string) int {
	r.t.Helper()
	return r.number("select count(*) from identity.audit where actor = 'cli:test' and result = 'success' and action = $1 and resource_id = $2", action, resource)
}

// replay stores again what the database lacks of the whole stream, and returns
// how many batches that were.
func (r *repairs) replay() int {
	r.t.Helper()
	_, res, err := r.at.Replay(r.t.Context(), service.ReplayRequest{FromSequence: 1, By: "cli:test"}, service.ReplayConsole{Stderr: io.Discard})
	require.NoError(r.t, err)
	return int(res.Done.Stored.Batches)
}

func (r *repairs) publishAgain(b *batch.Batch) {
	r.t.Helper()
	payload, err := b.Marshal()
	require.NoError(r.t, err)
	_, err = r.bus.Publisher().Republish(r.t.Context(), b.CollectorID, payload)
	require.NoError(r.t, err)
}

func TestARetriedLetterIsGoneOnceItsBatchIsStored(t *testing.T) {
	t.Parallel()
	r := newRepairs(t)
	r.ingest(settings(), nil)
	good, bad := r.bury("unresolved", newBatch(10)), r.bury("data_error", poison(newBatch(10)))
	require.Equal(t, map[string]repair.End{good.ID: repair.Stored, bad.ID: repair.Again}, r.retry(time.Minute, good, bad))
	require.Equal(t, 10, r.rows())
	require.Equal(t, []batch.FiledLetter{bad}, r.heads(repair.Selection{}), "what came back keeps its letter")
	require.Equal(t, 1, r.audited("dead_letter.retry", good.ID))
	require.Zero(t, r.audited("dead_letter.retry", bad.ID))
}

// The next ingester that meets the message must find the letter, or its own
// burial would be the one that is deleted.
func TestALetterStaysUntilTheLedgerHasItsBatch(t *testing.T) {
	t.Parallel()
	r := newRepairs(t)
	l := r.bury("unresolved", newBatch(10))
	require.Equal(t, map[string]repair.End{l.ID: repair.Waiting}, r.retry(time.Millisecond, l))
	require.Equal(t, []batch.FiledLetter{l}, r.heads(repair.Selection{}))
	require.EqualValues(t, 1, r.status().Messages)
	r.ingest(settings(), nil)
	r.settled()
	require.Equal(t, map[string]repair.End{l.ID: repair.Stored}, r.retry(time.Minute, l))
	require.EqualValues(t, 1, r.status().LastSequence, "what is stored is not published again")
	require.Empty(t, r.letters())
	require.Equal(t, 10, r.rows())
}

func TestALetterWhoseIDAnotherBatchHasIsNotPublished(t *testing.T) {
	t.Parallel()
	r := newRepairs(t)
	r.ingest(settings(), nil)
	collector, id := uuid.New(), uuid.Must(uuid.NewV7())
	r.publish(batchOf(collector, id, "first", 10))
	r.settled()
	l := r.bury("batch_differs", batchOf(collector, id, "second", 10))
	u := r.buryRaw(batch.Letter{Reason: "undecodable", Payload: []byte("no batch")})
	require.Equal(t, map[string]repair.End{l.ID: repair.Differs, u.ID: repair.Undecodable}, r.retry(time.Minute, l, u))
	require.EqualValues(t, 1, r.status().LastSequence)
	require.Len(t, r.letters(), 2)
	_, err := r.Remove(t.Context(), collector, id, "") // then it is this one's turn
	require.NoError(t, err)
	require.Equal(t, map[string]repair.End{l.ID: repair.Stored}, r.retry(time.Minute, l))
	require.Equal(t, 10, r.number("select count(*) from metrics.probe where value = 'second'"))
	require.Equal(t, 10, r.rows())
}

func TestADiscardedBatchIsNotStoredWhoeverDeliversIt(t *testing.T) {
	t.Parallel()
	r := newRepairs(t)
	b := newBatch(10)
	l := r.bury("unresolved", b)
	require.Error(t, r.Discard(t.Context(), []batch.FiledLetter{l}, repair.Discarding{}, nil), "a reason is needed")
	require.Equal(t, map[string]repair.End{l.ID: repair.GivenUp}, r.discard(repair.Discarding{Reason: "of no use"}, l))
	require.Empty(t, r.letters())
	require.Equal(t, 1, r.audited("dead_letter.discard", l.ID))
	r.publishAgain(b)
	r.ingest(settings(), nil)
	r.settled()
	require.Zero(t, r.replay())
	require.Zero(t, r.rows())
	require.Empty(t, r.letters())
	require.Equal(t, 1, r.number("select count(*) from ingest.batch where discarded = 'of no use' and row_count = 0 and digest = $1", b.Digest[:]))
}

func TestALetterWithoutAKeyIsDiscardedOnlyOnRequest(t *testing.T) {
	t.Parallel()
	r := newRepairs(t)
	payload := []byte("no batch")
	l := r.buryRaw(batch.Letter{Reason: "undecodable", Payload: payload})
	require.Equal(t, map[string]repair.End{l.ID: repair.Undecodable}, r.discard(repair.Discarding{Reason: "noise"}, l))
	require.Len(t, r.letters(), 1)
	require.Equal(t, map[string]repair.End{l.ID: repair.GivenUp}, r.discard(repair.Discarding{Reason: "noise", Undecodable: true}, l))
	require.Empty(t, r.letters())
	sum := sha256.Sum256(payload)
	require.Equal(t, 1, r.number("select count(*) from identity.audit where changes->>'payload_sha256' = $1 and changes->>'why' = 'noise'", hex.EncodeToString(sum[:])))
}

func TestLettersAreListedByWhatTheyAre(t *testing.T) {
	t.Parallel()
	r := newRepairs(t)
	first := r.bury("data_error", newBatch(10))
	second := r.bury("unresolved", newBatch(20))
	third := r.bury("data_error", newBatch(30))
	all := []batch.FiledLetter{first, second, third}
	require.Equal(t, 20, second.Rows)
	for want, sel := range map[string]repair.Selection{
		"012": {}, "02": {Reason: "data_error"}, "1": {Collector: &second.CollectorID}, "12": {After: first.Sequence},
		"2": {Since: third.BuriedAt}, "01": {Until: third.BuriedAt}, "20": {IDs: []string{third.ID, first.ID}}, "": {Reason: "other"},
	} {
		got := ""
		for _, l := range r.heads(sel) {
			for i := range all {
				if l.ID == all[i].ID {
					require.Equal(t, all[i], l)
					got += string(rune('0' + i))
				}
			}
		}
		require.Equal(t, want, got, "%+v", sel)
	}
	page, more, err := r.List(t.Context(), repair.Selection{Limit: 2})
	require.NoError(t, err)
	require.True(t, more)
	require.Equal(t, all[:2], page)
	page, more, err = r.List(t.Context(), repair.Selection{Limit: 2, After: second.Sequence})
	require.NoError(t, err)
	require.False(t, more)
	require.Equal(t, all[2:], page)
	_, _, err = r.List(t.Context(), repair.Selection{IDs: []string{"0123456789abcdef"}})
	require.Equal(t, fault.NotFound, fault.ClassOf(err))
}

func TestTheValueAtFaultIsShown(t *testing.T) {
	t.Parallel()
	r := newRepairs(t)
	b := poison(newBatch(30)) // the last value of the last row
	s, err := r.Show(t.Context(), r.bury("data_error", b).ID, 20)
	require.NoError(t, err)
	require.Equal(t, []repair.Fault{{Section: 0, Row: 29, Column: "value", Why: "has a NUL at byte 0"}}, s.Faults)
	require.Equal(t, []string{"time", "server_id", "n", "value"}, s.Sections[0].Columns)
	require.Len(t, s.Sections[0].Values, 20)
	require.Equal(t, "7", *s.Sections[0].Values[7][2])
	require.Equal(t, "x", *s.Sections[0].Values[7][3])

	s, err = r.Show(t.Context(), r.bury("data_error", newBatch(3)).ID, 20)
	require.NoError(t, err)
	require.Empty(t, s.Faults)
	require.Len(t, s.Sections[0].Values, 3)

	s, err = r.Show(t.Context(), r.buryRaw(batch.Letter{Reason: "undecodable", Payload: []byte("no batch")}).ID, 20)
	require.NoError(t, err)
	require.Len(t, s.Faults, 1)
	require.Nil(t, s.Batch)
}

func TestAnExportedLetterIsWholeAndSaysWhatItIs(t *testing.T) {
	t.Parallel()
	r := newRepairs(t)
	b := newBatch(10)
	l := r.bury("data_error", b)
	dir := filepath.Join(t.TempDir(), "letters")
	for range 2 { // again into the same place
		require.NoError(t, r.Export(t.Context(), []batch.FiledLetter{l}, dir))
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	require.Len(t, files, 2)
	head, err := os.ReadFile(filepath.Join(dir, b.CollectorID.String()+"."+b.ID.String()+"."+l.ID+".json"))
	require.NoError(t, err)
	var told struct {
		Reason  string `json:"reason"`
		Payload string `json:"payload"`
		SHA256  string `json:"payload_sha256"`
	}
	require.NoError(t, json.Unmarshal(head, &told))
	payload, err := os.ReadFile(filepath.Join(dir, told.Payload))
	require.NoError(t, err)
	sum := sha256.Sum256(payload)
	require.Equal(t, hex.EncodeToString(sum[:]), told.SHA256)
	require.Equal(t, "data_error", told.Reason)
	want, err := b.Marshal()
	require.NoError(t, err)
	require.Equal(t, want, payload)
	require.Len(t, r.letters(), 1, "nothing is deleted")
}

func TestABatchIsFoundWhereverItIs(t *testing.T) {
	t.Parallel()
	r := newRepairs(t)
	b := newBatch(10)
	trace := func() repair.Trace {
		found, err := r.Trace(t.Context(), b.CollectorID, b.ID)
		require.NoError(t, err)
		return found
	}
	nowhere := trace()
	require.Empty(t, nowhere.Messages)
	require.Empty(t, nowhere.Ledger)
	require.Empty(t, nowhere.Letters)
	r.publish(newBatch(10), b)
	r.publishAgain(b)
	l := r.bury("unresolved", b)
	open := trace()
	require.Empty(t, open.Ledger)
	require.Empty(t, open.Holdings)
	require.Equal(t, []batch.FiledLetter{l}, open.Letters)
	require.Len(t, open.Messages, 2)
	require.EqualValues(t, 2, open.Messages[0].Sequence)
	require.EqualValues(t, 3, open.Messages[1].Sequence)
	r.ingest(settings(), nil)
	r.settled()
	stored := trace()
	require.Len(t, stored.Ledger, 1)
	require.EqualValues(t, 10, stored.Ledger[0].Rows)
	require.Equal(t, []batch.Holding{{Family: "probe", Rows: 10, Found: 10}}, stored.Holdings)
}

func TestARemovedBatchIsStoredAgainByAReplayAndADiscardedOneIsNot(t *testing.T) {
	t.Parallel()
	r := newRepairs(t)
	r.ingest(settings(), nil)
	wrong, other := newBatch(10), newBatch(7)
	r.publish(wrong, other)
	r.settled()
	remove := func(discard string) error {
		_, err := r.Remove(t.Context(), wrong.CollectorID, wrong.ID, discard)
		return err
	}
	require.NoError(t, remove(""))
	require.Equal(t, 7, r.rows())
	require.Equal(t, 1, r.batches())
	require.Equal(t, 1, r.audited("batch.remove", wrong.CollectorID.String()+"/"+wrong.ID.String()))
	require.Equal(t, fault.NotFound, fault.ClassOf(remove("")))
	require.Equal(t, 1, r.replay())
	require.Equal(t, 17, r.rows())

	require.NoError(t, remove("nonsense"))
	require.Equal(t, 1, r.audited("batch.discard", wrong.CollectorID.String()+"/"+wrong.ID.String()))
	require.Zero(t, r.replay())
	require.Equal(t, 7, r.rows())
	require.NoError(t, remove(""), "and that can be taken back")
	require.Equal(t, 1, r.replay())
	require.Equal(t, 17, r.rows())
	require.Empty(t, r.letters())
}
