package uplink

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/collector/internal/farend"
	"pganalytics/pkg/collector/spool"
)

// stranger is a problem document of another one's gateway.
func stranger(status int) farend.Answer {
	return farend.Answer{
		Status: status, Body: fmt.Sprintf(`{"type":"https://example.org/probs/x","status":%d,"code":"invalid_json"}`, status),
		Headers: map[string]string{"Content-Type": "application/problem+json"},
	}
}

// What stands between collector and gateway may answer anything. Only the
// gateway's own word gives a batch up or counts it as sent.
func TestOnlyTheGatewaysWordMovesABatch(t *testing.T) {
	t.Parallel()
	html := func(status int) farend.Answer {
		return farend.Answer{Status: status, Body: "<html>no</html>", Headers: map[string]string{"Content-Type": "text/html"}}
	}
	redirect := func(status int) farend.Answer {
		return farend.Answer{Status: status, Headers: map[string]string{"Location": "https://127.0.0.1:1/login"}}
	}
	held := map[string]farend.Answer{
		"html 202": html(http.StatusAccepted), "html 200": html(http.StatusOK), "empty 202": {Status: http.StatusAccepted},
		"json 202":     {Status: http.StatusAccepted, Body: `{"status":"ok"}`},
		"not problem":  {Status: http.StatusBadRequest, Body: farend.Refusal(400, "invalid_json").Body, Headers: map[string]string{"Content-Type": "application/json"}},
		"redirect 302": redirect(http.StatusFound), "redirect 307": redirect(http.StatusTemporaryRedirect), "redirect 308": redirect(http.StatusPermanentRedirect),
		"conflict": farend.Refusal(http.StatusConflict, "conflict"), "unauthenticated": farend.Refusal(http.StatusUnauthorized, "collector_unknown"),
		"proxy wants credentials": html(http.StatusProxyAuthRequired),
	}
	for _, status := range []int{400, 401, 403, 413, 422, 429, 500, 502, 503, 504} {
		held[fmt.Sprintf("html %d", status)] = html(status)
		held[fmt.Sprintf("stranger %d", status)] = stranger(status)
	}
	for name, answer := range held {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := farend.New(t, nil, answer, answer, farend.OK)
			c := enrolled(t, b)
			c.put(t, "one", "two")
			c.push(t)
			got := bodies(b)
			require.Equal(t, []string{"one", "two"}, slices.Compact(got), "in order, unchanged")
			require.GreaterOrEqual(t, len(got), 4)
			require.InDelta(t, 2, c.pushes(accepted), 0)
			require.Zero(t, c.pushes(refused))
			require.Zero(t, c.spool.Stats().DeadLetters)
		})
	}
}

func TestPausesAreSpread(t *testing.T) {
	t.Parallel()
	cfg := PusherConfig{}
	cfg.setDefaults()
	for _, c := range []struct {
		failures   int
		retryAfter time.Duration
		from, to   time.Duration
	}{
		{0, 0, 250 * time.Millisecond, 500 * time.Millisecond},
		{3, 0, 2 * time.Second, 4 * time.Second},
		{7, 0, 30 * time.Second, time.Minute},
		{1000, 0, 30 * time.Second, time.Minute},
		{0, 5 * time.Second, 5 * time.Second, 7500 * time.Millisecond},
		{1, time.Hour, time.Hour, time.Hour + 30*time.Second},
	} {
		parts := map[time.Duration]int{} // tenths of the range
		for range 2000 {
			pause := cfg.backoff(c.failures, c.retryAfter)
			require.GreaterOrEqual(t, pause, c.from)
			require.LessOrEqual(t, pause, c.to)
			parts[min(9, (pause-c.from)*10/(c.to-c.from))]++
		}
		for part := range time.Duration(10) {
			require.Greater(t, parts[part], 100, "%d failures, told %s: part %d", c.failures, c.retryAfter, part)
		}
	}
	var sum time.Duration
	different := map[time.Duration]bool{}
	for range 2000 {
		pause := cfg.spacing()
		sum += pause
		different[pause] = true
	}
	require.InDelta(t, 20, 2000/sum.Seconds(), 1)
	require.Greater(t, len(different), 1000)
}

// away cuts the way to the backend; what it returns mends it.
func (c *collector) away() (back func()) {
	c.client.mu.Lock()
	defer c.client.mu.Unlock()
	url := c.client.id.CollectorURL
	id := c.client.id.clone()
	id.CollectorURL = "https://127.0.0.1:1"
	c.client.use(id)
	return func() {
		c.client.mu.Lock()
		defer c.client.mu.Unlock()
		id := c.client.id.clone()
		id.CollectorURL = url
		c.client.use(id)
	}
}

// Ten minutes without a network, a batch each second.
func TestALongOutageIsDrainedInOrderWithoutLossOrRepeat(t *testing.T) {
	t.Parallel()
	const batches = 600
	b := farend.New(t, nil, farend.OK)
	c := enrolled(t, b)
	c.pusher.cfg.MaxRate = 2000
	back := c.away()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.pusher.Run(ctx) }()
	var want []string
	for i := range batches {
		want = append(want, fmt.Sprintf("batch %d", i))
		c.put(t, want[i])
	}
	require.Eventually(t, func() bool { return c.pushes(network) >= 3 }, time.Minute, time.Millisecond)
	require.Equal(t, batches, c.spool.Stats().Unsent)
	require.NotNil(t, c.pusher.State().Trouble)
	back()
	require.Eventually(t, func() bool { return c.spool.Stats().Unsent == 0 }, time.Minute, time.Millisecond)
	cancel()
	require.NoError(t, <-done)
	require.Equal(t, want, bodies(b))
	require.Nil(t, c.pusher.State().Trouble)
	accepted, err := spool.ReadAccepted(c.dir + "/spool")
	require.NoError(t, err)
	require.Len(t, accepted, batches)
}

func TestABacklogIsDrainedNoFasterThanItMay(t *testing.T) {
	t.Parallel()
	b := farend.New(t, nil, farend.OK)
	c := enrolled(t, b)
	c.pusher.cfg.MaxRate = 50
	for i := range 21 {
		c.put(t, fmt.Sprint(i))
	}
	began := time.Now()
	c.push(t)
	require.GreaterOrEqual(t, time.Since(began), 20*10*time.Millisecond, "half the mean pause at least between each two")
	require.Len(t, bodies(b), 21)
}

func TestWhatPeopleHaveToDoIsSaid(t *testing.T) {
	t.Parallel()
	for code, status := range map[string]int{
		"collector_locked": 403, "collector_disabled": 403, "certificate_revoked": 401, "collector_unknown": 401,
		"clock_skew": 422, "quarantined": 429,
	} {
		b := farend.New(t, nil, farend.Refusal(status, code))
		c := enrolled(t, b)
		var log strings.Builder
		c.pusher.log = textLog(&log)
		c.pusher.cfg.MinBackoff, c.pusher.cfg.MaxBackoff = time.Hour, time.Hour
		c.put(t, "one")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.pusher.Run(ctx) }()
		require.Eventually(t, func() bool { return c.pusher.State().Trouble != nil }, time.Minute, time.Millisecond)
		trouble := c.pusher.State().Trouble
		c.pusher.cfg.Grace = time.Millisecond
		cancel()
		require.NoError(t, <-done)
		require.Equal(t, code, trouble.Code)
		require.Equal(t, advice[code], trouble.Do)
		require.NotEmpty(t, trouble.Do)
		require.Contains(t, log.String(), "level=ERROR")
		require.Contains(t, log.String(), trouble.Do[:20])
	}
}
