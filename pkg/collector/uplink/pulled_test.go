package uplink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/collector/internal/farend"
	"pganalytics/pkg/policy"
	"pganalytics/pkg/policy/pulled"
)

const patience = 60 * time.Second

// pulling is a collector with a puller whose work is watched.
type pulling struct {
	*collector
	t       *testing.T
	backend *farend.Backend

	mu       sync.Mutex
	applied  []policy.Document
	resent   [][]pulled.Range
	resendOK bool
}

func newPulling(t *testing.T) *pulling {
	b := farend.New(t, nil, farend.OK)
	return &pulling{collector: enrolled(t, b), t: t, backend: b, resendOK: true}
}

// puller makes one as at a start of the program.
func (p *pulling) puller() *Puller {
	p.t.Helper()
	cat, err := catalogue.Default()
	require.NoError(p.t, err)
	cfg := PullerConfig{
		File: filepath.Join(p.dir, PulledName), CheckIn: time.Second,
		Apply: func(d policy.Document) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.applied = append(p.applied, d)
		},
		Resend: func(_ context.Context, ranges []pulled.Range) (int, int, error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.resent = append(p.resent, ranges)
			if !p.resendOK {
				return 0, 0, errors.New("the spool is not readable")
			}
			return 2, 3, nil
		},
	}
	return NewPuller(cfg, p.client, cat, slog.New(slog.DiscardHandler))
}

// run runs a puller until the test ends or the function returned is called.
func (p *pulling) run() (stop func()) {
	p.t.Helper()
	puller := p.puller()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- puller.Run(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); require.NoError(p.t, <-done) })
	p.t.Cleanup(stop)
	return stop
}

func (p *pulling) offer(version int64, document string, resend *pulled.Resend) {
	p.t.Helper()
	body, err := json.Marshal(pulled.Answer{CollectorID: p.backend.ID, Version: version, Document: document, Resend: resend})
	require.NoError(p.t, err)
	tag := fmt.Sprintf(`"%d-%v"`, version, resend != nil)
	p.backend.Configure(farend.Answer{Status: http.StatusOK, Body: string(body), Headers: map[string]string{"ETag": tag}})
	p.client.next.tell(version, 0)
}

func (p *pulling) docs() []policy.Document {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]policy.Document(nil), p.applied...)
}

// said returns what was told last.
func (p *pulling) said() url.Values {
	configs := p.backend.Seen().Configs
	if len(configs) == 0 {
		return nil
	}
	values, err := url.ParseQuery(configs[len(configs)-1].Query)
	require.NoError(p.t, err)
	return values
}

func (p *pulling) eventually(ok func() bool) {
	p.t.Helper()
	require.Eventually(p.t, ok, patience, 5*time.Millisecond)
}

func (p *pulling) looks(l look) float64 {
	return testutil.ToFloat64(p.client.metrics.configs.WithLabelValues(string(l)))
}

func TestANewConfigurationIsAppliedKeptAndTold(t *testing.T) {
	t.Parallel()
	p := newPulling(t)
	stop := p.run()
	p.eventually(func() bool { return p.said().Get("applied") == "0" })
	p.offer(4, "families: {pg_locks: off, pg_of_tomorrow: on}", nil)
	p.eventually(func() bool { return p.said().Get("applied") == "4" })
	require.Contains(t, p.said().Get("detail"), "pg_of_tomorrow")
	require.Equal(t, map[string]policy.Setting{"pg_locks": {Off: true}, "pg_of_tomorrow": {}}, p.docs()[0].Families)
	p.eventually(func() bool { return p.looks(unchanged) > 0 })
	stop()

	info, err := os.Stat(filepath.Join(p.dir, PulledName))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	p.backend.Configure(farend.Refusal(http.StatusServiceUnavailable, "unavailable"))
	again := p.puller()
	require.Equal(t, p.docs()[0], again.Document(), "a start begins with the last good one, the backend being away")
	require.EqualValues(t, 4, again.state.Applied)
}

func TestAFaultyConfigurationIsRefusedAndTheOneBeforeStays(t *testing.T) {
	t.Parallel()
	p := newPulling(t)
	stop := p.run()
	p.offer(1, "preset: minimal", nil)
	p.eventually(func() bool { return p.said().Get("applied") == "1" })
	p.offer(2, "preset: minimal\nconninfo: host=elsewhere\nfamilies: {pg_locks: {sql: drop}}", nil)
	p.eventually(func() bool { return p.said().Get("refused") == "2" })
	said := p.said()
	require.Equal(t, "1", said.Get("applied"))
	require.Contains(t, said.Get("detail"), `configuration 2:2: the document has no key "conninfo"`)
	require.Contains(t, said.Get("detail"), `configuration 2:3: family pg_locks has no key "sql"`)
	require.Len(t, p.docs(), 1)
	require.InDelta(t, 1, p.looks(spoilt), 0)
	stop()
	require.Equal(t, catalogue.Minimal, p.puller().Document().Preset)

	p.run()
	p.offer(3, "", nil)
	p.eventually(func() bool { return p.said().Get("applied") == "3" })
	require.Empty(t, p.said().Get("refused"))
	require.Equal(t, policy.Document{}, p.docs()[1], "taken back: the own file alone counts")
}

func TestAGatewayThatIsBehindChangesNothing(t *testing.T) {
	t.Parallel()
	p := newPulling(t)
	p.run()
	p.offer(5, "preset: minimal", nil)
	p.eventually(func() bool { return p.said().Get("applied") == "5" })
	p.offer(4, "preset: exhaustive", nil)
	p.client.next.tell(6, 0) // and another gateway is ahead
	p.eventually(func() bool { return p.looks(stale) > 0 })
	p.backend.Configure(farend.Refusal(http.StatusNotFound, "no_config"))
	p.client.next.tell(6, 0)
	p.eventually(func() bool { return p.looks(none) > 0 })
	require.Len(t, p.docs(), 1)
	require.Equal(t, "5", p.said().Get("applied"))
}

func TestABackendThatIsAwayOrStrangeLeavesTheConfiguration(t *testing.T) {
	t.Parallel()
	p := newPulling(t)
	stop := p.run()
	p.offer(1, "preset: minimal", nil)
	p.eventually(func() bool { return p.said().Get("applied") == "1" })
	foreign, err := json.Marshal(pulled.Answer{CollectorID: uuid.New(), Version: 9, Document: "preset: exhaustive"})
	require.NoError(t, err)
	for i, a := range []farend.Answer{
		farend.Refusal(http.StatusServiceUnavailable, "unavailable"), farend.Refusal(http.StatusForbidden, "forbidden"),
		{Status: http.StatusOK, Body: "<html>"}, {Status: http.StatusOK, Body: string(foreign)}, {Status: http.StatusNotFound},
	} {
		before := p.looks(failed)
		p.backend.Configure(a)
		p.client.next.tell(int64(10+i), 0)
		p.eventually(func() bool { return p.looks(failed) > before })
	}
	require.Len(t, p.docs(), 1)
	p.offer(20, "preset: standard", nil)
	p.eventually(func() bool { return p.said().Get("applied") == "20" })
	stop()

	// What lies on disk is another's, or spoilt: it is not used, and pulled anew.
	file := filepath.Join(p.dir, PulledName)
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	for _, spoil := range []string{
		strings.ReplaceAll(string(data), p.backend.ID.String(), uuid.NewString()), string(data[:len(data)/2]),
		strings.ReplaceAll(string(data), "standard", "no preset"),
	} {
		require.NotEqual(t, string(data), spoil)
		require.NoError(t, os.WriteFile(file, []byte(spoil), 0o600))
		require.Equal(t, policy.Document{}, p.puller().Document())
	}
	stop = p.run()
	p.eventually(func() bool { return len(p.docs()) == 3 })
	stop()
}

func TestARequestToResendIsDoneOnceAndTold(t *testing.T) {
	t.Parallel()
	p := newPulling(t)
	p.resendOK = false
	stop := p.run()
	request := &pulled.Resend{ID: uuid.New(), Ranges: []pulled.Range{{Epoch: uuid.New(), First: 3, Last: 7}}}
	p.offer(1, "{}", request)
	resends := func() int { p.mu.Lock(); defer p.mu.Unlock(); return len(p.resent) }
	p.eventually(func() bool { return resends() > 0 })
	p.mu.Lock()
	p.resendOK = true
	p.mu.Unlock()
	p.client.next.tell(2, 0)
	p.eventually(func() bool { return p.said().Get("resent") == request.ID.String() })
	require.Equal(t, "2", p.said().Get("found"))
	require.Equal(t, "3", p.said().Get("missing"))
	stop()
	require.Equal(t, request.Ranges, p.resent[0])
	done := resends()

	p.run() // and not once more after a start
	seen := len(p.backend.Seen().Configs)
	p.eventually(func() bool { return len(p.backend.Seen().Configs) > seen })
	require.Equal(t, request.ID.String(), p.said().Get("resent"))
	require.Equal(t, done, resends())
}

func TestAnAnswerToAPushTellsOfTheNextConfiguration(t *testing.T) {
	t.Parallel()
	p := newPulling(t)
	p.backend.Answer(farend.Answer{
		Status: http.StatusAccepted, Body: `{"status":"accepted","rows_accepted":1,"next_config_version":8,"next_check_in_seconds":7}`,
	})
	p.put(t, "batch")
	p.push(t)
	version, check := p.client.next.read()
	require.EqualValues(t, 8, version)
	require.Equal(t, 7*time.Second, check)
	all := func(int64) bool { return true }
	require.False(t, p.client.next.wait(canceled(), all))
	require.True(t, p.client.next.wait(t.Context(), func(version int64) bool { return version < 8 }))

	// Told while it waits for the minute to be over.
	p.client.next.tell(8, time.Hour)
	done := make(chan bool, 1)
	go func() { done <- p.client.next.wait(t.Context(), all) }()
	p.client.next.tell(8, 10*time.Millisecond)
	require.True(t, <-done)
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
