package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

// pullRequest is the body of a request for messages, by count, bytes and time.
type pullRequest struct {
	Batch    int           `json:"batch"`
	MaxBytes int           `json:"max_bytes,omitempty"` // the server counts subject and headers too
	Expires  time.Duration `json:"expires"`             // nanoseconds
}

// pullGrace is how long after a request's end we listen for the server's word
// that it is over. That word comes after all of the request's messages, however
// slow the way; giving up earlier would leave what is under way unhandled for
// the whole of AckWait. This is why the client library's fetch, which ends by
// the clock, is not used.
const pullGrace = 5 * time.Second

// Words with which the server ends a request before its count is reached.
const (
	statusNoMessages = "404"
	statusExpired    = "408"
	statusConflict   = "409" // most often: the next message does not fit into MaxBytes
)

var errConflict = errors.New("the server ended the request early")

// pull sends one request and returns its messages once it is over. Messages
// may come with an error: they are the caller's all the same.
func (c *Consumer) pull(ctx context.Context, request pullRequest) ([]*nats.Msg, error) {
	nc := c.bus.nc
	// All that may come and the last word: the library drops what does not
	// fit into the channel.
	incoming := make(chan *nats.Msg, request.Batch+1)
	inbox := nc.NewInbox()
	sub, err := nc.ChanSubscribe(inbox, incoming)
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Unsubscribe() }() // fails only if the connection is closed
	body, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	if err := nc.PublishRequest(c.next, inbox, body); err != nil {
		return nil, err
	}
	ctx, done := c.bus.waiting.bound(ctx, request.Expires+pullGrace)
	defer done()

	var got []*nats.Msg
	for size := 0; len(got) < request.Batch && (request.MaxBytes == 0 || size < request.MaxBytes); {
		select {
		case <-ctx.Done():
			return got, context.Cause(ctx)
		case msg := <-incoming:
			switch status := statusOf(msg); status {
			case "":
				got = append(got, msg)
				size += msg.Size()
			case statusExpired, statusNoMessages:
				return got, nil
			case statusConflict:
				return got, fmt.Errorf("%w: %s", errConflict, msg.Header.Get("Description"))
			default:
				return got, fmt.Errorf("request for messages: status %s %s", status, msg.Header.Get("Description"))
			}
		}
	}
	return got, nil
}

// statusOf returns the status of a message that the server itself has
// written, and nothing for one from the stream.
func statusOf(msg *nats.Msg) string {
	if len(msg.Data) > 0 {
		return ""
	}
	return msg.Header.Get("Status")
}
