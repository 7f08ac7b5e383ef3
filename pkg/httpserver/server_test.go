package httpserver_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/httpserver"
)

func newRegistry() *prometheus.Registry { return prometheus.NewRegistry() }

func countLines(log, part string) int         { return strings.Count(log, part) }
func containsLine(log, part string) bool      { return strings.Contains(log, part) }
func dial(t *testing.T, b *bundle) net.Conn   { t.Helper(); return dialTLS(t, b, nil) }
func readAll(r *http.Request) ([]byte, error) { return io.ReadAll(r.Body) }

func dialTLS(t *testing.T, b *bundle, config *tls.Config) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", b.Addr().String())
	require.NoError(t, err)
	if config != nil {
		conn = tls.Client(conn, config)
	}
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	return conn
}

func TestStopLetsRequestsInFlightFinish(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "ca")
	for name, config := range map[string]*tls.Config{"HTTP/1": nil, "HTTP/2": httpserver.UserTLS(ca.load(t))} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			entered, release := make(chan struct{}), make(chan struct{})
			b := serve(t, httpserver.Handle(func(w http.ResponseWriter, r *http.Request) error {
				if r.URL.Path == "/slow" {
					close(entered)
					<-release
					if err := r.Context().Err(); err != nil {
						return fmt.Errorf("the request was cancelled by the stop: %w", err)
					}
				}
				return httpserver.WriteJSON(w, http.StatusOK, "finished")
			}), config, nil)
			c := client(t, &tls.Config{RootCAs: ca.pool()})
			_, _ = do(t, c, http.MethodGet, b.URL(), nil) // leaves an idle connection behind

			answer := make(chan string, 1)
			go func() {
				resp, err := c.Get(b.URL() + "/slow")
				if err != nil {
					answer <- err.Error()
					return
				}
				body, _ := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				answer <- string(body)
			}()
			<-entered
			b.stop()
			require.Eventually(t, func() bool {
				conn, err := net.Dial("tcp", b.Addr().String())
				if err == nil {
					_ = conn.Close()
				}
				return err != nil
			}, 10*time.Second, 5*time.Millisecond, "new connections are refused")
			select {
			case err := <-b.stopped:
				t.Fatal("stopped with a request in flight: ", err)
			default:
			}
			close(release)
			require.JSONEq(t, `"finished"`, <-answer)
			require.NoError(t, <-b.stopped)
		})
	}
}

func TestDrainEndsAtItsDeadlineAndSaysSo(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}), make(chan struct{})
	b := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(entered)
		<-release
	}), nil, func(c *httpserver.Config) { c.DrainTimeout = 50 * time.Millisecond })
	failed := make(chan error, 1)
	go func() {
		resp, err := http.DefaultClient.Get(b.URL())
		if err == nil {
			_ = resp.Body.Close()
		}
		failed <- err
	}()
	<-entered
	b.stop()
	require.ErrorContains(t, <-b.stopped, "still in flight after 50ms")
	require.Error(t, <-failed)
	close(release)
}

func TestHeaderThatDoesNotArriveEndsTheConnection(t *testing.T) {
	t.Parallel()
	b := serve(t, hello, nil, func(c *httpserver.Config) { c.HeaderTimeout = 100 * time.Millisecond })
	conn := dial(t, b)
	_, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
	require.NoError(t, err)
	_, err = io.ReadAll(conn)
	require.NoError(t, err, "the server closes the connection before the test's own deadline")
}

func TestBodyThatStallsOrTricklesIsRefusedAsRetryable(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "ca")
	handler := httpserver.Handle(func(w http.ResponseWriter, r *http.Request) error {
		if _, err := readAll(r); err != nil {
			return fmt.Errorf("read: %w", err)
		}
		return httpserver.WriteJSON(w, http.StatusOK, "complete")
	})
	for name, tlsConfig := range map[string]*tls.Config{"HTTP/1": nil, "HTTP/2": httpserver.UserTLS(ca.load(t))} {
		for _, trickle := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s trickle %t", name, trickle), func(t *testing.T) {
				t.Parallel()
				b := serve(t, handler, tlsConfig, func(c *httpserver.Config) {
					c.StallTimeout = 200 * time.Millisecond
					if trickle {
						c.BodyTimeout = 1500 * time.Millisecond
					}
				})
				body, feed := io.Pipe()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				fed := make(chan struct{})
				go func() {
					defer close(fed)
					_, err := io.WriteString(feed, "begin")
					for err == nil && trickle && ctx.Err() == nil {
						time.Sleep(20 * time.Millisecond) // the pace of the trickle
						_, err = io.WriteString(feed, ".")
					}
				}()
				began := time.Now()
				resp, text := do(t, client(t, &tls.Config{RootCAs: ca.pool()}), http.MethodPost, b.URL(), body)
				require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
				require.Contains(t, text, `"code":"body_timeout"`)
				require.NotEmpty(t, resp.Header.Get("Retry-After"))
				require.Less(t, time.Since(began), 10*time.Second)
				if trickle {
					require.Greater(t, time.Since(began), time.Second, "progress keeps it alive until the body's own limit")
				}
				cancel()
				_ = body.Close()
				<-fed
			})
		}
	}
}

func TestBodyDeadlineDoesNotCancelTheWorkThatFollows(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "ca")
	for name, tlsConfig := range map[string]*tls.Config{"HTTP/1": nil, "HTTP/2": httpserver.UserTLS(ca.load(t))} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := serve(t, httpserver.Handle(func(w http.ResponseWriter, r *http.Request) error {
				if _, err := readAll(r); err != nil {
					return err
				}
				time.Sleep(50 * time.Millisecond) // work
				if _, err := readAll(r); err != nil {
					return err // a second look at the end
				}
				select {
				case <-r.Context().Done():
					return fmt.Errorf("cancelled: %w", r.Context().Err())
				case <-time.After(500 * time.Millisecond):
				}
				return httpserver.WriteJSON(w, http.StatusOK, "done")
			}), tlsConfig, func(c *httpserver.Config) { c.StallTimeout = 100 * time.Millisecond })
			c := client(t, &tls.Config{RootCAs: ca.pool()})
			for range 2 { // the connection stays usable
				resp, _ := do(t, c, http.MethodPost, b.URL(), strings.NewReader("body"))
				require.Equal(t, http.StatusOK, resp.StatusCode)
			}
		})
	}
}

func TestBodyLeftUnreadDoesNotHoldTheConnection(t *testing.T) {
	t.Parallel()
	b := serve(t, httpserver.Handle(func(http.ResponseWriter, *http.Request) error {
		return fault.New(fault.Forbidden, "forbidden", "No.")
	}), nil, func(c *httpserver.Config) { c.StallTimeout = 100 * time.Millisecond })
	conn := dial(t, b)
	_, err := io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nfirst")
	require.NoError(t, err)
	answer, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.Contains(t, string(answer), "403 Forbidden")
}

func TestBodyThatEndsEarlyIsRefusedAsRetryable(t *testing.T) {
	t.Parallel()
	b := serve(t, httpserver.Handle(func(_ http.ResponseWriter, r *http.Request) error {
		_, err := readAll(r)
		return err
	}), nil, nil)
	conn := dial(t, b)
	_, err := io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nfirst")
	require.NoError(t, err)
	require.NoError(t, conn.(*net.TCPConn).CloseWrite())
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
	answer, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Contains(t, string(answer), `"code":"body_incomplete"`)
}

func TestPanicIsAProblemWithoutDetailsAndTheProcessLives(t *testing.T) {
	t.Parallel()
	b := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/late" {
			_, _ = io.WriteString(w, "half an answ")
		}
		panic("secret inner state")
	}), nil, nil)
	c := client(t, nil)
	resp, body := do(t, c, http.MethodGet, b.URL(), nil)
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
	require.Contains(t, body, `"code":"internal"`)
	require.NotContains(t, body, "secret")
	require.Contains(t, b.log.String(), "secret inner state")
	require.Contains(t, b.log.String(), "server_test.go", "the stack is in the log")

	resp, err := c.Get(b.URL() + "/late")
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		_ = resp.Body.Close()
	}
	require.Error(t, err, "half an answer must not look whole")
}

func TestAccessLogHasOneLinePerRequestAndNoSecrets(t *testing.T) {
	t.Parallel()
	router := httpserver.NewRouter()
	router.Post("/things/{id}", httpserver.Handle(func(w http.ResponseWriter, r *http.Request) error {
		if _, err := readAll(r); err != nil {
			return err
		}
		return &fault.Error{Class: fault.Unavailable, Code: "unavailable", Err: fmt.Errorf("inner cause")}
	}))
	b := serve(t, router, nil, nil)
	c := client(t, nil)
	_, body := do(t, c, http.MethodPost, b.URL()+"/things/7?token=hunter2", strings.NewReader("12345"),
		"Authorization", "Bearer hunter2", "X-Request-Id", "from-the-sender.1")
	require.NotContains(t, body, "inner cause")
	_, _ = do(t, c, http.MethodGet, b.URL()+"/nothing", nil)

	var line string
	require.Eventually(t, func() bool {
		for l := range strings.Lines(b.log.String()) {
			if strings.Contains(l, `"msg":"request"`) && strings.Contains(l, "things") {
				line = l
			}
		}
		return line != "" && countLines(b.log.String(), `"msg":"request"`) == 2
	}, 10*time.Second, 5*time.Millisecond)
	for _, want := range []string{
		`"level":"WARN"`, `"listener":"test"`, `"request_id":"from-the-sender.1"`, `"method":"POST"`, `"route":"/things/{id}"`,
		`"path":"/things/7"`, `"status":503`, `"bytes_in":5`, `"code":"unavailable"`, "inner cause",
	} {
		require.Contains(t, line, want)
	}
	require.NotContains(t, b.log.String(), "hunter2")
	require.NoError(t, testutil.GatherAndCompare(b.reg, strings.NewReader(`
# HELP pganalytics_httpserver_requests_total Requests answered. status is the class of the status code, or client_gone when nobody was left to read it.
# TYPE pganalytics_httpserver_requests_total counter
pganalytics_httpserver_requests_total{listener="test",method="GET",route="unmatched",status="4xx"} 1
pganalytics_httpserver_requests_total{listener="test",method="POST",route="/things/{id}",status="5xx"} 1
`), "pganalytics_httpserver_requests_total"))
}

func TestRequestIdIsTakenOverOnlyIfHarmless(t *testing.T) {
	t.Parallel()
	b := serve(t, hello, nil, nil)
	for id, kept := range map[string]bool{
		"abc-DEF_1.2": true, "": false, "has space": false, `quote"`: false, strings.Repeat("x", 65): false,
	} {
		resp, _ := do(t, client(t, nil), http.MethodGet, b.URL(), nil, "X-Request-Id", id)
		got := resp.Header.Get("X-Request-Id")
		require.NotEmpty(t, got)
		require.Equal(t, kept, got == id, "%q", id)
	}
}

func TestClientThatLeftIsNotOurFailure(t *testing.T) {
	t.Parallel()
	entered := make(chan struct{})
	b := serve(t, httpserver.Handle(func(_ http.ResponseWriter, r *http.Request) error {
		close(entered)
		<-r.Context().Done()
		return fmt.Errorf("wait: %w", r.Context().Err())
	}), nil, nil)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-entered; cancel() }()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.URL(), nil)
	require.NoError(t, err)
	_, err = client(t, nil).Do(req)
	require.ErrorIs(t, err, context.Canceled)
	require.Eventually(t, func() bool { return containsLine(b.log.String(), `"client_gone":true`) }, 10*time.Second, 5*time.Millisecond)
	require.Contains(t, b.log.String(), `"level":"INFO","msg":"request"`)
	n, err := testutil.GatherAndCount(b.reg, "pganalytics_httpserver_requests_total")
	require.NoError(t, err)
	require.Equal(t, 1, n)
}
