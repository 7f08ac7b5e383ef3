package daemon_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/daemon"
)

func get(t *testing.T, client *http.Client, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	resp, err := client.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(body)
}

func TestAdminTellsAliveReadyAndMetrics(t *testing.T) {
	t.Parallel()
	var broken atomic.Bool
	broken.Store(true)
	var logged strings.Builder
	admin, err := daemon.ListenAdmin(
		daemon.AdminConfig{Addr: "127.0.0.1:0", CheckTimeout: 50 * time.Millisecond},
		slog.New(slog.NewTextHandler(&logged, nil)),
		daemon.NewRegistry(daemon.Build{Version: "v1.2.3", Commit: "abc"}),
		daemon.Check{Name: "database", Ready: func(ctx context.Context) error {
			if broken.Load() {
				<-ctx.Done() // a check that hangs is a check that fails
				return ctx.Err()
			}
			return nil
		}},
		daemon.Check{Name: "stream", Ready: func(context.Context) error {
			if broken.Load() {
				return errors.New("secret inner cause")
			}
			return nil
		}},
		daemon.Check{Name: "snapshot", Ready: func(context.Context) error { return nil }},
	)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- daemon.Run(ctx, quiet(), time.Second, admin.Part()) }()
	client := &http.Client{Transport: &http.Transport{}}
	base := "http://" + admin.Addr().String()

	status, body := get(t, client, base+"/healthz")
	require.Equal(t, http.StatusOK, status)
	require.JSONEq(t, `{"status":"alive"}`, body)

	for range 3 {
		status, body = get(t, client, base+"/readyz")
		require.Equal(t, http.StatusServiceUnavailable, status)
		require.JSONEq(t, `{"status":"unready","failing":["database","stream"]}`, body)
	}
	broken.Store(false)
	status, body = get(t, client, base+"/readyz")
	require.Equal(t, http.StatusOK, status)
	require.JSONEq(t, `{"status":"ready"}`, body)

	status, body = get(t, client, base+"/metrics")
	require.Equal(t, http.StatusOK, status)
	for _, want := range []string{`pganalytics_build_info{commit="abc",goversion="go`, "go_goroutines", "process_open_fds"} {
		require.Contains(t, body, want)
	}
	status, _ = get(t, client, base+"/debug/pprof/goroutine?debug=1")
	require.Equal(t, http.StatusOK, status)

	client.CloseIdleConnections()
	cancel()
	require.NoError(t, <-done)
	require.Equal(t, 1, strings.Count(logged.String(), "not ready"), "logged once per change: %s", &logged)
	require.Contains(t, logged.String(), "secret inner cause")
	_, err = net.Dial("tcp", admin.Addr().String())
	require.Error(t, err, "the listener is closed")
}

func TestAdminAddressInUseIsKnownBeforeAnythingStarts(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = taken.Close() }()
	_, err = daemon.ListenAdmin(daemon.AdminConfig{Addr: taken.Addr().String()}, quiet(), daemon.NewRegistry(daemon.ThisBuild()))
	require.ErrorContains(t, err, taken.Addr().String())
}
