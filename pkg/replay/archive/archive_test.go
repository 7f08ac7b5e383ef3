package archive

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
)

var limits = Limits{SegmentBytes: 500, FetchBytes: 300}

// want is the range of the tests' exports.
var want = Index{Incarnation: "then", Scope: "all", First: 1, Last: 20}

// message is one with a payload that tells which it is.
func message(n uint64) batch.Delivery {
	return batch.Delivery{
		Position: batch.Position{Sequence: n, StoredAt: time.Date(2026, 1, 2, 3, 4, 5, int(n), time.UTC)},
		Subject:  "pganalytics.batch.x",
		Payload:  fmt.Appendf(nil, "the payload of message %d %d", n, n*n),
	}
}

func messages(from, to uint64) []batch.Delivery {
	var all []batch.Delivery
	for n := from; n <= to; n++ {
		all = append(all, message(n))
	}
	return all
}

// tape is a source that breaks after some messages, if it is told to.
type tape struct {
	left  []batch.Delivery
	after int // 0: never
}

var errTorn = errors.New("torn")

func (s *tape) Next(context.Context, int, int) ([]batch.Delivery, error) {
	if s.after == 1 {
		return nil, errTorn
	}
	s.after--
	n := min(1, len(s.left))
	some := s.left[:n]
	s.left = s.left[n:]
	return some, nil
}

func export(t *testing.T, dir string, all []batch.Delivery) {
	t.Helper()
	x, err := Open(dir, want)
	require.NoError(t, err)
	require.NoError(t, Export(t.Context(), dir, x, &tape{left: all}, limits))
}

// readAll reads an archive a few messages at a time, leaving out what is
// damaged.
func readAll(t *testing.T, dir string) (all []batch.Delivery, damages []*DamageError, missing uint64) {
	t.Helper()
	r, err := NewReader(dir, func(d *DamageError) { damages = append(damages, d) })
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Close()) }()
	for {
		some, err := r.Next(t.Context(), 3, 60)
		require.NoError(t, err)
		if len(some) == 0 {
			return all, damages, r.Missing()
		}
		all = append(all, some...)
	}
}

func requireSame(t *testing.T, want, got []batch.Delivery) {
	t.Helper()
	require.Len(t, got, len(want))
	for i := range want {
		require.Equal(t, want[i].Sequence, got[i].Sequence)
		require.Equal(t, want[i].StoredAt, got[i].StoredAt)
		require.Equal(t, want[i].Subject, got[i].Subject)
		require.Equal(t, want[i].Payload, got[i].Payload)
		require.Equal(t, "then", got[i].Incarnation)
		require.NoError(t, got[i].Ack(t.Context()))
		require.NoError(t, got[i].Extend())
	}
}

func segments(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
	require.NoError(t, err)
	return files
}

func TestWhatWasExportedIsReadBackByteForByte(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	export(t, dir, messages(1, 20))
	all, damages, missing := readAll(t, dir)
	requireSame(t, messages(1, 20), all)
	require.Empty(t, damages)
	require.Zero(t, missing)
	require.Greater(t, len(segments(t, dir)), 2)
	for _, file := range segments(t, dir) {
		info, err := os.Stat(file)
		require.NoError(t, err)
		require.Less(t, info.Size(), limits.SegmentBytes+200, "a segment ends with the message that reaches the limit")
	}
}

func TestALimitedReaderReadsItsPart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	export(t, dir, append(messages(2, 9), messages(13, 18)...))
	for from := uint64(0); from <= 21; from++ {
		for to := from; to <= 21; to++ {
			r, err := NewReader(dir, nil)
			require.NoError(t, err)
			r.Limit(from, to)
			var want, got []batch.Delivery
			for _, d := range append(messages(2, 9), messages(13, 18)...) {
				if from <= d.Sequence && d.Sequence <= to {
					want = append(want, d)
				}
			}
			for {
				some, err := r.Next(t.Context(), 4, 1<<20)
				require.NoError(t, err)
				if len(some) == 0 {
					break
				}
				got = append(got, some...)
			}
			requireSame(t, want, got)
			asked := max(0, int(min(to, 20))-int(max(from, 1))+1)
			require.EqualValues(t, asked-len(want), r.Missing(), "from %d to %d", from, to)
			require.NoError(t, r.Close())
		}
	}
}

func TestWhatTheStreamLackedIsCountedAsMissing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	export(t, dir, append(messages(4, 8), messages(11, 18)...))
	x, err := ReadIndex(dir)
	require.NoError(t, err)
	require.EqualValues(t, 3+2+2, x.Missing())
	all, damages, missing := readAll(t, dir)
	require.Len(t, all, 13)
	require.Empty(t, damages)
	require.EqualValues(t, 7, missing)
}

func TestAnExportGoesOnAfterItsLastWholeSegment(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for torn := 2; ; torn++ { // each try ends after some messages
		x, err := Open(dir, want)
		require.NoError(t, err)
		err = Export(t.Context(), dir, x, &tape{left: messages(x.Next(), 20), after: torn}, limits)
		if err == nil {
			break
		}
		require.ErrorIs(t, err, errTorn)
		_, err = NewReader(dir, nil)
		require.ErrorContains(t, err, "did not come to its end")
	}
	all, damages, missing := readAll(t, dir)
	requireSame(t, messages(1, 20), all)
	require.Empty(t, damages)
	require.Zero(t, missing)
}

func TestADirectoryOfSomethingElseIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	export(t, dir, messages(1, 20))
	for _, other := range []Index{{Incarnation: "now", Scope: "all", First: 1}, {Incarnation: "then", Scope: "some", First: 1}} {
		_, err := Open(dir, other)
		require.ErrorContains(t, err, "holds something else already")
	}
	strange := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(strange, "notes.txt"), nil, 0o600))
	_, err := Open(strange, want)
	require.ErrorContains(t, err, "notes.txt")
}

func TestADamagedMessageIsNamedAndOnlyItIsLeftOut(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	export(t, dir, messages(1, 20))
	file := segments(t, dir)[1]
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	at := bytes.Index(data, message(8).Payload)
	require.Positive(t, at)
	data[at+3] ^= 1
	require.NoError(t, os.WriteFile(file, data, 0o600))

	all, damages, missing := readAll(t, dir)
	requireSame(t, append(messages(1, 7), messages(9, 20)...), all)
	require.Len(t, damages, 1)
	require.ErrorContains(t, damages[0], "message 8 in "+filepath.Base(file))
	require.EqualValues(t, 1, missing)

	r, err := NewReader(dir, nil)
	require.NoError(t, err)
	before, err := r.Next(t.Context(), 100, 1<<20)
	require.NoError(t, err)
	requireSame(t, messages(1, 7), before)
	for range 2 { // and it stays so
		_, err = r.Next(t.Context(), 100, 1<<20)
		var damage *DamageError
		require.ErrorAs(t, err, &damage)
	}
	require.NoError(t, r.Close())
}

func TestACutSegmentLosesItsRestAndNothingElse(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*testing.T, string){
		"cut in a record": func(t *testing.T, file string) {
			data, err := os.ReadFile(file)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(file, data[:bytes.Index(data, message(8).Payload)], 0o600))
		},
		"cut between records": func(t *testing.T, file string) {
			data, err := os.ReadFile(file)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(file, data[:bytes.Index(data, message(8).Payload)-headSize-fixedSize-len(message(8).Subject)], 0o600))
		},
		"a length out of bounds": func(t *testing.T, file string) {
			data, err := os.ReadFile(file)
			require.NoError(t, err)
			data[bytes.Index(data, message(8).Payload)-headSize-fixedSize-len(message(8).Subject)] = 0xff
			require.NoError(t, os.WriteFile(file, data, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			export(t, dir, messages(1, 20))
			x, err := ReadIndex(dir)
			require.NoError(t, err)
			cut := x.Segments[1]
			require.True(t, cut.First < 8 && 8 < cut.Last, "%+v", cut)
			spoil(t, filepath.Join(dir, cut.File))
			all, damages, missing := readAll(t, dir)
			requireSame(t, append(messages(1, 7), messages(cut.Last+1, 20)...), all)
			require.Len(t, damages, 1)
			require.ErrorContains(t, damages[0], fmt.Sprintf("messages among 8 to %d in %s", cut.Last, cut.File))
			require.Equal(t, cut.Last-7, missing)
		})
	}
}

func TestASegmentThatIsGoneOrSwappedIsNamed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	export(t, dir, messages(1, 20))
	files := segments(t, dir)
	require.NoError(t, os.Remove(files[0]))
	other, err := os.ReadFile(files[2])
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(files[1], other, 0o600))
	all, damages, _ := readAll(t, dir)
	x, err := ReadIndex(dir)
	require.NoError(t, err)
	requireSame(t, messages(x.Segments[2].First, 20), all)
	require.ErrorIs(t, damages[0], os.ErrNotExist)
	require.ErrorContains(t, damages[1], filepath.Base(files[1]))
}

func TestTheOldestBatchIsInTheIndex(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var all []batch.Delivery
	oldest := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	for n, age := range []time.Duration{time.Hour, 0, 2 * time.Hour} {
		b := &batch.Batch{CollectorID: uuid.New(), ID: uuid.New(), SentAt: oldest.Add(age), ReceivedAt: oldest}
		b.Seal()
		d := message(uint64(n) + 1)
		var err error
		d.Payload, err = b.Marshal()
		require.NoError(t, err)
		all = append(all, d)
	}
	export(t, dir, append(all, message(4)))
	x, err := ReadIndex(dir)
	require.NoError(t, err)
	require.Equal(t, oldest, x.OldestSent)
}

func FuzzReadRecord(f *testing.F) {
	for n := range uint64(3) {
		d := message(n)
		record, err := appendRecord(nil, &d)
		require.NoError(f, err)
		f.Add(record)
		f.Add(append(record, record[:10]...))
		record[len(record)-1] ^= 1
		f.Add(record)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bufio.NewReader(bytes.NewReader(data))
		for rest := data; ; {
			d, err := readRecord(r)
			if err == io.EOF { //nolint:errorlint // readRecord returns it as it is
				require.Empty(t, rest)
				return
			}
			if errors.Is(err, errDamaged) {
				rest = rest[headSize+int(uint32(rest[0])<<24|uint32(rest[1])<<16|uint32(rest[2])<<8|uint32(rest[3])):]
				continue
			}
			if err != nil {
				require.ErrorIs(t, err, errCut)
				return
			}
			again, err := appendRecord(nil, &d)
			require.NoError(t, err)
			require.Equal(t, rest[:len(again)], again, "what is accepted has one form")
			rest = rest[len(again):]
		}
	})
}

func FuzzParseIndex(f *testing.F) {
	f.Add([]byte(`{"version":1,"first":1,"last":9,"segments":[{"file":"1.segment","first":1,"last":9,"messages":9}],"complete":true}`))
	f.Add([]byte(`{"version":1,"first":1,"last":0}`))
	f.Add([]byte(`{"version":1,"first":1,"last":9,"segments":[{"file":"../1.segment","first":1,"last":9,"messages":9}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		x, err := parseIndex(data)
		if err != nil {
			return
		}
		require.LessOrEqual(t, x.Missing(), x.Last-x.First+1)
		require.True(t, x.Next() >= x.First && x.Next() <= x.Last+1)
		for _, s := range x.Segments {
			require.Equal(t, filepath.Base(s.File), s.File)
		}
	})
}
