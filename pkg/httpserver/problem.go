package httpserver

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"pganalytics/pkg/fault"
)

// MaxFields is the largest number of faulty places that a problem lists.
const MaxFields = 100

// defaultRetryAfter is told to senders when the error does not know better:
// long enough for a restart or a failover of a neighbour to have begun, short
// enough that a push still arrives within its interval.
const defaultRetryAfter = 5 * time.Second

// Problem is the body of every error answer, as RFC 9457 has it.
type Problem struct {
	Type      string        `json:"type"` // urn:pganalytics:error:<code>
	Title     string        `json:"title"`
	Status    int           `json:"status"`
	Code      string        `json:"code"` // stable, listed in docs/errors.md
	Detail    string        `json:"detail,omitempty"`
	RequestID string        `json:"request_id"`
	Errors    []fault.Field `json:"errors,omitempty"`

	// ServerTime is our clock, for a sender that has to find out how wrong its
	// own is. Only in answers with status 422.
	ServerTime time.Time `json:"server_time,omitzero"`
}

// Handle makes a handler of a function that returns its errors. An error
// becomes a problem; see WriteProblem. A function that has begun its answer
// may return an error too: it is logged, and the answer stays as it is.
func Handle(fn func(w http.ResponseWriter, r *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := fn(w, r); err != nil {
			WriteProblem(w, r, err)
		}
	}
}

// WriteProblem answers with err as its class has it in pkg/fault, and leaves
// the error itself to the access log. Only the Code, Detail and Fields of a
// *fault.Error reach the sender; an unclassified error is 503 "internal" with
// the request id and nothing else.
func WriteProblem(w http.ResponseWriter, r *http.Request, err error) {
	p, retryAfter := problemOf(err)
	rec := recordOf(r.Context())
	p.RequestID = rec.id
	rec.err, rec.code = err, p.Code
	rec.clientGone = errors.Is(r.Context().Err(), context.Canceled)
	if rec.status != 0 {
		return
	}
	body, marshalErr := json.Marshal(p)
	if marshalErr != nil {
		// Text that is not UTF-8 in a detail is a bug; the sender still has to
		// learn the status.
		rec.err = errors.Join(err, fmt.Errorf("marshal problem: %w", marshalErr))
		body = nil
	}
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	switch p.Status {
	case http.StatusUnauthorized:
		if h.Get("WWW-Authenticate") == "" {
			h.Set("WWW-Authenticate", challenge(r))
		}
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(retryAfter.Seconds()))))
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(body) // a client that left needs no answer
}

func problemOf(err error) (Problem, time.Duration) {
	class := fault.ClassOf(err)
	p := Problem{Status: class.HTTPStatus(), Code: class.String()}
	retryAfter := defaultRetryAfter
	if e, ok := errors.AsType[*fault.Error](err); ok {
		if e.Code != "" {
			p.Code = e.Code
		}
		p.Detail = e.Detail
		p.Errors = e.Fields[:min(len(e.Fields), MaxFields)]
		if e.RetryAfter > 0 {
			retryAfter = e.RetryAfter
		}
	}
	if class == fault.Unprocessable {
		p.ServerTime = time.Now().UTC()
	}
	p.Type = "urn:pganalytics:error:" + p.Code
	p.Title = title(p.Code)
	return p, retryAfter
}

// title makes "Clock skew" of "clock_skew": a problem type's title is as
// stable as its code.
func title(code string) string {
	words := strings.ReplaceAll(code, "_", " ")
	return strings.ToUpper(words[:1]) + words[1:]
}

// challenge is what RFC 6750 wants to be told: without a credential only the
// scheme, with one that it is no good.
func challenge(r *http.Request) string {
	if r.Header.Get("Authorization") == "" {
		return `Bearer realm="pganalytics"`
	}
	return `Bearer realm="pganalytics", error="invalid_token"`
}
