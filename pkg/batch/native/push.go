// Package native is the native form of a push: message PushRequest of
// schemas/batch.proto, whose rows are PostgreSQL's binary COPY tuples already.
package native

import (
	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protowire"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/internal/wire"
)

// ContentType is that of a body in the native form.
const ContentType = "application/x-protobuf"

// Field numbers of PushRequest, but for those that it shares with Batch.
const (
	fieldCollectorID  protowire.Number = 1
	fieldHostname     protowire.Number = 2
	fieldVersion      protowire.Number = 3
	fieldBatchID      protowire.Number = 4
	fieldLabels       protowire.Number = 9
	fieldSectionCount protowire.Number = 10
	fieldSections     protowire.Number = 11
)

// Push is one push as its sender makes it.
type Push struct {
	CollectorID uuid.UUID
	Hostname    string          // informs only
	Version     string          // of the sending program; informs only
	BatchID     uuid.UUID       // UUIDv7; the batch is sent at its time
	Epoch       uuid.UUID       // a spool's life; zero when the sender does not number its batches
	Sequence    uint64          // within the epoch, from 1; 0 when the sender does not number
	Previous    batch.Mark      // the last number of the epoch before; only in an epoch's first batch
	Refused     []uint64        // numbers of this epoch that a gateway refused for good
	Labels      []batch.Label   // sorted by name, names unique
	Sections    []batch.Section // expanded
}

// Append appends the push as the body of a request. Its texts must be UTF-8,
// or the gateway refuses what they belong to.
func (p *Push) Append(dst []byte) []byte {
	dst = p.appendHead(dst)
	for i := range p.Sections {
		dst = batch.AppendSection(dst, fieldSections, &p.Sections[i])
	}
	return dst
}

// Size returns how many bytes Append appends. A larger number takes more of
// them, so whoever sizes a push before it is numbered does it with the largest.
func (p *Push) Size() int {
	size := len(p.appendHead(nil))
	for i := range p.Sections {
		size += batch.SizeSection(fieldSections, &p.Sections[i])
	}
	return size
}

// appendHead appends all fields but the sections.
func (p *Push) appendHead(dst []byte) []byte {
	dst = wire.AppendBytes(dst, fieldCollectorID, p.CollectorID[:])
	dst = wire.AppendBytes(dst, fieldHostname, p.Hostname)
	dst = wire.AppendBytes(dst, fieldVersion, p.Version)
	dst = wire.AppendBytes(dst, fieldBatchID, p.BatchID[:])
	dst = batch.AppendNumbering(dst, p.Epoch, p.Sequence, p.Previous, p.Refused)
	dst = batch.AppendLabels(dst, fieldLabels, p.Labels)
	return wire.AppendUint(dst, fieldSectionCount, uint64(len(p.Sections)))
}
