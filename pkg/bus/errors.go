package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pganalytics/pkg/fault"
)

// Error codes of the server that the client library has no name for.
const (
	codeInsufficientResources jetstream.ErrorCode = 10023
	codeStorageExceeded       jetstream.ErrorCode = 10047
	codeStoreFailed           jetstream.ErrorCode = 10077 // a limit of the stream; with ours, MaxBytes
	codeInProcess             jetstream.ErrorCode = 10158 // same message id, first copy not yet stored
)

// How long a sender should stay away. A full stream is emptied by loading,
// which takes longer than a lost connection.
const (
	retrySoon  = time.Second
	retryLater = 5 * time.Second
	retryFull  = 30 * time.Second
)

// apiCode returns the server's error code, 0 if the server did not answer.
func apiCode(err error) jetstream.ErrorCode {
	if e, ok := errors.AsType[*jetstream.APIError](err); ok {
		return e.ErrorCode
	}
	if e, ok := errors.AsType[jetstream.JetStreamError](err); ok && e.APIError() != nil {
		return e.APIError().ErrorCode
	}
	return 0
}

// unavailable classifies whatever went wrong while asking the server for
// something: it may work later, and nothing was decided. nil stays nil.
func unavailable(operation string, err error) error {
	if err == nil {
		return nil
	}
	return &fault.Error{
		Class:      fault.Unavailable,
		Code:       fault.Unavailable.String(),
		RetryAfter: retryLater,
		Err:        fmt.Errorf("%s: %w", operation, err),
	}
}

// classifyPublish returns the class of a failed publish with the metric label
// that names its cause. JetStream's own HTTP-like codes never become ours: its
// 409 "in process" means that the outcome is open.
func classifyPublish(err error) (*fault.Error, result) {
	e := &fault.Error{
		Class:      fault.Unavailable,
		Code:       fault.Unavailable.String(),
		Detail:     "The stream did not confirm the batch; send it again.",
		RetryAfter: retryLater,
		Err:        err,
	}
	switch code := apiCode(err); {
	case code == codeStoreFailed || code == codeStorageExceeded || code == codeInsufficientResources:
		e.Code, e.Detail, e.RetryAfter = "stream_full", "The stream is full; the batch is not stored.", retryFull
		return e, resultFull
	case code == codeInProcess:
		e.RetryAfter = retrySoon
		return e, resultInProcess
	case code != 0:
		// Also a message limit that someone set on the stream: the batch
		// itself is within ours, which Publish has checked.
		return e, resultRefused
	case errors.Is(err, nats.ErrMaxPayload):
		return tooLarge(err), resultTooLarge
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		return e, resultNoStream
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return e, resultUnknown
	default:
		return e, resultDisconnected
	}
}

func tooLarge(err error) *fault.Error {
	return &fault.Error{
		Class:  fault.TooLarge,
		Code:   "batch_too_large",
		Detail: "The encoded batch is larger than the stream takes; send smaller batches.",
		Err:    err,
	}
}
