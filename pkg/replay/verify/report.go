package verify

import (
	"encoding/json"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/policy/pulled"
)

// Class says where a numbered batch is.
type Class uint8

// The classes, the better one first: of a batch that is in several places the
// first counts.
const (
	Stored       Class = iota // in the ledger, and so its rows in the tables
	Discarded                 // given up by people: in the ledger without rows
	DeadLettered              // laid aside, for people to retry or discard
	InFlight                  // on the stream, not yet acknowledged
	Replayable                // on the stream and acknowledged, but not in the ledger: a replay stores it
	Refused                   // a gateway refused it for good; the collector keeps its body
	Lost                      // nowhere, though the collector has sent later ones
	classes
)

var classNames = [classes]string{"stored", "discarded", "dead_lettered", "in_flight", "replayable", "refused", "lost"}

// String returns the name as scripts read it.
func (c Class) String() string { return classNames[c] }

// MarshalText writes the name.
func (c Class) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Bad reports whether somebody must act on a batch of that class.
func (c Class) Bad() bool { return c == DeadLettered || c == Replayable || c == Lost }

// Report is what a verification found.
type Report struct {
	// From and To are the bounds of the batches by sent_at; zero: none.
	From time.Time `json:"from,omitzero"`
	To   time.Time `json:"to,omitzero"`
	// Known is the time from which on the ledger knows all batches: what was
	// sent before has been pruned. Zero: it knows all.
	Known time.Time `json:"known_from,omitzero"`

	Collectors []Collector `json:"collectors"` // by id
	// Gaps are the numbers that are not stored, by collector, epoch and number.
	// Each of the lists has at most as many entries as was asked for.
	Gaps     []Gap  `json:"gaps"`
	GapCount uint64 `json:"gap_count"`

	Families      []Family   `json:"families"` // all that were looked at, by name
	Mismatches    []Mismatch `json:"mismatches"`
	MismatchCount uint64     `json:"mismatch_count"`

	// Unreadable messages of the stream are no batch; they lie in the dead
	// letters. Unknown ones are of a version that this program does not know.
	Unreadable uint64 `json:"unreadable"`
	Unknown    uint64 `json:"unknown"`
	// AckedInFlight is how many of the batches in flight, at least, have been
	// acknowledged although they are not stored: out of turn, while others wait.
	AckedInFlight uint64 `json:"acked_in_flight"`
	// ReplayFrom and ReplayTo are the first and the last sequence of the stream
	// that is replayable; zero: none.
	ReplayFrom uint64 `json:"replay_from_seq,omitzero"`
	ReplayTo   uint64 `json:"replay_to_seq,omitzero"`

	// Asked are the collectors that were asked to send lost batches again. Run
	// leaves it empty: it changes nothing.
	Asked []Asked `json:"asked,omitempty"`
}

// Asked is a request to a collector to send lost batches again.
type Asked struct {
	Collector uuid.UUID `json:"collector"`
	Request   uuid.UUID `json:"request"`
	At        time.Time `json:"at"`      // before this verification if the same was asked already
	Numbers   uint64    `json:"numbers"` // that were asked for; what is beyond pulled.MaxRanges waits for the next time
	// Before is what came of the collector's last request; nil: there was none.
	Before *pulled.Resent `json:"before,omitempty"`
}

// Lost returns the lost numbers of each collector, as far as Gaps has them.
func (r *Report) Lost() map[uuid.UUID][]pulled.Range {
	lost := map[uuid.UUID][]pulled.Range{}
	for _, g := range r.Gaps {
		if g.Class == Lost {
			lost[g.Collector] = append(lost[g.Collector], pulled.Range{Epoch: g.Epoch, First: g.First, Last: g.Last})
		}
	}
	return lost
}

// Clean reports whether nothing was found that somebody must act on.
func (r *Report) Clean() bool {
	for i := range r.Collectors {
		for class, n := range r.Collectors[i].Batches {
			if Class(class).Bad() && n > 0 {
				return false
			}
		}
	}
	return r.MismatchCount+r.Unknown+r.AckedInFlight == 0
}

// Collector is what was found of one collector.
type Collector struct {
	ID     uuid.UUID `json:"id"`
	Epochs int       `json:"epochs"`
	// Batches are counted by class, those without numbers too.
	Batches Counts `json:"batches"`
	// Unnumbered are those of Batches that have no number: of them none is
	// ever known to be lost.
	Unnumbered uint64 `json:"unnumbered"`
	// The newest batch that is known. What follows on it is still in the
	// collector's spool, or there is nothing more.
	Newest Number `json:"newest"`
}

// Counts is an amount by class.
type Counts [classes]uint64

// MarshalJSON writes them by the names of their classes.
func (c Counts) MarshalJSON() ([]byte, error) {
	named := map[Class]uint64{}
	for class, n := range c {
		named[Class(class)] = n
	}
	return json.Marshal(named)
}

// Number is a place in a collector's numbering; without epoch it is that of a
// batch that has no number.
type Number struct {
	Epoch    uuid.UUID `json:"epoch,omitzero"`
	Sequence uint64    `json:"sequence,omitzero"`
	SentAt   time.Time `json:"sent_at"`
}

// Gap is numbers of an epoch that are not stored, both ends included.
type Gap struct {
	Collector uuid.UUID `json:"collector"`
	Epoch     uuid.UUID `json:"epoch"`
	First     uint64    `json:"first"`
	Last      uint64    `json:"last"`
	Class     Class     `json:"class"`
	// When its batches were sent; where nobody has them any more, when their
	// neighbours were. Zero: there is no neighbour.
	From time.Time `json:"from,omitzero"`
	To   time.Time `json:"to,omitzero"`
}

// Family tells how the table of one family was compared with the ledger.
type Family struct {
	Name string `json:"name"`
	// LeftOut says why it was not, else it is empty.
	LeftOut string `json:"left_out,omitempty"`
	// From is the time of the first row that was compared; zero: all were.
	From       time.Time `json:"from,omitzero"`
	Ranges     int64     `json:"ranges"`      // of a server and an hour, or a few of them
	LedgerRows int64     `json:"ledger_rows"` // in those ranges
	TableRows  int64     `json:"table_rows"`
}

// Mismatch is rows of one family from one server in one hour, or in several if
// batches have rows of more than one, that are not those of the ledger.
type Mismatch struct {
	Family      string    `json:"family"`
	ServerID    uuid.UUID `json:"server_id"`
	Server      string    `json:"server"`    // its name; empty when it is not known
	CollectorID uuid.UUID `json:"collector"` // zero when it is not known
	From        time.Time `json:"from"`
	To          time.Time `json:"to"` // not included
	LedgerRows  int64     `json:"ledger_rows"`
	TableRows   int64     `json:"table_rows"`
}
