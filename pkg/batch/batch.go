// Package batch holds a batch of metric rows as the system carries it: the
// rows as PostgreSQL binary COPY tuples, encoded once at the border, and the
// envelope around them. A batch carries all that is needed to store it. The
// package opens no connection and knows neither the stream nor the database.
package batch

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/catalogue"
)

// Batch is what one push stores, in one transaction, once. Times are UTC with
// microsecond precision, as PostgreSQL stores them.
type Batch struct {
	CollectorID uuid.UUID
	ID          uuid.UUID
	SentAt      time.Time // sender's clock; a function of the id or the body, never of the attempt
	Epoch       uuid.UUID // a spool's life; zero when the sender does not number its batches
	Sequence    uint64    // within the epoch, from 1; 0 when the sender does not number
	Previous    Mark      // the last number of the epoch before; only in an epoch's first batch
	Refused     []uint64  // numbers of this epoch that a gateway refused for good
	Labels      []Label   // sorted by name, names unique
	Sections    []Section
	Digest      [sha256.Size]byte // over all that will be stored; see Seal

	ReceivedAt  time.Time // gateway's clock
	TraceParent string    // W3C trace context of the push
}

// Mark is a place in a sender's numbering.
type Mark struct {
	Epoch    uuid.UUID
	Sequence uint64
}

// Label is one label of a collector.
type Label struct{ Name, Value string }

// Section is the rows of one family from one server.
type Section struct {
	Family   string
	Server   string    // the collector's name for the server
	ServerID uuid.UUID // ServerID(collector, Server)
	Columns  []Column  // after time and server_id, with which every tuple begins
	Rows     int
	MinTime  time.Time
	MaxTime  time.Time
	Tuples   []byte // Rows COPY tuples back to back, without header and trailer; nil if they are packed, see Expanded

	packed   []byte // Tuples as one s2 block, instead of them
	unpacked int    // bytes of Tuples in packed
}

// Column is one column of a section's tuples.
type Column struct {
	Name string
	Type catalogue.Type
}

// ColumnsOf returns all columns of a family, in its order.
func ColumnsOf(f *catalogue.Family) []Column {
	columns := make([]Column, len(f.Columns))
	for i, c := range f.Columns {
		columns[i] = Column{Name: c.Name, Type: c.Type}
	}
	return columns
}

// Rows returns the number of rows in all sections.
func (b *Batch) Rows() int {
	n := 0
	for i := range b.Sections {
		n += b.Sections[i].Rows
	}
	return n
}

// TupleBytes returns the bytes of tuples in all sections, expanded or not.
func (b *Batch) TupleBytes() int {
	n := 0
	for i := range b.Sections {
		n += b.Sections[i].tupleBytes()
	}
	return n
}

func (s *Section) tupleBytes() int { return len(s.Tuples) + s.unpacked }

// ServerID returns the id of a collector's server: UUIDv5 in the collector's
// id as name space. It is computed, never looked up.
func ServerID(collector uuid.UUID, server string) uuid.UUID {
	return uuid.NewSHA1(collector, []byte(server))
}

// MessageID returns what makes two published messages the same one to
// JetStream. Message ids are global to a stream, so the collector's id is in
// it; so is the digest, so that another body under a used id is not taken for
// a duplicate but reaches the ledger, which tells them apart.
func (b *Batch) MessageID() string {
	h := sha256.New()
	h.Write(b.CollectorID[:])
	h.Write(b.ID[:])
	h.Write(b.Digest[:])
	return hex.EncodeToString(h.Sum(nil))
}

// Seal computes Digest, which covers all that will be stored and nothing that
// differs between two attempts to send the same batch.
func (b *Batch) Seal() { b.Digest = b.digest() }

// Intact reports whether Digest is that of the content, which must have been
// expanded.
func (b *Batch) Intact() bool { return b.Digest == b.digest() }

// digest hashes every stored field, each length-prefixed or of fixed size, so
// that no two different batches hash the same bytes.
func (b *Batch) digest() [sha256.Size]byte {
	h := sha256.New()
	buf := make([]byte, 0, 512)
	flush := func() { h.Write(buf); buf = buf[:0] }
	num := func(n uint64) { buf = binary.BigEndian.AppendUint64(buf, n) }
	str := func(s string) { num(uint64(len(s))); buf = append(buf, s...) }

	buf = append(buf, b.CollectorID[:]...)
	buf = append(buf, b.ID[:]...)
	num(uint64(b.SentAt.UnixMicro()))
	buf = append(buf, b.Epoch[:]...)
	num(b.Sequence)
	buf = append(buf, b.Previous.Epoch[:]...)
	num(b.Previous.Sequence)
	num(uint64(len(b.Refused)))
	for _, n := range b.Refused {
		num(n)
	}
	num(uint64(len(b.Labels)))
	for _, l := range b.Labels {
		str(l.Name)
		str(l.Value)
	}
	num(uint64(len(b.Sections)))
	for i := range b.Sections {
		s := &b.Sections[i]
		str(s.Family)
		str(s.Server)
		num(uint64(len(s.Columns)))
		for _, c := range s.Columns {
			str(c.Name)
			buf = append(buf, byte(c.Type))
		}
		num(uint64(s.Rows))
		num(uint64(len(s.Tuples)))
		flush()
		h.Write(s.Tuples)
	}
	flush()
	var d [sha256.Size]byte
	h.Sum(d[:0])
	return d
}

// Position is where a message lies on the stream.
type Position struct {
	Sequence    uint64    // the stream's own, from 1
	Incarnation string    // tells this stream from one recreated under its name: its creation time
	Delivered   uint64    // how often it was handed out, this time included
	StoredAt    time.Time // stream's clock
}

// Delivery is one message as the stream hands it out. It stays the consumer's
// until Ack; without Ack it is handed out again once its wait has run out.
type Delivery struct {
	Position
	Subject string
	Payload []byte

	Ack    func(ctx context.Context) error // the rows are committed, or the message lies in the dead letters
	Extend func() error                    // still at work: restart the wait without using up a delivery
}

// Letter is a message that cannot be stored, as it is laid aside.
type Letter struct {
	CollectorID uuid.UUID // zero when the payload tells none
	BatchID     uuid.UUID // zero when the payload tells none
	Digest      [sha256.Size]byte
	Reason      string // a stable word: "batch_differs", "data_error", …
	Detail      string // for people
	SQLState    string // empty when the database was not asked
	Rows        int    // in all sections; 0 when the payload tells none
	Position    Position
	Payload     []byte // the original bytes
}

// FiledLetter is a letter as it lies in the dead letters. Payload is nil where
// only its head was read.
type FiledLetter struct {
	Letter
	ID       string    // tells it from all others; from the digest, so it is the same however often it is buried
	Subject  string    // where it lies
	Sequence uint64    // among the dead letters, in the order of burial
	BuriedAt time.Time // stream's clock
	Size     int       // bytes of Payload
}

// Item is a batch and where it lies on the stream: what a load stores.
type Item struct {
	*Batch
	Position
}

// Outcome is what a committed load did with one batch.
type Outcome uint8

// The outcomes. Stored and AlreadyStored mean that the rows are committed.
const (
	Stored        Outcome = iota + 1 // by this load
	AlreadyStored                    // by an earlier load, or under another message of this one
	Differs                          // another body is stored under this id
	BelowFloor                       // so old that the ledger cannot tell whether it is stored
	Contested                        // another load that is still open has it: nothing is known yet
)

// String returns the outcome as it stands in logs, metrics and letters.
func (o Outcome) String() string {
	return [...]string{"unknown", "stored", "already_stored", "batch_differs", "below_floor", "contested"}[o]
}
