package batch

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"pganalytics/pkg/batch/batchpb"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/fault"
)

// version of the envelope that Marshal writes and Unmarshal reads.
const version = 1

// Marshal returns the batch as it lies on the stream.
func (b *Batch) Marshal() ([]byte, error) {
	m := &batchpb.Batch{
		Version:      version,
		CollectorId:  b.CollectorID[:],
		BatchId:      b.ID[:],
		SentAtUs:     b.SentAt.UnixMicro(),
		Sequence:     b.Sequence,
		Refused:      b.Refused,
		Digest:       b.Digest[:],
		ReceivedAtUs: b.ReceivedAt.UnixMicro(),
		Traceparent:  b.TraceParent,
		Labels:       make([]*batchpb.Label, len(b.Labels)),
		Sections:     make([]*batchpb.Section, len(b.Sections)),
	}
	if b.Epoch != uuid.Nil {
		m.Epoch = b.Epoch[:]
	}
	if b.Previous != (Mark{}) {
		m.Previous = &batchpb.Mark{Epoch: b.Previous.Epoch[:], Sequence: b.Previous.Sequence}
	}
	for i, l := range b.Labels {
		m.Labels[i] = &batchpb.Label{Name: l.Name, Value: l.Value}
	}
	for i := range b.Sections {
		m.Sections[i] = sectionToProto(&b.Sections[i])
	}
	data, err := proto.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("marshal batch %s: %w", b.ID, err)
	}
	return data, nil
}

func sectionToProto(s *Section) *batchpb.Section {
	columns := make([]*batchpb.Column, len(s.Columns))
	for i, c := range s.Columns {
		columns[i] = &batchpb.Column{Name: c.Name, Type: batchpb.Type(c.Type)}
	}
	return &batchpb.Section{
		Family:    s.Family,
		Server:    s.Server,
		ServerId:  s.ServerID[:],
		Columns:   columns,
		Rows:      uint64(s.Rows),
		MinTimeUs: s.MinTime.UnixMicro(),
		MaxTimeUs: s.MaxTime.UnixMicro(),
		Tuples:    s.Tuples,
	}
}

// Unmarshal reads what Marshal wrote. It checks the shape of every field, not
// the digest, which costs as much as all the rest: see Intact. A version that
// is newer than this process is fault.Behind: a newer one will read it.
func Unmarshal(data []byte) (*Batch, error) {
	m := &batchpb.Batch{}
	if err := proto.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("unmarshal batch: %w", err)
	}
	if m.Version > version {
		return nil, fault.Wrap(fault.Behind, fmt.Errorf("unmarshal batch: version %d is newer than this process", m.Version))
	}
	if m.Version != version {
		return nil, fmt.Errorf("unmarshal batch: unknown version %d", m.Version)
	}
	r := reader{}
	b := &Batch{
		CollectorID: r.uuid("collector_id", m.CollectorId),
		ID:          r.uuid("batch_id", m.BatchId),
		SentAt:      micros(m.SentAtUs),
		Sequence:    m.Sequence,
		Refused:     m.Refused,
		ReceivedAt:  micros(m.ReceivedAtUs),
		TraceParent: m.Traceparent,
	}
	if len(m.Epoch) > 0 {
		b.Epoch = r.uuid("epoch", m.Epoch)
	}
	if m.Previous != nil {
		b.Previous = Mark{Epoch: r.uuid("previous.epoch", m.Previous.Epoch), Sequence: m.Previous.Sequence}
	}
	if copy(b.Digest[:], m.Digest) != sha256.Size || len(m.Digest) != sha256.Size {
		r.fail("digest", "has %d bytes, not %d", len(m.Digest), sha256.Size)
	}
	for _, l := range m.Labels {
		b.Labels = append(b.Labels, Label{Name: l.GetName(), Value: l.GetValue()})
	}
	for i, s := range m.Sections {
		b.Sections = append(b.Sections, r.section(i, s))
	}
	if err := errors.Join(r.errs...); err != nil {
		return nil, fmt.Errorf("unmarshal batch: %w", err)
	}
	return b, nil
}

// reader gathers every fault of an envelope.
type reader struct{ errs []error }

func (r *reader) fail(field, format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf(field+": "+format, args...))
}

func (r *reader) uuid(field string, data []byte) uuid.UUID {
	id, err := uuid.FromBytes(data)
	if err != nil {
		r.fail(field, "has %d bytes, not 16", len(data))
	}
	return id
}

func (r *reader) section(i int, m *batchpb.Section) Section {
	at := func(field string) string { return fmt.Sprintf("sections[%d].%s", i, field) }
	s := Section{
		Family:   m.GetFamily(),
		Server:   m.GetServer(),
		ServerID: r.uuid(at("server_id"), m.GetServerId()),
		Columns:  make([]Column, 0, len(m.GetColumns())),
		Rows:     int(m.GetRows()),
		MinTime:  micros(m.GetMinTimeUs()),
		MaxTime:  micros(m.GetMaxTimeUs()),
		Tuples:   m.GetTuples(),
	}
	// Each row takes at least its field count, so a larger number is a lie.
	if m.GetRows() > uint64(len(s.Tuples)) {
		r.fail(at("rows"), "%d rows in %d bytes", m.GetRows(), len(s.Tuples))
	}
	for j, c := range m.GetColumns() {
		t := catalogue.Type(c.GetType())
		if c.GetType() < 0 || c.GetType() > 255 || !t.Valid() {
			r.fail(at("columns"), "column %d has unknown type %d", j, c.GetType())
			continue
		}
		s.Columns = append(s.Columns, Column{Name: c.GetName(), Type: t})
	}
	return s
}

func micros(us int64) time.Time { return time.UnixMicro(us).UTC() }
