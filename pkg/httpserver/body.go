package httpserver

import (
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"pganalytics/pkg/fault"
)

// limitBody puts a deadline on every body, so that a sender that stalls or
// trickles holds neither a connection nor memory for long. Size is the
// handler's business.
func (s *Server) limitBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body != nil && r.Body != http.NoBody {
			now := time.Now()
			b := &body{
				ReadCloser: r.Body, control: http.NewResponseController(w), record: recordOf(r.Context()),
				stall: s.cfg.StallTimeout, end: now.Add(s.cfg.BodyTimeout),
			}
			// Set before the handler runs: net/http reads the rest of a body
			// that the handler left unread.
			b.extend(now)
			r.Body = b
		}
		next.ServeHTTP(w, r)
	})
}

// body is a request body whose read deadline moves with its progress. Its
// errors other than io.EOF are *fault.Error of class Unavailable: the sender
// may repeat the same body.
type body struct {
	io.ReadCloser
	control  *http.ResponseController
	record   *record
	stall    time.Duration
	end      time.Time
	extended time.Time
	ended    bool
}

func (b *body) Read(p []byte) (int, error) {
	// Moving the deadline costs a timer; an eighth of it is exact enough.
	if now := time.Now(); !b.ended && now.Sub(b.extended) > b.stall/8 {
		b.extend(now)
	}
	n, err := b.ReadCloser.Read(p)
	b.record.bytesIn += int64(n)
	// After the end net/http clears the deadline and watches the connection for
	// a client that leaves. A deadline set now would be taken for that.
	b.ended = err != nil
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, io.EOF):
		return n, io.EOF
	case errors.Is(err, os.ErrDeadlineExceeded):
		return n, &fault.Error{
			Class: fault.Unavailable, Code: "body_timeout",
			Detail: "The body did not arrive in time.", Err: err,
		}
	default:
		return n, &fault.Error{
			Class: fault.Unavailable, Code: "body_incomplete",
			Detail: "The body ended before it was complete.", Err: err,
		}
	}
}

// extend moves the deadline. Writers that know no deadlines are those of tests
// without a connection.
func (b *body) extend(now time.Time) {
	b.extended = now
	deadline := now.Add(b.stall)
	if deadline.After(b.end) {
		deadline = b.end
	}
	_ = b.control.SetReadDeadline(deadline)
}
