package service

import (
	"context"
	"errors"
	"fmt"

	"pganalytics/pkg/bus"
	"pganalytics/pkg/fault"
	"pganalytics/pkg/ingester"
)

// gapName is the hold on what a database that went back may lack. There is one
// at a time, which grows when the database goes back again.
const gapName = "rewind"

// gapHolds keeps the ingesters' gap among the stream's holds.
type gapHolds struct{ holds *bus.Holds }

// Take joins the gap with the one that is held.
func (h gapHolds) Take(ctx context.Context, gap ingester.Gap) error {
	_, err := h.holds.Take(ctx, bus.Hold{
		Name: gapName, Incarnation: gap.Incarnation, From: gap.From, To: gap.To,
		Reason: "the database is behind the stream", By: "ingester",
	})
	return err
}

// Held returns the gap that is held.
func (h gapHolds) Held(ctx context.Context) (ingester.Gap, bool, error) {
	hold, held, err := h.find(ctx)
	return ingester.Gap{Incarnation: hold.Incarnation, From: hold.From, To: hold.To}, held, err
}

// Release ends the hold if it is still for that gap.
func (h gapHolds) Release(ctx context.Context, gap ingester.Gap) error {
	hold, held, err := h.find(ctx)
	if err != nil || !held {
		return err
	}
	if hold.Incarnation != gap.Incarnation || hold.From != gap.From || hold.To != gap.To {
		return fault.Wrap(fault.Conflict, errors.New("the gap has grown meanwhile"))
	}
	return h.holds.Release(ctx, hold)
}

func (h gapHolds) find(ctx context.Context) (bus.Hold, bool, error) {
	list, err := h.holds.List(ctx)
	if err != nil {
		return bus.Hold{}, false, err
	}
	for _, hold := range list {
		if hold.Name == gapName {
			return hold, true, nil
		}
	}
	return bus.Hold{}, false, nil
}

// history reads the stream again.
type history struct{ bus *bus.Bus }

// Last returns the newest sequence of the stream.
func (h history) Last(ctx context.Context) (string, uint64, error) {
	status, err := h.bus.Status(ctx)
	return status.Incarnation, status.LastSequence, err
}

// Newest returns a reader of the newest messages that were handed out.
func (h history) Newest(ctx context.Context, acked int) (ingester.Reader, int, error) {
	return h.bus.Newest(ctx, acked)
}

// Read returns a reader over the gap.
func (h history) Read(ctx context.Context, gap ingester.Gap) (ingester.Reader, error) {
	r, err := h.bus.Reader(ctx, gap.From, gap.To)
	if err != nil {
		return nil, err
	}
	if r.Incarnation() != gap.Incarnation {
		return nil, fault.Wrap(fault.Conflict, fmt.Errorf("the stream is of %s, the gap of %s", r.Incarnation(), gap.Incarnation))
	}
	return r, nil
}
