// Package typed makes JSON routes of typed functions: the request's parameters
// and body arrive as a struct, the answer leaves as one, and the OpenAPI
// description follows from both. It is the only importer of huma.
//
// Invariants: every error is answered as httpserver.WriteProblem does, whoever
// found it, and holds nothing of the input. Whether a route may be used is
// decided before its body is read. A body with an unknown or a repeated name is
// refused.
package typed

import (
	"bytes"
	"context"
	"encoding/json" // for the description: huma's types are made for it
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strconv"
	"sync"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"
	"github.com/go-chi/chi/v5"
	strictjson "github.com/go-json-experiment/json"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/httpserver"
)

// maxBodyBytes bounds the body of every route; the largest, a list of hosts to
// enrol, has some ten.
const maxBodyBytes = 64 << 10

// Guard returns what decides, before the body is read, whether a request may
// use the route: it calls the next handler or answers with a problem.
type Guard func(method, path string) func(http.Handler) http.Handler

// API gathers routes that share one description. Routes are added while the
// service is built, not later.
type API struct {
	api huma.API
}

// New makes an API without routes whose routes are added to the router, each
// behind the guard.
func New(title, version string, router chi.Router, guard Guard) *API {
	useOurErrors()
	return &API{api: huma.NewAPI(huma.Config{
		OpenAPI: &huma.OpenAPI{Info: &huma.Info{Title: title, Version: version}},
		Formats: map[string]huma.Format{"application/json": {
			Marshal:   func(w io.Writer, v any) error { return strictjson.MarshalWrite(w, v) },
			Unmarshal: func(data []byte, v any) error { return strictjson.Unmarshal(data, v) },
		}},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
		// No paths for the description, documents or schemas, and no hooks,
		// which would put $schema links into answers.
	}, adapter{router, guard})}
}

// Description returns the OpenAPI 3.1 description as indented JSON.
func (a *API) Description() ([]byte, error) {
	description, err := json.MarshalIndent(a.api.OpenAPI(), "", "  ")
	if err != nil {
		return nil, fmt.Errorf("describe routes: %w", err)
	}
	return append(description, '\n'), nil
}

// Operation names a route. Path has its parameters in braces.
type Operation struct {
	ID      string // unique, snake_case
	Method  string
	Path    string
	Tag     string // the group in the description
	Summary string // one sentence
	Status  int    // of success. Defaults to 200, or 204 for an answer without a body
}

// Route adds a route. I is a struct whose fields carry path, query and header
// tags; its field Body, if any, is the JSON body, and optional if a pointer. O
// is a struct whose field Body, if any, is the answer. A nil *O answers without
// a body. Errors of the function become problems.
//
// It panics if I or O cannot be described, which is a fault of the program.
func Route[I, O any](a *API, op Operation, do func(context.Context, *I) (*O, error)) {
	described := huma.Operation{
		OperationID: op.ID, Method: op.Method, Path: op.Path, Summary: op.Summary, Tags: []string{op.Tag},
		DefaultStatus: op.Status, MaxBodyBytes: maxBodyBytes,
		Metadata: map[string]any{bodyMetadata: bodyOf(reflect.TypeFor[I]())},
	}
	huma.Register(a.api, described, func(ctx context.Context, in *I) (*O, error) {
		out, err := do(ctx, in)
		if err != nil {
			return nil, report(ctx, err)
		}
		return out, nil
	})
}

// body says how the body of a route is read.
type body struct {
	as       reflect.Type // nil: the route takes none
	optional bool
}

const bodyMetadata = "body"

func bodyOf(input reflect.Type) body {
	f, ok := input.FieldByName("Body")
	if !ok {
		return body{}
	}
	if f.Type.Kind() == reflect.Pointer {
		return body{as: f.Type.Elem(), optional: true}
	}
	return body{as: f.Type}
}

// read reads and checks the body and leaves it to be read again.
func (b body) read(r *http.Request) error {
	if b.as == nil || b.optional && r.ContentLength == 0 {
		r.Body = http.NoBody
		return nil
	}
	data, err := httpserver.ReadJSONBody(r, maxBodyBytes)
	if err != nil {
		return err
	}
	if err := httpserver.DecodeJSON(data, reflect.New(b.as).Interface()); err != nil {
		return err
	}
	r.Body = io.NopCloser(bytes.NewReader(data))
	return nil
}

// adapter puts huma's handlers onto the router.
type adapter struct {
	router chi.Router
	guard  Guard
}

// Handle adds a route.
func (a adapter) Handle(op *huma.Operation, handler func(huma.Context)) {
	body, _ := op.Metadata[bodyMetadata].(body)
	route := httpserver.Handle(func(w http.ResponseWriter, r *http.Request) error {
		if err := checkText(r); err != nil {
			return err
		}
		if err := body.read(r); err != nil {
			return err
		}
		answer := &answer{header: http.Header{}, status: http.StatusOK}
		r = r.WithContext(context.WithValue(r.Context(), answerKey{}, answer))
		handler(humachi.NewContext(op, r, answer))
		if answer.err != nil {
			return answer.err
		}
		return answer.send(w)
	})
	a.router.With(a.guard(op.Method, op.Path)).Method(op.Method, op.Path, route)
}

// ServeHTTP is huma's way to the router.
func (a adapter) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.router.ServeHTTP(w, r) }

// answer holds what huma writes until it is known to be no error. It is the
// whole answer: these are small.
type answer struct {
	header http.Header
	status int
	buf    bytes.Buffer
	err    error // the first one; the answer is then a problem
}

type answerKey struct{}

// Header implements http.ResponseWriter.
func (a *answer) Header() http.Header { return a.header }

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) { a.status = status }

// Write implements http.ResponseWriter.
func (a *answer) Write(p []byte) (int, error) { return a.buf.Write(p) }

func (a *answer) send(w http.ResponseWriter) error {
	h := w.Header()
	for name, values := range a.header {
		h[name] = values
	}
	h.Set("Cache-Control", "no-store")
	if a.status != http.StatusNoContent {
		h.Set("Content-Length", strconv.Itoa(a.buf.Len()))
	}
	w.WriteHeader(a.status)
	if _, err := w.Write(a.buf.Bytes()); err != nil && a.buf.Len() > 0 {
		return fmt.Errorf("write answer: %w", err)
	}
	return nil
}

// report leaves the error to the route's end and returns what huma needs to
// stop.
func report(ctx context.Context, err error) huma.StatusError {
	if a, ok := ctx.Value(answerKey{}).(*answer); ok && a.err == nil {
		a.err = err
	}
	return &problem{httpserver.Problem{Status: fault.ClassOf(err).HTTPStatus()}}
}

var useOurErrors = sync.OnceFunc(func() {
	huma.NewError = func(status int, _ string, _ ...error) huma.StatusError {
		return &problem{httpserver.Problem{Status: status}} // describes the shape
	}
	huma.NewErrorWithContext = func(ctx huma.Context, status int, message string, errs ...error) huma.StatusError {
		return report(ctx.Context(), found(ctx.Operation(), status, message, errs))
	}
})

// problem is the shape of errors in the description.
type problem struct{ httpserver.Problem }

// GetStatus implements huma.StatusError.
func (p *problem) GetStatus() int { return p.Status }

// Error implements huma.StatusError.
func (p *problem) Error() string { return http.StatusText(p.Status) }
