package typed_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/go-chi/chi/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/httpserver"
	"pganalytics/pkg/httpserver/typed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type item struct {
	Name  string `json:"name" minLength:"3"`
	Count int    `json:"count,omitempty" minimum:"1"`
	Size  string `json:"size,omitempty" enum:"small,large"`
	Mail  string `json:"mail,omitempty" format:"email"`
}

type put struct {
	ID   int `path:"id" minimum:"1"`
	Page int `query:"page" minimum:"1" default:"1"`
	Body item
}

type answer struct {
	Body struct {
		ID   int      `json:"id"`
		Page int      `json:"page"`
		Item item     `json:"item"`
		List []string `json:"list"`
	}
}

type optional struct{ Body *item }

// router has the routes of the tests. Whoever sends X-Refuse is refused by the guard.
func router(t testing.TB) (http.Handler, *typed.API) {
	t.Helper()
	r := httpserver.NewRouter()
	api := typed.New("test", "v1", r, func(_, path string) func(http.Handler) http.Handler {
		return func(next http.Handler) http.Handler {
			return httpserver.Handle(func(w http.ResponseWriter, r *http.Request) error {
				if r.Header.Get("X-Refuse") != "" {
					return fault.New(fault.Forbidden, "forbidden", path)
				}
				next.ServeHTTP(w, r)
				return nil
			})
		}
	})
	typed.Route(api, typed.Operation{ID: "put_item", Method: http.MethodPut, Path: "/items/{id}", Tag: "items"},
		func(_ context.Context, in *put) (*answer, error) {
			if in.Body.Name == "taken" {
				return nil, fault.New(fault.Conflict, "name_taken", "It is taken.")
			}
			if in.Body.Name == "broken" {
				return nil, errors.New("inner cause")
			}
			out := &answer{}
			out.Body.ID, out.Body.Page, out.Body.Item = in.ID, in.Page, in.Body
			return out, nil
		})
	typed.Route(api, typed.Operation{ID: "maybe", Method: http.MethodPost, Path: "/maybe", Tag: "items"},
		func(_ context.Context, in *optional) (*struct{}, error) {
			if in.Body != nil {
				return nil, fault.New(fault.Throttled, "throttled", "There was a body.")
			}
			return nil, nil
		})
	return r, api
}

func call(t testing.TB, h http.Handler, method, target, body string, header ...string) (*httptest.ResponseRecorder, httpserver.Problem) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, target, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	var p httpserver.Problem
	if w.Header().Get("Content-Type") == "application/problem+json" {
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &p))
	}
	return w, p
}

func TestGoodRequestReachesTheFunctionAndItsAnswerTheSender(t *testing.T) {
	t.Parallel()
	h, _ := router(t)
	w, _ := call(t, h, http.MethodPut, "/items/7?page=2", `{"name":"abc","count":3}`)
	require.Equal(t, http.StatusOK, w.Code, w.Body)
	require.JSONEq(t, `{"id":7,"page":2,"item":{"name":"abc","count":3},"list":[]}`, w.Body.String())
	require.NotContains(t, w.Body.String(), "$schema")
	require.Empty(t, w.Header().Get("Link"))
	require.Equal(t, "no-store", w.Header().Get("Cache-Control"))

	w, _ = call(t, h, http.MethodPost, "/maybe", "")
	require.Equal(t, http.StatusNoContent, w.Code)
	require.Empty(t, w.Body)
	w, _ = call(t, h, http.MethodPost, "/maybe", `{"name":"abc"}`)
	require.Equal(t, http.StatusTooManyRequests, w.Code)
}

func TestFaultyRequestIsRefusedWithPlacesAndWithoutItsValues(t *testing.T) {
	t.Parallel()
	h, _ := router(t)
	for name, c := range map[string]struct {
		target, body  string
		status        int
		code, pointer string
	}{
		"unknown name":    {"/items/7", `{"name":"abc","s3cret":1}`, 400, "unknown_member", ""},
		"other case":      {"/items/7", `{"Name":"abc"}`, 400, "unknown_member", ""},
		"duplicate name":  {"/items/7", `{"name":"s3cret","name":"abc"}`, 400, "duplicate_name", ""},
		"wrong type":      {"/items/7", `{"name":"abc","count":"s3cret"}`, 400, "wrong_type", "/count"},
		"broken":          {"/items/7", `{"name":"s3cret`, 400, "invalid_json", ""},
		"more behind":     {"/items/7", `{"name":"abc"} s3cret`, 400, "invalid_json", ""},
		"not UTF-8":       {"/items/7", "{\"name\":\"s3cret\xff\"}", 400, "invalid_json", ""},
		"array":           {"/items/7", `["s3cret"]`, 400, "wrong_type", ""},
		"empty":           {"/items/7", ``, 400, "invalid_json", ""},
		"null":            {"/items/7", `null`, 400, "value_invalid", ""},
		"missing":         {"/items/7", `{"count":2}`, 400, "value_invalid", ""},
		"too short":       {"/items/7", `{"name":"s3"}`, 400, "value_invalid", "/name"},
		"out of range":    {"/items/7", `{"name":"abc","count":-3}`, 400, "value_invalid", "/count"},
		"not in the enum": {"/items/7", `{"name":"abc","size":"s3cret"}`, 400, "value_invalid", "/size"},
		"not the format":  {"/items/7", `{"name":"abc","mail":"a@example.com s3cret"}`, 400, "value_invalid", "/mail"},
		"bad path":        {"/items/s3cret", `{"name":"abc"}`, 400, "value_invalid", "id"},
		"bad query":       {"/items/7?page=s3cret", `{"name":"abc"}`, 400, "value_invalid", "page"},
		"unknown query":   {"/items/7?s3cret=1", `{"name":"abc"}`, 400, "value_invalid", ""},
		"too large":       {"/items/7", `{"name":"` + strings.Repeat("s", 70<<10) + `"}`, 413, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, p := call(t, h, http.MethodPut, c.target, c.body)
			require.Equal(t, c.status, w.Code, w.Body)
			require.NotContains(t, w.Body.String(), "s3")
			if c.code != "" {
				require.NotEmpty(t, p.Errors)
				require.Equal(t, c.code, p.Errors[0].Code, w.Body)
				require.Equal(t, c.pointer, p.Errors[0].Pointer, w.Body)
			}
		})
	}
}

func TestErrorsAreTheProblemsOfHttpserver(t *testing.T) {
	t.Parallel()
	h, _ := router(t)
	w, p := call(t, h, http.MethodPut, "/items/7", `{"name":"taken"}`)
	require.Equal(t, http.StatusConflict, w.Code)
	require.Equal(t, "name_taken", p.Code)
	require.Equal(t, "It is taken.", p.Detail)
	w, p = call(t, h, http.MethodPut, "/items/7", `{"name":"broken"}`)
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
	require.Equal(t, "internal", p.Code)
	require.NotContains(t, w.Body.String(), "inner cause")
	require.NotEmpty(t, w.Header().Get("Retry-After"))
	w, p = call(t, h, http.MethodPut, "/items/7", `{"name":"abc"}`, "Content-Type", "text/plain")
	require.Equal(t, http.StatusUnsupportedMediaType, w.Code)
	require.Equal(t, "unsupported_media_type", p.Code)
	w, _ = call(t, h, http.MethodPut, "/items/7", `{"name":"abc"}`, "Accept", "application/cbor")
	require.Equal(t, http.StatusOK, w.Code)
}

func TestGuardDecidesBeforeTheBodyIsRead(t *testing.T) {
	t.Parallel()
	h, _ := router(t)
	w, p := call(t, h, http.MethodPut, "/items/7", `{broken`, "X-Refuse", "yes")
	require.Equal(t, http.StatusForbidden, w.Code)
	require.Equal(t, "/items/{id}", p.Detail)
}

func TestDescriptionHasRoutesAndTheProblem(t *testing.T) {
	t.Parallel()
	h, api := router(t)
	description, err := api.Description()
	require.NoError(t, err)
	for _, part := range []string{`"openapi": "3.1.0"`, `"/items/{id}"`, `"operationId": "put_item"`, `"request_id"`} {
		require.Contains(t, string(description), part)
	}
	var walked int
	require.NoError(t, chi.Walk(h.(chi.Routes), func(string, string, http.Handler, ...func(http.Handler) http.Handler) error {
		walked++
		return nil
	}))
	require.Equal(t, 2, walked, "no route but those that were added")
}

func FuzzBody(f *testing.F) {
	for _, seed := range []string{`{"name":"abc"}`, `{"name":"abc","name":"abc"}`, `{"name":null,"count":1e99}`, `[{}]`, "\"\xff\""} {
		f.Add(seed)
	}
	h, _ := router(f)
	f.Fuzz(func(t *testing.T, body string) {
		w, _ := call(t, h, http.MethodPut, "/items/7", body)
		switch w.Code {
		case http.StatusOK, http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusConflict, http.StatusServiceUnavailable:
		default:
			t.Fatalf("status %d", w.Code)
		}
		if w.Code == http.StatusServiceUnavailable && !strings.Contains(body, "broken") {
			t.Fatalf("body %q: %s", body, w.Body)
		}
	})
}
