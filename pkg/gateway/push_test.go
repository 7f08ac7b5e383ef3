package gateway_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/bus"
	"pganalytics/pkg/bus/natsserver"
	"pganalytics/pkg/gateway"
	"pganalytics/pkg/identity"
	"pganalytics/pkg/identity/ca"
)

func gzipped(t testing.TB, body string) string {
	t.Helper()
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	_, err := io.WriteString(z, body)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	return buf.String()
}

func zstdded(t testing.TB, body string, options ...zstd.EOption) string {
	t.Helper()
	var buf bytes.Buffer
	z, err := zstd.NewWriter(&buf, options...)
	require.NoError(t, err)
	_, err = io.WriteString(z, body)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	return buf.String()
}

func TestAcceptedBatchLiesOnTheStream(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	c := s.enrol()
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	encode := map[string]func(string) string{
		"":         func(b string) string { return b },
		"identity": func(b string) string { return b },
		"gzip":     func(b string) string { return gzipped(t, b) },
		"ZSTD":     func(b string) string { return zstdded(t, b) },
	}
	want := map[string]string{} // batch id → encoding
	for encoding, f := range encode {
		sent := f(c.body(rows(3), rows(4)))
		status, header, text := c.push(sent, "Content-Encoding", encoding, "Traceparent", parent)
		require.Equal(t, http.StatusAccepted, status, text)
		require.Equal(t, "application/json", header.Get("Content-Type"))
		got := answered(t, text)
		want[got["batch_id"].(string)] = encoding
		require.GreaterOrEqual(t, got["processing_time_ms"], 0.0)
		delete(got, "batch_id")
		delete(got, "processing_time_ms")
		require.Equal(t, map[string]any{
			"status": "accepted", "collector_id": c.id.String(), "duplicate": false,
			"metrics_accepted": 2.0, "rows_accepted": 7.0, "rejected": []any{}, "rejected_more": 0.0,
			"bytes_received": float64(len(sent)), "next_config_version": 0.0, "next_check_in_seconds": 60.0,
		}, got)
	}
	for _, b := range s.batches(len(encode)) {
		require.Contains(t, want, b.ID.String())
		require.Equal(t, c.id, b.CollectorID)
		require.True(t, b.Intact())
		require.Equal(t, 7, b.Rows())
		require.Equal(t, parent, b.TraceParent)
		require.WithinDuration(t, time.Now(), b.ReceivedAt, time.Minute)
	}
	require.EqualValues(t, 4, s.value("pganalytics_gateway_batches_total", "accepted"))
	require.EqualValues(t, 28, s.value("pganalytics_gateway_rows_total"))
	s.requireAllGivenBack()
}

func TestRepeatedBatchIsASuccessAndLiesOnTheStreamOnce(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	c := s.enrol()
	body := c.body(rows(1))
	for _, duplicate := range []bool{false, true, true} {
		status, _, text := c.push(body)
		require.Equal(t, http.StatusAccepted, status)
		require.Equal(t, duplicate, answered(t, text)["duplicate"])
	}
	s.batches(1)
	require.EqualValues(t, 2, s.value("pganalytics_gateway_batches_total", "duplicate"))
	require.EqualValues(t, 1, s.value("pganalytics_gateway_rows_total"))
}

// requireRetry checks that the sender is told to keep the batch and repeat.
func requireRetry(t *testing.T, status int, header http.Header, text, code string) {
	t.Helper()
	require.Equal(t, http.StatusServiceUnavailable, status, text)
	require.NotEmpty(t, header.Get("Retry-After"))
	require.Contains(t, text, `"code":"`+code+`"`)
}

func TestNothingIsAcceptedThatTheStreamDidNotConfirm(t *testing.T) {
	t.Parallel()
	js := func(t *testing.T, s *stack) jetstream.JetStream {
		nc, err := nats.Connect(s.nats.URL())
		require.NoError(t, err)
		t.Cleanup(nc.Close)
		js, err := jetstream.New(nc)
		require.NoError(t, err)
		return js
	}
	for name, tc := range map[string]struct {
		breakIt func(t *testing.T, s *stack)
		repair  func(t *testing.T, s *stack)
		code    string
	}{
		"server stopped": {
			breakIt: func(_ *testing.T, s *stack) { s.nats.Stop() },
			repair:  func(_ *testing.T, s *stack) { s.nats.Restart() },
			code:    "unavailable",
		},
		"stream full": {
			breakIt: func(t *testing.T, s *stack) { resize(t, js(t, s), 1) },
			repair:  func(t *testing.T, s *stack) { resize(t, js(t, s), 1<<20) },
			code:    "stream_full",
		},
		"stream sealed": {
			breakIt: func(t *testing.T, s *stack) {
				stream, err := js(t, s).Stream(t.Context(), "BATCHES")
				require.NoError(t, err)
				cfg := stream.CachedInfo().Config
				cfg.Sealed = true
				_, err = js(t, s).UpdateStream(t.Context(), cfg)
				require.NoError(t, err)
			},
			repair: func(t *testing.T, s *stack) {
				require.NoError(t, js(t, s).DeleteStream(t.Context(), "BATCHES"))
				require.NoError(t, s.bus.EnsureStreams(t.Context()))
			},
			code: "unavailable",
		},
		"stream gone": {
			breakIt: func(t *testing.T, s *stack) { require.NoError(t, js(t, s).DeleteStream(t.Context(), "BATCHES")) },
			repair:  func(t *testing.T, s *stack) { require.NoError(t, s.bus.EnsureStreams(t.Context())) },
			code:    "unavailable",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStack(t, options{bus: bus.Config{BatchesMaxBytes: 1 << 20}})
			c := s.enrol()
			body := c.body(rows(1))
			before := s.value("pganalytics_gateway_batches_total", "unavailable")
			tc.breakIt(t, s)
			status, header, text := c.push(body)
			requireRetry(t, status, header, text, tc.code)
			require.Equal(t, before+1, s.value("pganalytics_gateway_batches_total", "unavailable"))

			tc.repair(t, s)
			require.Eventually(t, func() bool {
				status, _, _ = c.push(body)
				return status == http.StatusAccepted
			}, 20*time.Second, 50*time.Millisecond, "the same batch is taken when all is well again")
			s.batches(1)
		})
	}
}

// The batch is within the gateway's limits; that the stream's have become
// narrower than those is no fault of the batch.
func TestABatchThatTheStreamHasBecomeTooNarrowForIsNotRefused(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	c := s.enrol()
	body := c.body(rows(4000)) // some 180 KiB on the stream
	maxPayload := func(n int32) {
		s.nats.Restart(func(cfg *natsserver.Config) { cfg.MaxPayload = n })
		require.Eventually(t, func() bool { return s.bus.MaxPayload() == int64(n) }, 20*time.Second, 5*time.Millisecond)
	}
	maxPayload(128 << 10)
	status, header, text := c.push(body)
	requireRetry(t, status, header, text, "unavailable")
	maxPayload(natsserver.MaxPayload)
	require.Eventually(t, func() bool {
		status, _, _ = c.push(body)
		return status == http.StatusAccepted
	}, 20*time.Second, 50*time.Millisecond)
	s.batches(1)
}

func resize(t *testing.T, js jetstream.JetStream, maxBytes int64) {
	t.Helper()
	stream, err := js.Stream(t.Context(), "BATCHES")
	require.NoError(t, err)
	cfg := stream.CachedInfo().Config
	cfg.MaxBytes = maxBytes
	_, err = js.UpdateStream(t.Context(), cfg)
	require.NoError(t, err)
}

// gate is the real publisher behind a door.
type gate struct {
	*bus.Publisher
	entered chan context.Context
	open    chan struct{} // nil: only the deadline ends the wait
}

func (g *gate) Publish(ctx context.Context, b *batch.Batch) (bool, error) {
	g.entered <- ctx
	select {
	case <-g.open:
		return g.Publisher.Publish(ctx, b)
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

func TestPublishIsAwaitedAndCountedWhenTheSenderLeaves(t *testing.T) {
	t.Parallel()
	g := &gate{entered: make(chan context.Context, 1), open: make(chan struct{})}
	s := newStack(t, options{publisher: func(p *bus.Publisher) gateway.Publisher { g.Publisher = p; return g }})
	c := s.enrol()
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	req := c.request(ctx, strings.NewReader(c.body(rows(5))))
	go func() {
		resp, err := c.client.Do(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		left <- err
	}()
	publish := <-g.entered
	cancel()
	require.ErrorIs(t, <-left, context.Canceled)
	// The reset reaches the server within microseconds; were the publish tied to
	// the request, it would end now.
	select {
	case <-publish.Done():
		t.Fatal("the publish was given up with the request")
	case <-time.After(200 * time.Millisecond):
	}
	deadline, ok := publish.Deadline()
	require.True(t, ok, "it has a deadline of its own")
	require.WithinDuration(t, time.Now().Add(10*time.Second), deadline, 5*time.Second)
	close(g.open)
	require.Eventually(t, func() bool { return s.value("pganalytics_gateway_batches_total", "accepted") == 1 },
		10*time.Second, 5*time.Millisecond)
	require.Equal(t, 5, s.batches(1)[0].Rows())
}

func TestPublishThatTakesTooLongIsAnUnknownOutcome(t *testing.T) {
	t.Parallel()
	g := &gate{entered: make(chan context.Context, 1)}
	s := newStack(t, options{
		gateway:   gateway.Config{PublishTimeout: 50 * time.Millisecond},
		publisher: func(p *bus.Publisher) gateway.Publisher { g.Publisher = p; return g },
	})
	c := s.enrol()
	status, header, text := c.push(c.body(rows(1)))
	requireRetry(t, status, header, text, "unavailable")
}

func TestStopLetsAPushInFlightReachTheStream(t *testing.T) {
	t.Parallel()
	g := &gate{entered: make(chan context.Context, 1), open: make(chan struct{})}
	s := newStack(t, options{publisher: func(p *bus.Publisher) gateway.Publisher { g.Publisher = p; return g }})
	c := s.enrol()
	status := make(chan int, 1)
	req := c.request(t.Context(), strings.NewReader(c.body(rows(1))))
	go func() {
		code := 0
		if resp, err := c.client.Do(req); err == nil {
			code = resp.StatusCode
			_ = resp.Body.Close()
		}
		status <- code
	}()
	<-g.entered
	s.stop()
	require.Eventually(t, func() bool {
		conn, err := tls.Dial("tcp", s.server.Addr().String(), c.tlsConfig())
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	}, 10*time.Second, 5*time.Millisecond)
	close(g.open)
	require.Equal(t, http.StatusAccepted, <-status)
	require.NoError(t, <-s.stopped)
	s.batches(1)
}

func TestRevocationReachesALiveConnection(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		act    func(c *sender)
		status int
		code   string
	}{
		"disabled": {func(c *sender) { c.set(identity.Disabled) }, http.StatusForbidden, "collector_disabled"},
		"locked":   {func(c *sender) { c.set(identity.Locked) }, http.StatusForbidden, "collector_locked"},
		"revoked": {func(c *sender) {
			c.stack.put(identity.Revocation{
				Thumbprint: ca.Fingerprint(c.cert), CollectorID: c.id, NotAfter: c.cert.NotAfter, RevokedAt: time.Now(),
			}.Record())
		}, http.StatusUnauthorized, "certificate_revoked"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStack(t, options{})
			c, other := s.enrol(), s.enrol()
			status, _, _ := c.push(c.body(rows(1)))
			require.Equal(t, http.StatusAccepted, status)

			tc.act(c)
			began := time.Now()
			fresh := 0
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
				if !i.Reused {
					fresh++
				}
			}})
			var text string
			require.Eventually(t, func() bool {
				status, _, text = c.send(c.request(ctx, strings.NewReader(c.body(rows(1)))))
				return status == tc.status
			}, 2*time.Second, 2*time.Millisecond)
			require.Less(t, time.Since(began), 2*time.Second)
			require.Contains(t, text, `"code":"`+tc.code+`"`)
			require.Zero(t, fresh, "it was the same connection all the time")

			status, _, _ = other.push(other.body(rows(1)))
			require.Equal(t, http.StatusAccepted, status, "nobody else is concerned")
		})
	}
}

func TestGoodItemsAreStoredWithoutTheBadOnes(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	c := s.enrol()
	items := []string{rows(2)}
	for range 120 {
		items = append(items, `{"type":"unknown","columns":["v"],"rows":[[1]]}`)
	}
	items = append(items, `{"type":"narrow","columns":["v"],"rows":[["x"]]}`)
	status, _, text := c.push(c.body(items...))
	require.Equal(t, http.StatusAccepted, status, text)
	got := answered(t, text)
	require.EqualValues(t, 1, got["metrics_accepted"])
	require.Len(t, got["rejected"], 100)
	require.EqualValues(t, 21, got["rejected_more"])
	first := got["rejected"].([]any)[0].(map[string]any)
	require.EqualValues(t, 1, first["index"])
	require.Equal(t, "unknown_family", first["code"])
	require.Equal(t, 2, s.batches(1)[0].Rows())
	require.EqualValues(t, 100, s.value("pganalytics_gateway_items_rejected_total", "unknown_family"))
	require.EqualValues(t, 21, s.value("pganalytics_gateway_items_rejected_total", "not_listed"))
}

func TestBytesInFlightAreBounded(t *testing.T) {
	t.Parallel()
	limits := smallLimits()
	s := newStack(t, options{gateway: gateway.Config{Limits: limits, MaxInFlightBytes: 10 << 20}})
	c := s.enrol()
	// Spaces before a body that never ends. The flow of HTTP/2 would hold them
	// back on one connection, so each has its own.
	const held = 900 << 10
	var ends []func()
	for i := range 10 {
		reader, writer := io.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		client := c.newClient()
		req := c.request(ctx, reader)
		go func() {
			defer close(done)
			if resp, err := client.Do(req); err == nil {
				_ = resp.Body.Close()
			}
		}()
		go func() { _, _ = io.WriteString(writer, strings.Repeat(" ", held)) }()
		ends = append(ends, func() { cancel(); _ = reader.Close(); <-done })
		want := float64((i + 1) * (held + 64<<10)) // all of it has arrived, and what a push costs by itself
		require.Eventually(t, func() bool { return s.value("pganalytics_gateway_in_flight_bytes") >= want }, 10*time.Second, time.Millisecond)
	}
	body := c.body(rows(1)) + strings.Repeat(" ", held)
	status, header, text := c.push(body)
	requireRetry(t, status, header, text, "busy")
	require.LessOrEqual(t, s.value("pganalytics_gateway_in_flight_bytes"), float64(10<<20))
	for _, end := range ends {
		end()
	}
	require.Eventually(t, func() bool {
		status, _, _ = c.push(body)
		return status == http.StatusAccepted
	}, 10*time.Second, 10*time.Millisecond, "there is room again")
	s.requireAllGivenBack()
}

// Of four bytes of JSON a row here makes forty-six.
func TestRowsAreBookedByWhatTheyTakeInTheBatch(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{gateway: gateway.Config{Limits: smallLimits()}})
	c := s.enrol()
	const n = 5000
	reader, writer := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if resp, err := c.newClient().Do(c.request(ctx, reader)); err == nil {
			_ = resp.Body.Close()
		}
	}()
	go func() {
		body, _, _ := strings.Cut(c.body(rows(n)), "]]}") // never ends
		_, _ = io.WriteString(writer, body)
	}()
	require.Eventually(t, func() bool { return s.value("pganalytics_gateway_in_flight_bytes") >= n*46 }, 10*time.Second, time.Millisecond)
	cancel()
	_ = reader.Close()
	<-done
	s.requireAllGivenBack()
}

func TestConfigReportsAllFaults(t *testing.T) {
	t.Parallel()
	err := gateway.Config{
		MaxWireBytes: -1, MaxInFlightBytes: 1, PublishTimeout: -1, CheckIn: time.Millisecond,
	}.Validate()
	for _, want := range []string{"max-wire-bytes", "max-in-flight-bytes", "publish-timeout", "check-in: must be at least 1s, is 1ms"} {
		require.ErrorContains(t, err, want)
	}
	require.NoError(t, gateway.Config{}.Validate())
	_, err = gateway.New(gateway.Config{CheckIn: -1}, nil, nil, nil, nil, nil, nil)
	require.Error(t, err)
}

func TestBrokenTraceContextIsNotPassedOn(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	c := s.enrol()
	for _, parent := range []string{
		"", "nonsense", "00-00000000000000000000000000000000-b7ad6b7169203331-01",
		"00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	} {
		status, _, _ := c.push(c.body(rows(1)), "Traceparent", parent)
		require.Equal(t, http.StatusAccepted, status)
	}
	for _, b := range s.batches(5) {
		require.Empty(t, b.TraceParent, "a broken trace context is not passed on")
	}
}
