package gateway_test

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/gateway"
)

var serverTime = regexp.MustCompile(`"server_time":"20[0-9T:.-]+Z"`)

// golden compares an answer, its telling headers and its body, with
// testdata/<name>.golden.
func golden(t *testing.T, name string, status int, header http.Header, body string) {
	t.Helper()
	var out bytes.Buffer
	fmt.Fprintf(&out, "%d\n", status)
	for _, h := range []string{"Content-Type", "Allow", "Retry-After", "Www-Authenticate"} {
		if v := header.Get(h); v != "" {
			fmt.Fprintf(&out, "%s: %s\n", h, v)
		}
	}
	out.WriteString("\n")
	body = serverTime.ReplaceAllString(body, `"server_time":"<now>"`)
	require.NoError(t, json.Indent(&out, []byte(body), "", "  "))
	out.WriteString("\n")
	file := filepath.Join("testdata", strings.ReplaceAll(name, " ", "_")+".golden")
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o750))
		require.NoError(t, os.WriteFile(file, out.Bytes(), 0o600))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), out.String())
}

func TestWhatBadInputGets(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{gateway: gateway.Config{Limits: smallLimits(), MaxWireBytes: 2 << 20}})
	c, other := s.enrol(), s.enrol()
	good := c.body(rows(1))
	at := func(d time.Duration) string {
		return fmt.Sprintf(`{"collector_id":%q,"hostname":"db1","timestamp":%q,"version":"1","metrics_count":1,"metrics":[%s]}`,
			c.id, time.Now().Add(d).UTC().Format(time.RFC3339), rows(1))
	}
	type request struct {
		method, path string
		body         string
		header       []string
	}
	for name, r := range map[string]request{
		"no token":               {body: good, header: []string{"Authorization", ""}},
		"other scheme":           {body: good, header: []string{"Authorization", "Basic aGVsbG8="}},
		"token of another":       {body: good, header: []string{"Authorization", "Bearer " + other.token}},
		"token cut":              {body: good, header: []string{"Authorization", "Bearer " + c.token[:len(c.token)-9]}},
		"collector of another":   {body: other.body(rows(1))},
		"collector malformed":    {body: strings.Replace(good, c.id.String(), "me", 1)},
		"no content type":        {body: good, header: []string{"Content-Type", ""}},
		"other content type":     {body: good, header: []string{"Content-Type", "application/protobuf"}},
		"other charset":          {body: good, header: []string{"Content-Type", "application/json; charset=utf-16"}},
		"other encoding":         {body: good, header: []string{"Content-Encoding", "br"}},
		"two encodings":          {body: good, header: []string{"Content-Encoding", "gzip, gzip"}},
		"not gzip":               {body: good, header: []string{"Content-Encoding", "gzip"}},
		"not zstd":               {body: good, header: []string{"Content-Encoding", "zstd"}},
		"gzip truncated":         {body: cut(gzipped(t, good)), header: []string{"Content-Encoding", "gzip"}},
		"gzip with more behind":  {body: gzipped(t, good) + "more", header: []string{"Content-Encoding", "gzip"}},
		"gzip empty":             {body: "", header: []string{"Content-Encoding", "gzip"}},
		"zstd truncated":         {body: cut(zstdded(t, good)), header: []string{"Content-Encoding", "zstd"}},
		"zstd empty":             {body: "", header: []string{"Content-Encoding", "zstd"}},
		"zstd window":            {body: zstdded(t, strings.Repeat(noise(), 9<<10), zstd.WithWindowSize(16<<20)), header: []string{"Content-Encoding", "zstd"}},
		"too large on the wire":  {body: good + strings.Repeat(" ", 3<<20)},
		"too large inflated":     {body: gzipped(t, good+strings.Repeat(" ", 3<<20)), header: []string{"Content-Encoding", "gzip"}},
		"too large encoded":      {body: c.body(rows(20_000))},
		"empty":                  {body: ""},
		"broken JSON":            {body: good[:len(good)-1]},
		"more than one value":    {body: good + good},
		"not UTF-8":              {body: strings.Replace(good, "db1", "\xff", 1)},
		"duplicate name":         {body: strings.Replace(good, `"hostname"`, `"version":"x","hostname"`, 1)},
		"unknown member":         {body: strings.Replace(good, `"hostname"`, `"passwords":"pa55word","hostname"`, 1)},
		"count mismatch":         {body: strings.Replace(good, `"metrics_count":1`, `"metrics_count":2`, 1)},
		"nothing acceptable":     {body: c.body(`{"type":"pa55word-","columns":["v"],"rows":[[1]]}`, `{"type":"narrow","columns":["v"],"rows":[["pa55word"]]}`)},
		"clock ahead":            {body: at(time.Hour)},
		"too old":                {body: at(-31 * 24 * time.Hour)},
		"other method":           {method: http.MethodGet},
		"other path":             {path: "/api/v1/metrics/pull", body: good},
		"route of another place": {path: "/healthz", body: good},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			req := c.request(t.Context(), strings.NewReader(r.body), r.header...)
			if r.method != "" {
				req.Method = r.method
			}
			if r.path != "" {
				req.URL.Path = r.path
			}
			status, header, text := c.send(req)
			require.NotContains(t, text, "pa55word")
			golden(t, name, status, header, text)
		})
	}
	t.Cleanup(func() {
		// Cleanups run last in first out: the stream is still there.
		require.Zero(t, s.value("pganalytics_gateway_batches_total", "accepted"))
		s.requireAllGivenBack()
	})
}

func cut(s string) string { return s[:len(s)-9] }

// noise is a kilobyte that does not compress.
func noise() string {
	b := make([]byte, 1<<10)
	_, _ = rand.Read(b)
	return string(b)
}

func TestLengthThatIsAnnouncedTooLargeIsRefusedUnread(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{gateway: gateway.Config{Limits: smallLimits(), MaxWireBytes: 1 << 20}})
	c := s.enrol()
	read := s.value("pganalytics_gateway_received_bytes_total", "wire")
	req := c.request(t.Context(), neverEnding{})
	req.ContentLength = 1 << 40
	status, _, text := c.send(req)
	require.Equal(t, http.StatusRequestEntityTooLarge, status, text)
	require.Equal(t, read, s.value("pganalytics_gateway_received_bytes_total", "wire"))
}

func TestBodyOfUnknownLengthIsReadUpToTheLimit(t *testing.T) {
	t.Parallel()
	const limit = 256 << 10
	s := newStack(t, options{gateway: gateway.Config{MaxWireBytes: limit}})
	c := s.enrol()
	read := s.value("pganalytics_gateway_received_bytes_total", "wire")
	status, header, text := c.send(c.request(t.Context(), neverEnding{}))
	golden(t, "too large on the wire without length", status, header, text)
	require.LessOrEqual(t, s.value("pganalytics_gateway_received_bytes_total", "wire")-read, float64(2*limit))
}

func TestUnknownSenderIsRefusedBeforeItsBodyIsRead(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	c := s.enrol()
	read := s.value("pganalytics_gateway_received_bytes_total", "wire")
	status, _, _ := c.send(c.request(t.Context(), neverEnding{}, "Authorization", ""))
	require.Equal(t, http.StatusUnauthorized, status)
	require.Equal(t, read, s.value("pganalytics_gateway_received_bytes_total", "wire"))
}

// neverEnding is a body of spaces.
type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// Not parallel: it measures what the whole process allocates.
func TestBombsAreRefusedWithFlatMemory(t *testing.T) { //nolint:paralleltest // as above
	limits := smallLimits()
	limits.MaxBodyBytes = 4 << 20
	s := newStack(t, options{gateway: gateway.Config{Limits: limits}})
	c := s.enrol()
	// Rows of a family that nobody knows are passed over, whatever their number.
	head := strings.TrimSuffix(c.body(`{"type":"unknown","columns":["v"],"rows":[[0]`), "]}")
	const times, mebibyte = 256, 1 << 20
	more := strings.Repeat(",[0]", mebibyte/4)
	for encoding, encode := range map[string]func(string) string{ //nolint:paralleltest // as above
		"gzip": func(body string) string { return gzipped(t, body) },
		"zstd": func(body string) string { return zstdded(t, body) },
	} {
		t.Run(encoding, func(t *testing.T) {
			// Both formats may be members or frames one behind the other.
			bomb := encode(head) + strings.Repeat(encode(more), times)
			require.Less(t, len(bomb), mebibyte)
			send := func() {
				status, _, text := c.push(bomb, "Content-Encoding", encoding)
				require.Equal(t, http.StatusRequestEntityTooLarge, status, text)
				require.Contains(t, text, "body_too_large")
			}
			send() // fills the pools
			inflated := s.value("pganalytics_gateway_received_bytes_total", "inflated")
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			send()
			runtime.ReadMemStats(&after)
			allocated := after.TotalAlloc - before.TotalAlloc
			// Of these a zstd window, should the pool have lost one, is 8 MiB.
			require.Less(t, allocated, uint64(11*mebibyte), "all that client and server allocate for 256 MiB")
			read := s.value("pganalytics_gateway_received_bytes_total", "inflated") - inflated
			require.LessOrEqual(t, read, 4.1*mebibyte, "inflating stops at the limit")
			t.Logf("%d bytes allocated, %.0f inflated of a bomb of %d bytes", allocated, read, len(bomb))
		})
	}
}
