package spool

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pganalytics/pkg/batch"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDirEnv); dir != "" {
		if os.Getenv(crashModeEnv) == busyMode {
			settleUntilKilled(dir)
		}
		appendUntilKilled(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

func open(t *testing.T, cfg Config) *Spool {
	t.Helper()
	s, err := Open(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func put(t *testing.T, s *Spool, body string) Stamp {
	t.Helper()
	stamp, err := s.Append(func(Stamp) ([]byte, error) { return []byte(body), nil })
	require.NoError(t, err)
	return stamp
}

func oldest(t *testing.T, s *Spool) *Record {
	t.Helper()
	r, ok, err := s.Oldest()
	require.NoError(t, err)
	require.True(t, ok, "the spool has an unsettled batch")
	return r
}

func accept(t *testing.T, s *Spool) *Record {
	t.Helper()
	r := oldest(t, s)
	require.NoError(t, s.Accepted(r, Answer{Rows: 1}))
	return r
}

func TestBatchesAreReadOldestFirstAndUnchanged(t *testing.T) {
	t.Parallel()
	s := open(t, Config{Dir: t.TempDir(), SegmentBytes: 300})
	var want []Stamp
	for i := range 20 {
		want = append(want, put(t, s, fmt.Sprintf("body %d", i)))
	}
	for i := range 20 {
		first, again := oldest(t, s), oldest(t, s)
		require.Equal(t, first, again)
		require.Equal(t, want[i], first.Stamp)
		require.Equal(t, uint64(i+1), first.Sequence)
		require.Equal(t, fmt.Sprintf("body %d", i), string(first.Body))
		require.NoError(t, s.Accepted(first, Answer{Rows: i}))
	}
	_, ok, err := s.Oldest()
	require.NoError(t, err)
	require.False(t, ok)
}

func TestSentSegmentsAreRemovedButNotTheNewestRecord(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, Config{Dir: dir, SegmentBytes: 300, KeepBytes: -1})
	for i := range 20 {
		put(t, s, fmt.Sprintf("body %d", i))
	}
	for range 20 {
		accept(t, s)
	}
	_, _, err := s.Oldest()
	require.NoError(t, err)
	segments, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
	require.NoError(t, err)
	require.Len(t, segments, 1)
}

// A process that ends between making a segment and writing into it leaves an
// empty one; the record before it is then all that tells where numbering ended.
func TestAnEmptyNewestSegmentDoesNotEndTheNumbering(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir()}
	s := open(t, cfg)
	last := put(t, s, "one")
	accept(t, s)
	require.NoError(t, s.Close())
	require.NoError(t, os.WriteFile(filepath.Join(cfg.Dir, "00000000000000ff"+segmentSuffix), nil, 0o600))
	for range 2 {
		s = open(t, cfg)
		_, ok, err := s.Oldest()
		require.NoError(t, err)
		require.False(t, ok)
		require.NoError(t, s.Close())
	}
	s = open(t, cfg)
	require.Equal(t, batch.Mark{Epoch: last.Epoch, Sequence: 2}, put(t, s, "two").Mark)
	require.Equal(t, "two", string(accept(t, s).Body))
}

func TestCleanReopenContinuesTheEpoch(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir(), SegmentBytes: 300}
	s := open(t, cfg)
	var last Stamp
	for i := range 10 {
		last = put(t, s, fmt.Sprint(i))
	}
	for range 4 {
		accept(t, s)
	}
	for _, unsent := range []int{6, 0, 0} { // also when everything is settled
		require.NoError(t, s.Close())
		s = open(t, cfg)
		require.Equal(t, unsent, s.Stats().Unsent)
		next := put(t, s, "next")
		require.Equal(t, batch.Mark{Epoch: last.Epoch, Sequence: last.Sequence + 1}, next.Mark)
		require.Zero(t, next.Previous)
		last = next
		for s.Stats().Unsent > 0 {
			accept(t, s)
		}
	}
	accepted, err := ReadAccepted(cfg.Dir)
	require.NoError(t, err)
	require.Len(t, accepted, 13)
	for i, a := range accepted {
		require.Equal(t, uint64(i+1), a.Sequence)
	}
}

func TestTwoCollectorsCannotShareADirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, Config{Dir: dir})
	_, err := Open(Config{Dir: dir}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.ErrorIs(t, err, ErrLocked)
	require.NoError(t, s.Close())
	open(t, Config{Dir: dir})
}

func TestFullSpoolTakesNothingAndDropsNothing(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	dir := t.TempDir()
	s, err := Open(Config{Dir: dir, MaxBytes: 1000, SegmentBytes: 400}, slog.New(slog.DiscardHandler), reg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	taken := 0
	for taken < 100 {
		_, err = s.Append(func(Stamp) ([]byte, error) { return make([]byte, 100), nil })
		if err != nil {
			break
		}
		taken++
	}
	require.ErrorIs(t, err, ErrFull)
	require.Equal(t, taken, s.Stats().Unsent)
	require.LessOrEqual(t, s.Stats().UnsentBytes, int64(1000))
	require.InDelta(t, 1, testutil.ToFloat64(s.metrics.full), 0)

	accept(t, s)
	<-s.Room()
	stamp := put(t, s, string(make([]byte, 100)))
	require.Equal(t, uint64(taken+1), stamp.Sequence, "a refused append uses no number")
	for i := range taken {
		require.Equal(t, uint64(i+2), accept(t, s).Sequence)
	}
}

func TestRefusedBatchIsKeptAndItsNumberReported(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir()}
	s := open(t, cfg)
	first := put(t, s, "one")
	put(t, s, "two")
	require.NoError(t, s.Refused(oldest(t, s), Refusal{Status: 400, Code: "invalid", Text: []byte(`{"code":"invalid"}`)}))

	kept, err := os.ReadFile(filepath.Join(cfg.Dir, deadDir, first.BatchID.String()+bodySuffix))
	require.NoError(t, err)
	require.Equal(t, "one", string(kept))

	// The number survives a restart, is told once, and told again when the
	// batch that carried it is refused itself.
	require.NoError(t, s.Close())
	s = open(t, cfg)
	third := put(t, s, "three")
	require.Equal(t, []uint64{1}, third.Refused)
	require.Equal(t, first.Epoch, third.Epoch)
	require.Empty(t, put(t, s, "four").Refused)
	require.Equal(t, "two", string(accept(t, s).Body))
	require.NoError(t, s.Refused(oldest(t, s), Refusal{Status: 413}))
	require.NoError(t, s.Close())
	s = open(t, cfg)
	require.Equal(t, []uint64{1, 3}, put(t, s, "five").Refused)
	require.Equal(t, "four", string(accept(t, s).Body))
	require.Empty(t, put(t, s, "six").Refused)
}

// A gateway takes the end of the epoch before only from batch 1, so nothing
// else may carry it, whatever became of that batch.
func TestOnlyTheFirstBatchOfAnEpochNamesTheOneBefore(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir()}
	s := open(t, cfg)
	put(t, s, "one")
	require.NoError(t, s.Close())
	path, data := lastSegment(t, cfg.Dir)
	require.NoError(t, os.WriteFile(path, append(data, 'x'), 0o600))
	s = open(t, cfg)
	accept(t, s)
	require.NotZero(t, put(t, s, "first").Previous)
	require.NoError(t, s.Refused(oldest(t, s), Refusal{Status: 400}))
	second := put(t, s, "second")
	require.Zero(t, second.Previous)
	require.Equal(t, []uint64{1}, second.Refused)
	require.NoError(t, s.Close())
	s = open(t, cfg)
	require.Zero(t, put(t, s, "third").Previous)
}

func TestRefusedItemsOfAnAcceptedBatchAreKept(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir()}
	s := open(t, cfg)
	stamp := put(t, s, "one")
	require.NoError(t, s.Accepted(oldest(t, s), Answer{Rows: 3, Rejected: 1, Text: []byte("why")}))
	letters, err := Letters(cfg.Dir)
	require.NoError(t, err)
	require.Len(t, letters, 1)
	require.Equal(t, "why", letters[0].Answer)
	require.Equal(t, stamp.BatchID, letters[0].BatchID)
	require.Error(t, AskResend(cfg.Dir, stamp.BatchID), "under this id it is stored")
	require.Empty(t, put(t, s, "two").Refused, "the batch itself was accepted")
}

func TestSettlingTwiceIsRefused(t *testing.T) {
	t.Parallel()
	s := open(t, Config{Dir: t.TempDir()})
	put(t, s, "one")
	put(t, s, "two")
	r := accept(t, s)
	require.Error(t, s.Accepted(r, Answer{}))
	require.Equal(t, "two", string(oldest(t, s).Body))
}

// lastSegment returns the path and content of the newest segment.
func lastSegment(t *testing.T, dir string) (string, []byte) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	data, err := os.ReadFile(paths[len(paths)-1])
	require.NoError(t, err)
	return paths[len(paths)-1], data
}

func TestTornTailIsCutAndBeginsANewEpoch(t *testing.T) {
	t.Parallel()
	for _, cut := range []int{1, 2, 5, 83, 90} {
		t.Run(fmt.Sprint(cut), func(t *testing.T) {
			t.Parallel()
			cfg := Config{Dir: t.TempDir()}
			s := open(t, cfg)
			var last Stamp
			for i := range 3 {
				last = put(t, s, fmt.Sprintf("body %d", i))
			}
			require.NoError(t, s.Close())
			path, data := lastSegment(t, cfg.Dir)
			torn := appendRecord(nil, &Record{
				Stamp: Stamp{Mark: batch.Mark{Epoch: last.Epoch, Sequence: 4}, BatchID: uuid.New()},
				Body:  []byte("never confirmed"),
			})
			require.NoError(t, os.WriteFile(path, append(data, torn[:cut]...), 0o600))

			s = open(t, cfg)
			require.InDelta(t, cut, testutil.ToFloat64(s.metrics.cutBytes), 0)
			next := put(t, s, "after")
			require.NotEqual(t, last.Epoch, next.Epoch)
			require.Equal(t, uint64(1), next.Sequence)
			require.Equal(t, last.Mark, next.Previous)
			second := put(t, s, "second")
			require.Zero(t, second.Previous)
			require.Equal(t, next.Epoch, second.Epoch)
			for i := range 3 {
				require.Equal(t, fmt.Sprintf("body %d", i), string(accept(t, s).Body))
			}
			require.Equal(t, "after", string(accept(t, s).Body))

			require.NoError(t, s.Close())
			s = open(t, cfg)
			require.InDelta(t, 0, testutil.ToFloat64(s.metrics.cutBytes), 0, "the damage is gone")
			require.Equal(t, batch.Mark{Epoch: next.Epoch, Sequence: 3}, put(t, s, "on").Mark)
		})
	}
}

// A new epoch must outlive a crash right after the damage was cut off: else
// the numbering would go on as if nothing had been there.
func TestNewEpochSurvivesARestartBeforeItsFirstBatch(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir()}
	s := open(t, cfg)
	last := put(t, s, "one")
	require.NoError(t, s.Close())
	path, data := lastSegment(t, cfg.Dir)
	require.NoError(t, os.WriteFile(path, append(data, "rubbish"...), 0o600))
	for range 3 {
		s = open(t, cfg)
		require.NoError(t, s.Close())
	}
	s = open(t, cfg)
	next := put(t, s, "two")
	require.NotEqual(t, last.Epoch, next.Epoch)
	require.Equal(t, last.Mark, next.Previous)
}

func TestDamageInTheMiddleLosesOnlyTheDamagedRecord(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir()}
	s := open(t, cfg)
	var last Stamp
	for _, body := range []string{"one", "two", "three"} {
		last = put(t, s, body)
	}
	require.NoError(t, s.Close())
	path, data := lastSegment(t, cfg.Dir)
	data[bytes.Index(data, []byte("two"))] ^= 1
	require.NoError(t, os.WriteFile(path, data, 0o600))

	s = open(t, cfg)
	require.Equal(t, last.Mark, put(t, s, "four").Previous)
	for _, want := range []struct {
		sequence uint64
		body     string
	}{{1, "one"}, {3, "three"}, {1, "four"}} { // the missing number shows the loss
		r := accept(t, s)
		require.Equal(t, want.sequence, r.Sequence)
		require.Equal(t, want.body, string(r.Body))
	}
}

// The last record was confirmed and is damaged: the epoch's end must name its
// number, or the loss would not show.
func TestDamagedLastRecordShowsAsAGap(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir()}
	s := open(t, cfg)
	put(t, s, "one")
	last := put(t, s, "two")
	require.NoError(t, s.Close())
	path, data := lastSegment(t, cfg.Dir)
	data[len(data)-1] ^= 1
	require.NoError(t, os.WriteFile(path, data, 0o600))
	s = open(t, cfg)
	require.Equal(t, last.Mark, put(t, s, "three").Previous)
}

func TestRecordDamagedWhileOpenIsPassedOver(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir()}
	s := open(t, cfg)
	for _, body := range []string{"one", "two", "three"} {
		put(t, s, body)
	}
	path, data := lastSegment(t, cfg.Dir)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("T"), int64(bytes.Index(data, []byte("two"))))
	require.NoError(t, errors.Join(err, f.Close()))
	require.Equal(t, "one", string(accept(t, s).Body))
	require.Equal(t, "three", string(accept(t, s).Body))
	require.InDelta(t, 1, testutil.ToFloat64(s.metrics.damaged), 0)
	require.Zero(t, s.Stats().Unsent)
	require.Zero(t, s.Stats().UnsentBytes)
}

func TestLostJournalOnlySendsAgain(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir()}
	s := open(t, cfg)
	put(t, s, "one")
	last := put(t, s, "two")
	accept(t, s)
	require.NoError(t, s.Close())
	require.NoError(t, os.Remove(filepath.Join(cfg.Dir, journalName)))
	s = open(t, cfg)
	require.Equal(t, 2, s.Stats().Unsent)
	next := put(t, s, "three")
	require.NotEqual(t, last.Epoch, next.Epoch, "without the journal nothing proves the end of the numbering")
	require.Equal(t, last.Mark, next.Previous)
}

func TestLostSegmentsShowAsAGap(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir()}
	s := open(t, cfg)
	put(t, s, "one")
	two := put(t, s, "two")
	put(t, s, "three")
	accept(t, s)
	accept(t, s)
	require.NoError(t, s.Close())
	path, _ := lastSegment(t, cfg.Dir)
	require.NoError(t, os.Remove(path))
	s = open(t, cfg)
	next := put(t, s, "four")
	require.NotEqual(t, two.Epoch, next.Epoch)
	require.Equal(t, two.Mark, next.Previous)
}

func TestTornJournalLineIsCut(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir()}
	s := open(t, cfg)
	put(t, s, "one")
	put(t, s, "two")
	accept(t, s)
	require.NoError(t, s.Close())
	path := filepath.Join(cfg.Dir, journalName)
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, data[:len(data)-3], 0o600))
	s = open(t, cfg)
	require.Equal(t, "one", string(accept(t, s).Body), "its acceptance was not confirmed")
	require.Equal(t, "two", string(accept(t, s).Body))
	accepted, err := ReadAccepted(cfg.Dir)
	require.NoError(t, err)
	require.Len(t, accepted, 2)
}

func TestFailedWriteTakesNoNumber(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir()}
	s := open(t, cfg)
	put(t, s, "one")
	whole := s.active
	readOnly, err := os.Open(whole.Name())
	require.NoError(t, err)
	s.active = readOnly
	_, err = s.Append(func(Stamp) ([]byte, error) { return []byte("two"), nil })
	require.Error(t, err)
	s.active = whole
	require.NoError(t, readOnly.Close())
	require.Equal(t, uint64(2), put(t, s, "two").Sequence)
	accept(t, s)
	require.Equal(t, "two", string(accept(t, s).Body))
}

func TestJournalLinesAreGolden(t *testing.T) {
	t.Parallel()
	l := line{Kind: kindAccepted, Epoch: uuid.MustParse("01920000-0000-7000-8000-000000000001"), Sequence: 7, Rows: 3}
	text, err := l.encode()
	require.NoError(t, err)
	require.JSONEq(t, `{"kind":"accepted","at":"0001-01-01T00:00:00Z","epoch":"01920000-0000-7000-8000-000000000001","sequence":7,"rows":3}`, string(text[9:len(text)-1]))
}

// When an append fails, cutting off what it wrote may fail with it.
func TestWhatAFailedAppendLeftNeverBecomesABatch(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: t.TempDir(), SegmentBytes: 1000}
	s := open(t, cfg)
	first := put(t, s, "first")
	left := Record{Stamp: first, Body: []byte("failed")}
	left.Sequence++
	left.BatchID = uuid.New()
	_, err := s.active.WriteAt(appendRecord(nil, &left), s.segments[0].size)
	require.NoError(t, err)
	second := put(t, s, string(make([]byte, 1000))) // into the next segment
	require.Equal(t, left.Mark, second.Mark)
	require.NoError(t, s.Close())

	s = open(t, cfg)
	require.Equal(t, first, accept(t, s).Stamp)
	require.Equal(t, second, accept(t, s).Stamp)
	_, ok, err := s.Oldest()
	require.NoError(t, err)
	require.False(t, ok)
}
