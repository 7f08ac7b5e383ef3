package health

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// well returns facts of an installation with which nothing is wrong, although
// there is a bit of everything.
func well() Facts {
	fullIn, lastLoad := Span(3*time.Hour), Span(time.Second)
	return Facts{
		Serve: &Serve{Ready: true},
		Stream: &Stream{
			Batches: 1000, Bytes: 90, MaxBytes: 100, FirstSequence: 1, LastSequence: 1000, Window: Span(72 * time.Hour),
			Backlog: 10, Lag: Span(lagAbove - time.Second), AckPending: 10, Redelivered: 1, Kept: 79, Inflow: 1, FullIn: &fullIn, Copies: 3,
			Holds: []Hold{{Name: "replay-1", From: 5, To: 9, Age: Span(heldAbove)}},
		},
		Database:   &Database{Version: 170005, SizeBytes: 1, Ingesters: 1, LastLoad: &lastLoad},
		Collectors: &Collectors{Registered: 1, Active: 10, Disabled: 1},
	}
}

var cases = map[string]struct {
	change func(*Facts)
	wrong  []string // how each line begins, in order
}{
	"well":       {func(*Facts) {}, nil},
	"no serve":   {func(f *Facts) { f.Serve = nil }, nil},
	"nats away":  {func(f *Facts) { f.Stream, f.StreamError = nil, "refused" }, []string{"NATS does not answer: refused"}},
	"all away":   {func(f *Facts) { *f = Facts{StreamError: "a", DatabaseError: "b"} }, []string{"NATS does not answer: a", "the database does not answer: b"}},
	"read only":  {func(f *Facts) { f.Database.ReadOnly, f.Database.Ingesters = true, 0 }, []string{"the database takes no writes"}},
	"faults":     {func(f *Facts) { f.Stream.Faults = "max age" }, []string{"the streams are not set up as they must be: max age"}},
	"ingester":   {func(f *Facts) { f.Database.Ingesters = 0 }, []string{"no ingester"}},
	"lag":        {func(f *Facts) { f.Stream.Lag = Span(lagAbove) }, []string{"10 batches wait, the oldest for 5m0s"}},
	"replica":    {func(f *Facts) { f.Stream.Behind = []string{"n2", "n3"} }, []string{"not every NATS server has all of the stream: n2, n3"}},
	"unready":    {func(f *Facts) { f.Serve = &Serve{Detail: "nats"} }, []string{"pganalytics serve on this host is not ready: nats"}},
	"locked":     {func(f *Facts) { f.Collectors.Locked = 2 }, []string{"2 collectors are locked"}},
	"letters":    {func(f *Facts) { f.Stream.DeadLetters = 3 }, []string{"3 batches lie in the dead letters"}},
	"expiring":   {func(f *Facts) { f.Collectors.Expiring = 4 }, []string{"the certificates of 4 collectors"}},
	"offline":    {func(f *Facts) { f.Collectors.Offline = 5 }, []string{"5 collectors are offline"}},
	"held long":  {func(f *Facts) { f.Stream.Holds[0].Age++ }, []string{"hold replay-1"}},
	"full":       {func(f *Facts) { f.Stream.Kept = 80; f.Stream.Holds = nil }, []string{"the stream is 80% full with batches that are not stored"}},
	"full, held": {func(f *Facts) { f.Stream.Kept = 81 }, []string{"the stream is 81% full with batches that are not stored or held"}},
	"database away": {func(f *Facts) {
		f.Database, f.Collectors, f.DatabaseError = nil, nil, "refused"
		f.Stream.Lag = Span(time.Hour)
	}, []string{"the database does not answer: refused"}},
	"gap": {func(f *Facts) {
		f.Stream.Holds = []Hold{{Name: Gap, From: 7, To: 8, Age: Span(100 * time.Hour)}}
	}, []string{"the database went back in time: it may lack batches 7 to 8"}},
	"offline without ingesters": {func(f *Facts) { f.Collectors.Offline, f.Database.Ingesters = 10, 0 }, []string{"no ingester"}},
	"the urgent one first": {func(f *Facts) {
		f.Stream.DeadLetters, f.Collectors.Offline, f.Stream.Kept = 1, 1, 99
		f.Stream.Holds = append(f.Stream.Holds, Hold{Name: Gap, From: 1, To: 2})
	}, []string{"the database went back", "the stream is 99% full", "1 batches lie", "1 collectors are offline"}},
}

func TestAdviceFollowsFromTheFacts(t *testing.T) {
	t.Parallel()
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := well()
			c.change(&f)
			got := Advise(f)
			require.Len(t, got, len(c.wrong), "%v", got)
			for i, a := range got {
				require.True(t, strings.HasPrefix(a.Wrong, c.wrong[i]), "%q does not begin with %q", a.Wrong, c.wrong[i])
				require.NotContains(t, a.Wrong+a.Do+a.See, "\n")
			}
		})
	}
}

func TestEveryRuleIsTestedAndNamesASectionThatExists(t *testing.T) {
	t.Parallel()
	guide, err := os.ReadFile(filepath.Join("..", "..", "docs", "operations.md"))
	require.NoError(t, err)
	fired := make([]bool, len(rules))
	for _, c := range cases {
		f := well()
		c.change(&f)
		for i, rule := range rules {
			if a := rule(&f); a != nil {
				fired[i] = true
				require.Contains(t, string(guide), "\n## "+a.See+"\n")
			}
		}
	}
	for i := range fired {
		require.True(t, fired[i], "no case for rule %d", i)
	}
}

func TestASpanIsShortForPeopleAndSecondsForScripts(t *testing.T) {
	t.Parallel()
	for span, want := range map[time.Duration]string{
		1500 * time.Millisecond: "2s", 90 * time.Second: "1m30s", 100*time.Minute + time.Second: "1h40m",
		72*time.Hour + 20*time.Minute: "72h", 20 * time.Hour: "20h0m",
	} {
		require.Equal(t, want, Span(span).String())
	}
	out, err := json.Marshal(Span(90*time.Second + 900*time.Millisecond))
	require.NoError(t, err)
	require.Equal(t, "90", string(out))
}
