// Package pulled holds what collectors pull and what they say about it, on
// its way between operators, database, bucket, gateways and collectors:
// versions of documents, requests to resend batches, and states.
//
// Invariant: a version is replaced only by a newer one, wherever it lies. So
// neither a bucket made anew, nor a database from a backup, nor a gateway that
// is behind lets a collector go back to what was changed since.
package pulled

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// Version is one version of a document.
type Version struct {
	Number    int64     `json:"version"`               // from 1, over all documents of the installation
	Collector uuid.UUID `json:"collector_id,omitzero"` // zero: the default, for collectors without a document of their own
	Document  string    `json:"document"`              // YAML or JSON as it was written; empty: there is none any more
	Author    string    `json:"author"`
	Comment   string    `json:"comment"`
	CreatedAt time.Time `json:"created_at"`
}

// Record is a version as it lies in the bucket.
type Record struct {
	Version  int64  `json:"version"`
	Document string `json:"document"`
}

// Effective is the record that counts for a collector with these two; either
// may be zero. Its version only ever grows: that of a document which was taken
// back is not undercut by the default's that counts again.
func Effective(own, fleet Record) Record {
	if own.Document != "" {
		return own
	}
	return Record{Version: max(own.Version, fleet.Version), Document: fleet.Document}
}

// Answer is what a collector gets from a gateway.
type Answer struct {
	CollectorID uuid.UUID `json:"collector_id"`
	Version     int64     `json:"version"`  // 0: nothing was ever set
	Document    string    `json:"document"` // empty: the collector's own file alone counts
	Resend      *Resend   `json:"resend,omitempty"`
}

// Resend asks a collector for batches that it may still have.
type Resend struct {
	ID     uuid.UUID `json:"id"` // the collector does each request once
	Ranges []Range   `json:"ranges"`
	By     string    `json:"by,omitzero"`
	At     time.Time `json:"at,omitzero"`
}

// MaxRanges is the most ranges of one request. They fill 64 KiB at most.
const MaxRanges = 500

// Range is numbers that a collector gave its batches, both ends included.
type Range struct {
	Epoch uuid.UUID `json:"epoch"`
	First uint64    `json:"first"`
	Last  uint64    `json:"last"`
}

// State is what a collector says about what it pulled.
type State struct {
	Applied int64     `json:"applied"`          // the version that it runs; 0: none
	Refused int64     `json:"refused,omitzero"` // a newer one that it does not take
	Detail  string    `json:"detail,omitzero"`  // why, or what it passed over of the one that it runs
	Resent  *Resent   `json:"resent,omitempty"` // the last request that it has done
	At      time.Time `json:"at"`               // when a gateway first heard this
}

// Same reports whether two states say the same.
func (s State) Same(other State) bool {
	if (s.Resent == nil) != (other.Resent == nil) || s.Resent != nil && *s.Resent != *other.Resent {
		return false
	}
	return s.Applied == other.Applied && s.Refused == other.Refused && s.Detail == other.Detail
}

// MaxDetail bounds State.Detail in bytes.
const MaxDetail = 1000

// Resent is what came of a request to resend: batches found, and numbers that
// the collector does not have any more.
type Resent struct {
	ID      uuid.UUID `json:"id"`
	Found   int       `json:"found"`
	Missing int       `json:"missing"`
}

// The keys of the bucket: one of each kind per collector, and that of the
// default's document.
const (
	documentKey = "document."
	resendKey   = "resend."
	stateKey    = "state."
	fleet       = "default"
)

func keyOf(kind string, collector uuid.UUID) string {
	if collector == uuid.Nil {
		return kind + fleet
	}
	return kind + collector.String()
}

func decode[T any](key string, value []byte) (T, error) {
	var v T
	if err := json.Unmarshal(value, &v); err != nil {
		return v, fmt.Errorf("decode %s: %w", key, err)
	}
	return v, nil
}
