package spool

import (
	"bufio"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
)

// crashDirEnv makes the test binary use the spool in that directory until it is
// killed, instead of running tests; crashModeEnv says how.
const (
	crashDirEnv  = "SPOOL_TEST_CRASH_DIR"
	crashModeEnv = "SPOOL_TEST_CRASH_MODE"
	busyMode     = "busy"  // settleUntilKilled
	largeMode    = "large" // appendUntilKilled
)

// appendUntilKilled appends batches of changing size and settles every third,
// and prints each one once Append, or Accepted, has confirmed it.
func appendUntilKilled(dir string) {
	s, err := Open(Config{Dir: dir, SegmentBytes: 4 << 20}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	for i := 0; ; i++ {
		// Large bodies, so that the kill hits a write in the middle.
		body := make([]byte, 1+rand.IntN(2<<20))
		stamp, err := s.Append(func(Stamp) ([]byte, error) { return body, nil })
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println("taken", stamp.Epoch, stamp.Sequence, stamp.BatchID, stamp.Previous.Epoch, stamp.Previous.Sequence)
		if i%3 == 2 {
			r, _, err := s.Oldest()
			if err == nil {
				err = s.Accepted(r, Answer{Rows: 1})
			}
			if err != nil {
				fmt.Println("error", err)
				os.Exit(1)
			}
			fmt.Println("settled", r.BatchID)
		}
	}
}

// settleUntilKilled appends small batches and settles each: accepted, refused,
// or refused, asked for and then accepted, so that segments, journal and dead
// letters change all the time. It prints what is confirmed.
func settleUntilKilled(dir string) {
	cfg := Config{Dir: dir, SegmentBytes: busySegment, KeepBytes: busyKeep}
	s, err := Open(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err == nil {
		s.journal.max = 4 << 10
	}
	for i := 0; err == nil; i++ {
		var stamp Stamp
		var r *Record
		body := make([]byte, 1+rand.IntN(8<<10))
		if stamp, err = s.Append(func(Stamp) ([]byte, error) { return body, nil }); err != nil {
			break
		}
		fmt.Println("taken", stamp.Epoch, stamp.Sequence, stamp.BatchID, stamp.Previous.Epoch, stamp.Previous.Sequence)
		if r, _, err = s.Oldest(); err != nil {
			break
		}
		if i%5 != 0 {
			if err = s.Accepted(r, Answer{Rows: 1}); err == nil {
				fmt.Println("settled", r.BatchID)
			}
			continue
		}
		if err = s.Refused(r, Refusal{Status: 400}); err == nil {
			fmt.Println("settled", r.BatchID)
			err = answerLetters(s, dir, r.BatchID)
		}
	}
	fmt.Println("error", err)
	os.Exit(1)
}

func answerLetters(s *Spool, dir string, id uuid.UUID) error {
	if err := AskResend(dir, id); err != nil {
		return err
	}
	letters, err := s.Asked()
	for _, l := range letters {
		if err := s.LetterAccepted(l, nil, Answer{Rows: 1}); err != nil {
			return err
		}
	}
	return err
}

const (
	busySegment = 32 << 10
	busyKeep    = 100 << 10
)

// What is kept is the newest that was answered, without a hole and whole, and
// no more of it than there may be; each batch is settled once or still waits.
func TestKilledProcessKeepsWhatWasAnsweredWithoutAHole(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	confirmed := map[uuid.UUID]batch.Mark{}
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	for round := range rounds {
		taken, _ := killed(t, dir, busyMode, time.Duration(rand.IntN(300_000))*time.Microsecond)
		for _, s := range taken {
			confirmed[s.BatchID] = s.Mark
		}
		s := open(t, Config{Dir: dir, SegmentBytes: busySegment, KeepBytes: busyKeep})
		stats := s.Stats()
		require.LessOrEqual(t, stats.Unsent, round+1, "at most one of each kill waits")
		require.LessOrEqual(t, stats.KeptBytes, int64(busyKeep))
		settled := stats.Last.Sequence - uint64(stats.Unsent)
		found, missing, err := s.FindKept([]Range{{stats.Last.Epoch, 1, settled}})
		require.NoError(t, err)
		if settled > 100 { // of 4 KiB each: far more than is kept
			require.Equal(t, []Range{{stats.Last.Epoch, 1, settled - uint64(len(found))}}, missing)
			require.Greater(t, len(found), 8)
		}
		for _, k := range found {
			r, err := s.ReadKept(k)
			require.NoError(t, err)
			if mark, ok := confirmed[r.BatchID]; ok { // else it was killed before it said so
				require.Equal(t, mark, r.Mark)
			}
		}
		letters, err := Letters(dir)
		require.NoError(t, err)
		require.LessOrEqual(t, len(letters), rounds, "at most the one of each kill is left")
		require.NoError(t, s.Close())
	}
	t.Logf("%d batches confirmed", len(confirmed))
}

// killed runs the mode for about wait and kills it. It returns what
// was confirmed, in order, and the ids of what was settled.
func killed(t *testing.T, dir, mode string, wait time.Duration) (taken []Stamp, settled map[uuid.UUID]bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), crashDirEnv+"="+dir, crashModeEnv+"="+mode)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	settled = map[uuid.UUID]bool{}
	var kill *time.Timer
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if kill == nil { // once the spool is open
			kill = time.AfterFunc(wait, func() { _ = cmd.Process.Kill() })
		}
		f := strings.Fields(lines.Text())
		switch f[0] {
		case "taken":
			taken = append(taken, Stamp{
				Mark: parseMark(t, f[1], f[2]), BatchID: uuid.MustParse(f[3]), Previous: parseMark(t, f[4], f[5]),
			})
		case "settled":
			settled[uuid.MustParse(f[1])] = true
		default:
			require.Fail(t, "the child failed", lines.Text())
		}
	}
	_ = cmd.Wait() // killed
	require.NotNil(t, kill, "the child confirmed something")
	kill.Stop()
	return taken, settled
}

func parseMark(t *testing.T, epoch, sequence string) batch.Mark {
	t.Helper()
	n, err := strconv.ParseUint(sequence, 10, 64)
	require.NoError(t, err)
	return batch.Mark{Epoch: uuid.MustParse(epoch), Sequence: n}
}

func TestKilledProcessLosesNoConfirmedBatchAndLeavesNoGap(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	settled := map[uuid.UUID]bool{}
	confirmed := map[uuid.UUID]batch.Mark{}
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	epochs := map[uuid.UUID]bool{}
	for range rounds {
		taken, done := killed(t, dir, largeMode, time.Duration(rand.IntN(60_000))*time.Microsecond)
		for _, s := range taken {
			confirmed[s.BatchID] = s.Mark
			epochs[s.Epoch] = true
		}
		for id := range done {
			settled[id] = true
		}
	}

	s := open(t, Config{Dir: dir})
	var read []*Record
	for {
		r, ok, err := s.Oldest()
		require.NoError(t, err)
		if !ok {
			break
		}
		read = append(read, r)
		require.NoError(t, s.Accepted(r, Answer{Rows: 1}))
	}
	accepted, err := ReadAccepted(dir)
	require.NoError(t, err)
	have := map[uuid.UUID]batch.Mark{}
	for _, a := range accepted {
		require.NotContains(t, have, a.BatchID, "settled once")
		have[a.BatchID] = a.Mark
	}
	for id, mark := range confirmed {
		require.Equal(t, mark, have[id], "a confirmed batch is there under its number")
	}
	for id := range settled {
		for _, r := range read {
			require.NotEqual(t, id, r.BatchID, "a settled batch does not come back")
		}
	}
	// accepted is in the order of numbering: no number is missing or used
	// twice, and each later epoch names the end of the one before.
	var last batch.Mark
	for _, a := range accepted {
		if a.Epoch == last.Epoch {
			require.Equal(t, last.Sequence+1, a.Sequence)
		} else {
			require.Equal(t, uint64(1), a.Sequence)
		}
		last = a.Mark
	}
	t.Logf("%d rounds, %d batches confirmed, %d there, %d epochs", rounds, len(confirmed), len(have), len(epochs))
}
