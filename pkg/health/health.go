// Package health says what is wrong with an installation and what to do about
// it first. It is a pure function of facts that somebody else has gathered: it
// asks nobody, and knows neither the stream nor the database.
package health

import (
	"encoding/json"
	"strings"
	"time"
)

// Facts is what one look at an installation found.
type Facts struct {
	Serve      *Serve      `json:"serve,omitempty"`      // nil when no serve has run on this host
	Stream     *Stream     `json:"stream,omitempty"`     // nil when NATS did not answer
	Database   *Database   `json:"database,omitempty"`   // nil when the database did not answer
	Collectors *Collectors `json:"collectors,omitempty"` // nil when the database did not answer

	// What came instead of an answer, for people.
	StreamError   string `json:"stream_error,omitempty"`
	DatabaseError string `json:"database_error,omitempty"`
}

// Serve is the process that runs all services on this host.
type Serve struct {
	Ready  bool   `json:"ready"`
	Detail string `json:"detail,omitempty"` // what it misses, for people
}

// Stream is the stream of batches, by the clock of its server.
type Stream struct {
	Batches       uint64 `json:"batches"`
	Bytes         uint64 `json:"bytes"`
	MaxBytes      int64  `json:"max_bytes"` // at which it refuses more
	FirstSequence uint64 `json:"first_sequence"`
	LastSequence  uint64 `json:"last_sequence"`
	Window        Span   `json:"window_seconds"` // age of the oldest batch that can be replayed

	Backlog     uint64 `json:"backlog"`     // batches that are not acknowledged
	Lag         Span   `json:"lag_seconds"` // age of the oldest of them
	AckPending  int    `json:"ack_pending"` // of the backlog, those with an ingester
	Redelivered int    `json:"redelivered"` // of these, those handed out more than once

	Kept   uint64   `json:"kept_bytes"`       // that no trimmer may take: not stored, or held
	Inflow float64  `json:"inflow"`           // bytes a second, of the last minutes
	FullIn *Span    `json:"full_in_seconds"`  // if nothing leaves it from now on; nil when nothing comes in
	Holds  []Hold   `json:"holds"`            // by name
	Faults string   `json:"faults,omitempty"` // what is not as it must be, for people
	Behind []string `json:"behind,omitempty"` // servers with a replica that is away or not up to date
	Copies int      `json:"replicas"`

	DeadLetters uint64 `json:"dead_letters"`
}

// Hold keeps a part of the stream.
type Hold struct {
	Name   string `json:"name"`
	From   uint64 `json:"from"`
	To     uint64 `json:"to"`
	Reason string `json:"reason"`
	By     string `json:"by"`
	Age    Span   `json:"age_seconds"`
}

// Gap is the name of the hold on what a database that went back may lack.
const Gap = "rewind"

// Database is the one database.
type Database struct {
	Version   int   `json:"version"` // server_version_num, such as 170005
	ReadOnly  bool  `json:"read_only"`
	SizeBytes int64 `json:"size_bytes"`
	Ingesters int   `json:"ingesters"`         // seen within the last minute
	LastLoad  *Span `json:"last_load_seconds"` // how long ago; nil when never
}

// Collectors is how many there are of each status.
type Collectors struct {
	Registered int `json:"registered"`
	Active     int `json:"active"`
	Offline    int `json:"offline"`
	Disabled   int `json:"disabled"`
	Locked     int `json:"locked"`
	Expiring   int `json:"expiring"` // certificates that should have been renewed long ago
}

// Span is a length of time, in JSON whole seconds.
type Span time.Duration

// MarshalJSON writes seconds.
func (s Span) MarshalJSON() ([]byte, error) { return json.Marshal(int64(time.Duration(s).Seconds())) }

// String is for people: no more exact than they need it.
func (s Span) String() string {
	d := time.Duration(s)
	switch {
	case d >= 48*time.Hour:
		return strings.TrimSuffix(d.Round(time.Hour).String(), "0m0s")
	case d >= time.Hour:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	default:
		return d.Round(time.Second).String()
	}
}
