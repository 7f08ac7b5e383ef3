package push

import (
	"cmp"
	"slices"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
)

// Report is what the sender is told about its body.
type Report struct {
	ItemsAccepted int
	RowsAccepted  int
	Rejected      []Rejection // by index, at most 100; never nil
	RejectedMore  int         // refused items that are not listed
	ItemCount     int
	Hostname      string
	Version       string
}

// Rejection is one refused item with the first fault that was found in it.
type Rejection struct {
	Index   int    `json:"index"`   // in metrics, or in sections, from 0
	Type    string `json:"type"`    // the item's family; empty when it has none or no well-formed one
	Pointer string `json:"pointer"` // JSON pointer to the faulty place
	Code    string `json:"code"`    // stable
	Reason  string `json:"reason"`  // for people, never the value itself
}

// Judge completes the report by the refused items, and refuses a batch without
// one good item. A batch of none is good only as a number of its sender's, and
// has nothing to report otherwise. Items stand at pointer.
func (r *Report) Judge(b *batch.Batch, refused []Rejection, pointer string) (*Report, error) {
	if r.ItemCount == 0 && b.Sequence == 0 {
		return nil, Invalid(pointer, CodeMetricsEmpty, "a batch without epoch and sequence must hold at least one item")
	}
	slices.SortFunc(refused, func(a, b Rejection) int { return cmp.Compare(a.Index, b.Index) })
	r.Rejected = append([]Rejection{}, refused[:min(len(refused), maxRejections)]...) // a list in JSON, not null
	r.RejectedMore = len(refused) - len(r.Rejected)
	if r.ItemCount > 0 && r.ItemsAccepted == 0 {
		return r, r.nothingAccepted()
	}
	return r, nil
}

// nothingAccepted returns the fault of a body without one good item.
func (r *Report) nothingAccepted() *fault.Error {
	e := fault.New(fault.Invalid, CodeNothingAccepted, "no item of the batch can be accepted")
	for _, rejection := range r.Rejected {
		e.Fields = append(e.Fields, fault.Field{Pointer: rejection.Pointer, Code: rejection.Code, Detail: rejection.Reason})
	}
	return e
}
