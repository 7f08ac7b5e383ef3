package collector

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/collector/internal/farend"
	"pganalytics/pkg/collector/uplink"
)

func (l *line) status() *Status {
	l.t.Helper()
	s, err := ReadStatus(l.cfg.StateDir, "")
	require.NoError(l.t, err)
	return s
}

func printed(t *testing.T, s *Status) string {
	t.Helper()
	var out bytes.Buffer
	require.NoError(t, s.Print(&out))
	return out.String()
}

func TestStatusShowsHowACollectorIsWhetherItRunsOrNot(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	require.Equal(t, "not running", l.status().State)
	require.Contains(t, printed(t, l.status()), "never ran")
	l.start()
	l.pushed(1)
	require.Eventually(t, func() bool {
		s := l.status()
		return s.State == "works" && len(s.Servers) == 1 && s.Servers[0].Up && !s.Uplink.AnsweredAt.IsZero()
	}, time.Minute, 50*time.Millisecond)
	s := l.status()
	require.Equal(t, l.far.ID, s.CollectorID)
	require.Equal(t, []ServerState{{Name: "db1", Up: true}}, s.Servers)
	require.Positive(t, s.Spool.LastAccepted.Sequence)
	require.WithinDuration(t, time.Now(), s.Spool.LastAccepted.At, time.Minute)
	require.Positive(t, s.Spool.MaxBytes)
	for _, want := range []string{"state", "works", "server db1", "up", "unsent", "last accepted"} {
		require.Contains(t, printed(t, s), want)
	}
	text, err := json.Marshal(s)
	require.NoError(t, err)
	require.Contains(t, string(text), `"state":"works"`)
	l.stop()
	require.Equal(t, "not running", l.status().State)
	require.Contains(t, printed(t, l.status()), "last heard of")
}

func TestStatusSaysWhatTheBackendSaysAndWhatToDo(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.far.Answer(farend.Refusal(http.StatusForbidden, "collector_locked"))
	l.start()
	require.Eventually(t, func() bool { return l.status().State == "locked" }, time.Minute, 50*time.Millisecond)
	s := l.status()
	require.Equal(t, uplink.Advice("collector_locked"), s.Do)
	require.Positive(t, s.Spool.Unsent)
	require.False(t, s.Spool.OldestAt.IsZero())
	require.Contains(t, printed(t, s), "pganalytics collectors unlock")
	l.cancel()
	require.NoError(t, <-l.done)
	require.Equal(t, "locked", l.status().State, "also when it does not run")
	require.Contains(t, printed(t, l.status()), "locked; not running")
}

// A collector that was killed has not said that it ends.
func TestAStatusThatIsOldIsOfACollectorThatIsGone(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	write := func(age time.Duration) {
		text, err := json.Marshal(told{WrittenAt: time.Now().Add(-age)})
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(l.cfg.StateDir, statusName), text, 0o600))
	}
	write(time.Second)
	require.True(t, l.status().Running)
	write(staleAfter + time.Second)
	require.False(t, l.status().Running)
}
