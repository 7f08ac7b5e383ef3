package httpserver_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/daemon"
	"pganalytics/pkg/fault"
	"pganalytics/pkg/httpserver"
)

var serverTime = regexp.MustCompile(`"server_time":"20[0-9T:.-]+Z"`)

// golden compares the answer, head and body, with testdata/<name>.golden.
func golden(t *testing.T, name string, resp *http.Response, body string) {
	t.Helper()
	var out bytes.Buffer
	fmt.Fprintf(&out, "%d\n", resp.StatusCode)
	for _, h := range []string{"Content-Type", "Allow", "Cache-Control", "Retry-After", "Www-Authenticate", "X-Content-Type-Options"} {
		if v := resp.Header.Get(h); v != "" {
			fmt.Fprintf(&out, "%s: %s\n", h, v)
		}
	}
	out.WriteString("\n")
	body = serverTime.ReplaceAllString(body, `"server_time":"<now>"`)
	if body != "" {
		require.NoError(t, json.Indent(&out, []byte(body), "", "  "))
	}
	out.WriteString("\n")
	file := filepath.Join("testdata", name+".golden")
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o750))
		require.NoError(t, os.WriteFile(file, out.Bytes(), 0o600))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), out.String())
}

func TestErrorsAreProblems(t *testing.T) {
	t.Parallel()
	secret := errors.New("secret inner cause")
	cases := map[string]error{
		"unclassified": fmt.Errorf("copy rows: %w", secret),
		"wrapped":      fmt.Errorf("publish: %w", fault.Wrap(fault.Unavailable, secret)),
		"invalid": fmt.Errorf("decode: %w", &fault.Error{
			Class: fault.Invalid, Code: "batch_invalid", Detail: "Nothing in the batch can be stored.", Err: secret,
			Fields: []fault.Field{{Pointer: "/metrics/0/type", Code: "unknown_family", Detail: "No such metric family."}},
		}),
		"unauthenticated": fault.New(fault.Unauthenticated, "token_expired", "The token has expired."),
		"throttled":       &fault.Error{Class: fault.Throttled, Code: "throttled", RetryAfter: 1500 * time.Millisecond},
		"contended":       fault.Wrap(fault.Contended, secret),
		"clock_skew":      fault.New(fault.Unprocessable, "clock_skew", "The clock of the sender is ahead."),
	}
	router := httpserver.NewRouter()
	for name, err := range cases {
		router.Get("/"+name, httpserver.Handle(func(http.ResponseWriter, *http.Request) error { return err }))
	}
	router.Post("/posted", hello)
	router.Route("/nested", func(r chi.Router) { r.Get("/get", hello); r.Delete("/get", hello) })
	b := serve(t, router, nil, nil)
	c := client(t, nil)
	for name := range cases {
		resp, body := do(t, c, http.MethodGet, b.URL()+"/"+name, nil, "X-Request-Id", "request-1")
		require.NotContains(t, body, "secret")
		golden(t, name, resp, body)
	}
	for name, call := range map[string][2]string{
		"not_found":                 {http.MethodGet, "/missing"},
		"method_not_allowed":        {http.MethodPut, "/posted"},
		"method_not_allowed_nested": {http.MethodPost, "/nested/get"},
		"not_found_nested":          {http.MethodPost, "/nested/missing"},
	} {
		resp, body := do(t, c, call[0], b.URL()+call[1], nil, "X-Request-Id", "request-1")
		golden(t, name, resp, body)
	}
	resp, body := do(t, c, http.MethodGet, b.URL()+"/unauthenticated", nil, "X-Request-Id", "request-1", "Authorization", "Bearer x")
	golden(t, "unauthenticated_with_token", resp, body)
}

func TestHeadIsAnsweredWhereGetIs(t *testing.T) {
	t.Parallel()
	router := httpserver.NewRouter()
	router.Get("/thing", hello)
	b := serve(t, router, nil, nil)
	resp, body := do(t, client(t, nil), http.MethodHead, b.URL()+"/thing", nil)
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Empty(t, body)
	require.EqualValues(t, len(`"hello"`), resp.ContentLength)
	resp, body = do(t, client(t, nil), http.MethodHead, b.URL()+"/missing", nil)
	require.Equal(t, http.StatusNotFound, resp.StatusCode)
	require.Empty(t, body)
}

func TestErrorAfterTheAnswerBeganIsOnlyLogged(t *testing.T) {
	t.Parallel()
	b := serve(t, httpserver.Handle(func(w http.ResponseWriter, _ *http.Request) error {
		_, _ = io.WriteString(w, `"answer"`)
		return errors.New("afterwards")
	}), nil, nil)
	resp, body := do(t, client(t, nil), http.MethodGet, b.URL(), nil)
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Equal(t, `"answer"`, body)
	require.Eventually(t, func() bool { return containsLine(b.log.String(), "afterwards") }, 10*time.Second, 5*time.Millisecond)
}

type credentials struct {
	Username string `json:"username"`
	Password string `json:"password"`
	Nested   struct {
		Count int `json:"count"`
	} `json:"nested"`
}

func TestReadJSONIsStrictAndNeverEchoes(t *testing.T) {
	t.Parallel()
	const secret = "pa55word"
	for name, tc := range map[string]struct {
		contentType, encoding, body string
		class                       fault.Class
		field                       fault.Field
	}{
		"no content type":    {"", "", "{}", fault.UnsupportedMedia, fault.Field{}},
		"other content type": {"text/plain", "", "{}", fault.UnsupportedMedia, fault.Field{}},
		"other charset":      {"application/json; charset=latin1", "", "{}", fault.UnsupportedMedia, fault.Field{}},
		"encoded":            {"application/json", "gzip", "{}", fault.UnsupportedMedia, fault.Field{}},
		"too large":          {"application/json", "", `{"username":"` + strings.Repeat("x", 1000) + `"}`, fault.TooLarge, fault.Field{}},
		"empty":              {"application/json", "", "", fault.Invalid, fault.Field{Code: "invalid_json"}},
		"syntax":             {"application/json", "", `{"username": pa55word}`, fault.Invalid, fault.Field{Code: "invalid_json"}},
		"trailing":           {"application/json", "", `{} {"pa55word":1}`, fault.Invalid, fault.Field{Code: "invalid_json"}},
		"not UTF-8":          {"application/json", "", "{\"username\":\"\xff\"}", fault.Invalid, fault.Field{Code: "invalid_json"}},
		"unknown name":       {"application/json", "", `{"pa55word": 1}`, fault.Invalid, fault.Field{Code: "unknown_member"}},
		"unknown nested":     {"application/json", "", `{"nested":{"pa55word": 1}}`, fault.Invalid, fault.Field{Code: "unknown_member", Pointer: "/nested"}},
		"other case":         {"application/json", "", `{"Username": "x"}`, fault.Invalid, fault.Field{Code: "unknown_member"}},
		"duplicate name":     {"application/json", "", `{"nested":{"count":1,"count":2}}`, fault.Invalid, fault.Field{Code: "duplicate_name", Pointer: "/nested"}},
		"wrong type":         {"application/json", "", `{"nested":{"count":"pa55word"}}`, fault.Invalid, fault.Field{Code: "wrong_type", Pointer: "/nested/count"}},
		"deep in unknown":    {"application/json", "", `{"pa55word":{"pa55word":tru`, fault.Invalid, fault.Field{Code: "unknown_member"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(tc.body))
			r.Header.Set("Content-Type", tc.contentType)
			r.Header.Set("Content-Encoding", tc.encoding)
			_, err := httpserver.ReadJSON[credentials](r, 200)
			e, ok := errors.AsType[*fault.Error](err)
			require.True(t, ok, "%v", err)
			require.Equal(t, tc.class, e.Class)
			require.NotContains(t, fmt.Sprintf("%v %+v", err, e.Fields), secret)
			if tc.class == fault.Invalid {
				require.Len(t, e.Fields, 1)
				require.Equal(t, tc.field.Code, e.Fields[0].Code)
				require.Equal(t, tc.field.Pointer, e.Fields[0].Pointer)
			}
		})
	}
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(`{"username":"u","nested":{"count":3}}`))
	r.Header.Set("Content-Type", "application/json; charset=UTF-8")
	v, err := httpserver.ReadJSON[credentials](r, 200)
	require.NoError(t, err)
	require.Equal(t, "u", v.Username)
	require.Equal(t, 3, v.Nested.Count)
}

func FuzzReadJSON(f *testing.F) {
	f.Add([]byte(`{"username":"u","password":"p","nested":{"count":3}}`))
	f.Add([]byte(`{"username":"\ud800"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		v, err := httpserver.ReadJSON[credentials](r, 1<<10)
		if err != nil {
			if _, ok := errors.AsType[*fault.Error](err); !ok {
				t.Fatalf("unclassified: %v", err)
			}
			return
		}
		again, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		r = httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(again))
		r.Header.Set("Content-Type", "application/json")
		if w, err := httpserver.ReadJSON[credentials](r, 1<<14); err != nil || w != v {
			t.Fatalf("accepted input does not survive: %v", err)
		}
	})
}

func TestHealthTellsWhatTheServiceHas(t *testing.T) {
	t.Parallel()
	build := daemon.Build{Version: "v1.0.0", Commit: "abc", Date: "2026-01-02T03:04:05Z"}
	asked := 0
	router := httpserver.NewRouter()
	router.Get("/api/v1/health", httpserver.Health(build, time.Now().Add(-time.Minute), httpserver.HealthChecks{
		NATS:     func(context.Context) error { asked++; return nil },
		Database: func(context.Context) error { return errors.New("away") },
	}))
	router.Get("/version", httpserver.Version(build))
	b := serve(t, router, nil, nil)
	for range 3 {
		_, body := do(t, client(t, nil), http.MethodGet, b.URL()+"/api/v1/health", nil)
		var got map[string]any
		require.NoError(t, json.Unmarshal([]byte(body), &got))
		require.Equal(t, "degraded", got["status"])
		require.Equal(t, false, got["database_ok"])
		require.Equal(t, true, got["nats_ok"])
		require.NotContains(t, got, "timescale_ok")
		require.InDelta(t, 60, got["uptime_seconds"], 5)
		stamp, err := time.Parse(time.RFC3339, got["timestamp"].(string))
		require.NoError(t, err)
		require.WithinDuration(t, time.Now(), stamp, 10*time.Second)
	}
	require.Equal(t, 1, asked, "neighbours are not asked by every stranger")
	_, body := do(t, client(t, nil), http.MethodGet, b.URL()+"/version", nil)
	require.JSONEq(t, `{"version":"v1.0.0","commit":"abc","date":"2026-01-02T03:04:05Z","api":"v1"}`, body)
}
