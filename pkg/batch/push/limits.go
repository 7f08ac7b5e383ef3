package push

import (
	"errors"
	"fmt"
	"time"
)

// Limits bound what one body may hold and how old it may be.
type Limits struct {
	// MaxBodyBytes is the largest body in bytes, after decompression.
	// Defaults to 32 MiB. Smaller than what senders make, their batches are
	// refused for good; the memory of a request does not depend on it: JSON is
	// decoded as it comes as long as its members are in the documented order,
	// and a native body is not read further than MaxEncodedBytes and a little.
	MaxBodyBytes int64
	// MaxEncodedBytes is the largest batch in bytes as it goes onto the
	// stream. Defaults to 8 MiB less 64 KiB. It must stay below the stream
	// server's max_payload, or batches are accepted that cannot be published.
	MaxEncodedBytes int
	// MaxItems is the largest number of entries of metrics. Defaults to 4,096.
	MaxItems int
	// MaxRows is the largest number of rows in a body. Defaults to 200,000,
	// more than MaxEncodedBytes has room for.
	MaxRows int
	// MaxTextBytes is the longest text value in bytes of UTF-8. Defaults to
	// 1 MiB. Longer ones refuse their item. Text of key columns is bounded
	// lower, by what an index entry can hold.
	MaxTextBytes int
	// MaxAge is how far the time of a batch may lie in the past. Defaults to
	// 30 days. It must be shorter than the ledger is kept, or a batch sent
	// again after its ledger row was pruned would be stored twice.
	MaxAge time.Duration
	// MaxAhead is how far times may lie in the future: the batch's against our
	// clock, a row's against the batch. Defaults to 10 minutes.
	MaxAhead time.Duration
}

// DefaultLimits returns the documented defaults.
func DefaultLimits() Limits {
	return Limits{
		MaxBodyBytes:    32 << 20,
		MaxEncodedBytes: 8<<20 - 64<<10,
		MaxItems:        4096,
		MaxRows:         200_000,
		MaxTextBytes:    1 << 20,
		MaxAge:          30 * 24 * time.Hour,
		MaxAhead:        10 * time.Minute,
	}
}

// Validate reports all limits that are not positive.
func (l Limits) Validate() error {
	var errs []error
	for _, limit := range []struct {
		flag  string
		value int64
		shown any
	}{
		{"max-body-bytes", l.MaxBodyBytes, l.MaxBodyBytes},
		{"max-encoded-bytes", int64(l.MaxEncodedBytes), l.MaxEncodedBytes},
		{"max-items", int64(l.MaxItems), l.MaxItems},
		{"max-rows", int64(l.MaxRows), l.MaxRows},
		{"max-text-bytes", int64(l.MaxTextBytes), l.MaxTextBytes},
		{"max-age", int64(l.MaxAge), l.MaxAge},
		{"max-ahead", int64(l.MaxAhead), l.MaxAhead},
	} {
		if limit.value <= 0 {
			errs = append(errs, fmt.Errorf("%s: must be positive, is %v", limit.flag, limit.shown))
		}
	}
	return errors.Join(errs...)
}

// Limits that are part of the contract or of PostgreSQL and not for operators
// to change.
const (
	maxNameBytes   = 255   // server and host names, versions, label values
	MaxKeyBytes    = 2_000 // text of a key column; a btree entry holds at most 2,704 bytes
	MaxLabels      = 64
	maxRefused     = 1_000 // refused numbers in one body
	maxRejections  = 100   // listed in an answer; the rest is counted
	maxPrintedName = 63    // the longest name that PostgreSQL knows
)

// Window returns the first and the last time, in microseconds since 1970, that
// a row may have in a batch sent at that time, of a family that is kept so long.
func (l Limits) Window(sentAt time.Time, retention time.Duration) (first, last int64) {
	return sentAt.Add(-retention).UnixMicro(), sentAt.Add(l.MaxAhead).UnixMicro()
}
