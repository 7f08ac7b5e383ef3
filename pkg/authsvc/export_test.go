package authsvc

import (
	"context"
	"time"
)

// Hashing as long as in production would make the tests ten times as long.
func init() { passwordCost = 4 }

// WithPasswordCost changes the cost for a test that is not parallel to others.
func WithPasswordCost(cost int) (restore func()) {
	former := passwordCost
	passwordCost = cost
	return func() { passwordCost = former }
}

// FlushRefusals writes down all that was refused so far.
func (s *Service) FlushRefusals(ctx context.Context) error {
	return s.flushRefusals(ctx, s.cfg.Now().Add(time.Minute))
}

// Publish is publish, for a test of what is published late.
var Publish = (*Service).publish
