package replay

import (
	"context"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
	"pganalytics/pkg/ingester"
)

// What is read at once. Envelopes stay packed, so this bounds memory.
const (
	readMessages = 2000
	readBytes    = 16 << 20
)

// state is what a replay has to do with a message.
type state uint8

const (
	missing    state = iota + 1 // it is not in the ledger
	stored                      // it is, or is older than the ledger can tell
	unselected                  // nobody asked for it
	unreadable                  // it is no batch, and lies in the dead letters since it was first read
	unknown                     // a newer gateway wrote it; it needs a newer command
)

// seen is a message that was looked at.
type seen struct {
	batch.Delivery
	batch *batch.Batch // nil if it could not be read
	state state
}

// Jump is a range of sequences that are no longer on the stream, both included.
type Jump struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}

// manyJumps is how many are told one by one.
const manyJumps = 10

// scan reads a range and looks its batches up in the ledger. After an error
// that is fault.Unavailable it goes on where it was.
type scan struct {
	reader ingester.Reader
	ledger Ledger
	want   Selection
	at     uint64           // the next sequence
	chunk  []batch.Delivery // read, but not looked up yet
	jumps  []Jump
}

func newScan(r ingester.Reader, l Ledger, want Selection, first uint64) *scan {
	return &scan{reader: r, ledger: l, want: want, at: first}
}

// next returns the next messages in the stream's order, none at the end.
func (s *scan) next(ctx context.Context) ([]seen, error) {
	if len(s.chunk) == 0 {
		var err error
		if s.chunk, err = s.reader.Next(ctx, readMessages, readBytes); err != nil || len(s.chunk) == 0 {
			return nil, err
		}
	}
	all := make([]seen, len(s.chunk))
	var items []batch.Item
	var places []int // of the items in all
	for i, d := range s.chunk {
		all[i] = s.look(d)
		if all[i].state == stored {
			items, places = append(items, batch.Item{Batch: all[i].batch, Position: d.Position}), append(places, i)
		}
	}
	lacking, err := s.ledger.Missing(ctx, items)
	if err != nil {
		return nil, err
	}
	for _, i := range lacking {
		all[places[i]].state = missing
	}
	for i := range all {
		s.pass(all[i].Sequence)
		s.at = all[i].Sequence + 1
	}
	s.chunk = nil
	return all, nil
}

// look takes a batch that is asked for as stored, until the ledger was asked.
func (s *scan) look(d batch.Delivery) seen {
	b, err := batch.Unmarshal(d.Payload)
	switch {
	case fault.ClassOf(err) == fault.Behind:
		return seen{d, nil, unknown}
	case err != nil:
		return seen{d, nil, unreadable}
	case !s.want.takes(b):
		return seen{d, b, unselected}
	}
	return seen{d, b, stored}
}

// pass notes what is missing before a sequence.
func (s *scan) pass(sequence uint64) {
	if sequence > s.at {
		if len(s.jumps) < manyJumps {
			s.jumps = append(s.jumps, Jump{s.at, sequence - 1})
		} else {
			s.jumps[manyJumps-1].To = sequence - 1
		}
	}
}
