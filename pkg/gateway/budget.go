package gateway

import (
	"sync/atomic"
	"time"

	"pganalytics/pkg/fault"
)

// budget bounds the bytes that all pushes together hold in memory. Nobody waits
// for it: a sender that has the batch on its disk waits better than we do.
type budget struct {
	max  int64
	used atomic.Int64
}

// lease is one push's part of the budget. It belongs to one goroutine.
type lease struct {
	budget *budget
	held   int64
}

// grow books n more bytes, or none and returns false.
func (l *lease) grow(n int64) bool {
	if l.budget.used.Add(n) > l.budget.max {
		l.budget.used.Add(-n)
		return false
	}
	l.held += n
	return true
}

// set replaces what is booked, without asking.
func (l *lease) set(n int64) {
	l.budget.used.Add(n - l.held)
	l.held = n
}

// busy asks the sender to come again when the pushes in flight, which take
// milliseconds each, are done.
func busy() error {
	return &fault.Error{
		Class: fault.Unavailable, Code: "busy", RetryAfter: 2 * time.Second,
		Detail: "Too many bytes are being received at once; send the batch again.",
	}
}
