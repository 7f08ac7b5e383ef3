package gateway

import (
	"errors"
	"fmt"
	"time"

	"pganalytics/pkg/batch/push"
)

// Config sets the gateway.
type Config struct {
	// Limits bound what one body may hold, and how old it may be. Defaults to
	// push.DefaultLimits.
	Limits push.Limits

	// MaxWireBytes is the largest body in bytes as it is sent, compressed or
	// not. Defaults to 16 MiB. Smaller than what senders make, and their
	// batches are refused for good.
	MaxWireBytes int64

	// MaxInFlightBytes bounds what all pushes together hold in memory: the
	// bytes of their bodies and of the batches made of them while they are read,
	// twice the encoded batch while it is published, or once and the body that
	// a native batch is part of. A push beyond it is answered 503 and comes again.
	// Defaults to 64 MiB. Too low, and a fleet that comes back after an outage
	// takes long to catch up; too high, and it takes the process down.
	MaxInFlightBytes int64

	// PublishTimeout is how long the stream may take to confirm a batch. After
	// it the outcome is unknown and the sender is told to repeat. Defaults to
	// 10s. The listener must let an answer take longer than that.
	PublishTimeout time.Duration

	// CheckIn is when a collector shall come back even if it has nothing to
	// send, in whole seconds. Defaults to 60s.
	CheckIn time.Duration
}

func (c Config) withDefaults() Config {
	if c.Limits == (push.Limits{}) {
		c.Limits = push.DefaultLimits()
	}
	if c.MaxWireBytes == 0 {
		c.MaxWireBytes = 16 << 20
	}
	if c.MaxInFlightBytes == 0 {
		c.MaxInFlightBytes = 64 << 20
	}
	if c.PublishTimeout == 0 {
		c.PublishTimeout = 10 * time.Second
	}
	if c.CheckIn == 0 {
		c.CheckIn = time.Minute
	}
	return c
}

// Validate reports all faults. Zero values stand for the defaults.
func (c Config) Validate() error {
	c = c.withDefaults()
	errs := []error{c.Limits.Validate()}
	if c.MaxWireBytes < 0 {
		errs = append(errs, fmt.Errorf("max-wire-bytes: must be positive, is %d", c.MaxWireBytes))
	}
	// A body that does not fit alone would be refused as retryable for ever.
	for _, need := range []struct {
		what  string
		bytes int64
	}{
		{"max-body-bytes and max-encoded-bytes", c.Limits.MaxBodyBytes + int64(c.Limits.MaxEncodedBytes) + requestCost},
		{"twice max-encoded-bytes", 2 * int64(c.Limits.MaxEncodedBytes)},
	} {
		if c.MaxInFlightBytes < need.bytes+maxWindow {
			errs = append(errs, fmt.Errorf("max-in-flight-bytes: must be at least %d above %s, %d, is %d",
				maxWindow, need.what, need.bytes, c.MaxInFlightBytes))
		}
	}
	if c.PublishTimeout < 0 {
		errs = append(errs, fmt.Errorf("publish-timeout: must be positive, is %s", c.PublishTimeout))
	}
	if c.CheckIn < time.Second {
		errs = append(errs, fmt.Errorf("check-in: must be at least 1s, is %s", c.CheckIn))
	}
	return errors.Join(errs...)
}
