// Package fault holds the classes of error that decide what happens to a
// batch. The same class becomes an HTTP status in the gateway, a verb towards
// the stream in the ingester and a label of a metric in both. An error is
// classified once, where its cause is known, and never by its text.
package fault

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// Class says what an error means to whoever has to act on it.
type Class uint8

// The classes. The zero value is Internal: an error that nobody classified is
// a fault of ours and never loses data.
const (
	Internal         Class = iota // a bug or an unclassified cause
	Invalid                       // the input can never be accepted
	Unauthenticated               // no, or no valid, credential
	Forbidden                     // a valid credential for something else
	NotFound                      // no such thing
	MethodNotAllowed              // the route exists, not with this method
	Conflict                      // contradicts what is already there
	Precondition                  // the sender's copy is out of date
	TooLarge                      // over a documented limit
	UnsupportedMedia              // a content type or encoding we do not speak
	Unprocessable                 // understood, not acceptable now
	Throttled                     // this sender is over its quota
	Unavailable                   // a neighbour is away; the same thing may succeed later
	Contended                     // lost a race (deadlock, lock timeout); retry at once
	Behind                        // newer than this process knows; another or a later one may know
)

// Verb is what the ingester does with a message whose load failed.
type Verb uint8

// The verbs. Retry is the zero value: in doubt a message stays on the stream.
const (
	Retry Verb = iota // load it again
	Pause             // stop fetching until the store answers a probe
	Bury              // move it to the dead letters
	Aside             // keep it waiting, let its neighbours pass
)

// String returns the verb as it stands in logs and metrics.
func (v Verb) String() string {
	return [...]string{"retry", "pause", "bury", "aside"}[v]
}

type row struct {
	name   string
	status int
	verb   Verb
}

// The one table: class, metric label, HTTP status, verb towards the stream.
var table = [...]row{
	Internal:         {"internal", http.StatusServiceUnavailable, Retry},
	Invalid:          {"invalid", http.StatusBadRequest, Bury},
	Unauthenticated:  {"unauthenticated", http.StatusUnauthorized, Retry},
	Forbidden:        {"forbidden", http.StatusForbidden, Retry},
	NotFound:         {"not_found", http.StatusNotFound, Retry},
	MethodNotAllowed: {"method_not_allowed", http.StatusMethodNotAllowed, Retry},
	Conflict:         {"conflict", http.StatusConflict, Bury},
	Precondition:     {"precondition_failed", http.StatusPreconditionFailed, Retry},
	TooLarge:         {"too_large", http.StatusRequestEntityTooLarge, Bury},
	UnsupportedMedia: {"unsupported_media_type", http.StatusUnsupportedMediaType, Retry},
	Unprocessable:    {"unprocessable", http.StatusUnprocessableEntity, Retry},
	Throttled:        {"throttled", http.StatusTooManyRequests, Retry},
	Unavailable:      {"unavailable", http.StatusServiceUnavailable, Pause},
	Contended:        {"contended", http.StatusServiceUnavailable, Retry},
	Behind:           {"behind", http.StatusServiceUnavailable, Aside},
}

// String returns the class as it stands in logs, metrics and default codes.
func (c Class) String() string { return table[c].name }

// HTTPStatus returns the status that a sender sees. Internal is 503, not 500:
// a sender must repeat, not give up, when the fault is ours.
func (c Class) HTTPStatus() int { return table[c].status }

// Verb returns what the ingester does with a message that failed this way.
func (c Class) Verb() Verb { return table[c].verb }

// Field names one faulty place in an input. It never holds the input itself.
type Field struct {
	Pointer string `json:"pointer"` // JSON pointer into the request body, or a header or parameter name
	Code    string `json:"code"`    // stable, listed in docs/errors.md
	Detail  string `json:"detail"`  // for people
}

// Error is a classified error. Code and Detail are made for the sender and
// hold neither input nor inner causes; Err is for our logs only.
type Error struct {
	Class      Class
	Code       string        // stable, listed in docs/errors.md; defaults to the class's name
	Detail     string        // one sentence for the sender
	Fields     []Field       // at most as many as the answer may list
	RetryAfter time.Duration // for Throttled and Unavailable; 0 leaves it to the server
	Err        error         // the cause, never shown to the sender
}

// Error returns code, detail and cause for logs.
func (e *Error) Error() string {
	s := e.Code
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// New makes a classified error with a message for the sender.
func New(class Class, code, detail string) *Error {
	return &Error{Class: class, Code: code, Detail: detail}
}

// Wrap classifies a cause that the sender must not see. It returns nil for a
// nil error.
func Wrap(class Class, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Class: class, Code: class.String(), Err: err}
}

// ClassOf returns the class of the outermost classified error in err's chain.
// A context that ended is Unavailable: the work was not done and may be later.
func ClassOf(err error) Class {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Class
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return Unavailable
	}
	return Internal
}
