package push

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
)

// Head is what a push says beside its rows, each by its rule. What the sender
// did not give is zero; a given list is not nil even if it is empty.
type Head struct {
	Hostname string
	Version  string
	BatchID  uuid.UUID
	Epoch    uuid.UUID
	Sequence uint64
	Previous *batch.Mark
	Refused  []uint64
	Labels   []batch.Label
}

// SetCollector checks the collector that a push says it is from against the
// one of the credential. OK is false if what it says is no UUID.
func (h *Head) SetCollector(id uuid.UUID, ok bool, credential uuid.UUID) error {
	if !ok {
		return Invalid("/collector_id", CodeCollectorInvalid, "must be a UUID in its canonical form")
	}
	if id != credential {
		return refusal(fault.Forbidden, "/collector_id", CodeCollectorForeign, "collector_id is not the credential's own")
	}
	return nil
}

// SetHostname sets the hostname.
func (h *Head) SetHostname(name []byte) error {
	if !ValidName(name) {
		return Invalid("/hostname", CodeHostname, "must be 1 to 255 bytes long without control characters")
	}
	h.Hostname = string(name)
	return nil
}

// SetVersion sets the version. OK is false if what was given is no text.
func (h *Head) SetVersion(version []byte, ok bool) error {
	if !ok || !ValidNote(version) {
		return Invalid("/version", CodeVersion, "must be a text of at most 255 bytes without control characters")
	}
	h.Version = string(version)
	return nil
}

// SetBatchID sets the sender's id of the batch. OK is false if what was given is
// no UUID.
func (h *Head) SetBatchID(id uuid.UUID, ok bool) error {
	if !ok || !isUUIDv7(id) {
		return Invalid("/batch_id", CodeBatchID, "must be a UUID of version 7")
	}
	h.BatchID = id
	return nil
}

// Epoch checks the id of an epoch that was given at pointer. OK is false if
// what was given is no UUID.
func Epoch(id uuid.UUID, ok bool, pointer string) (uuid.UUID, error) {
	if !ok || !isUUIDv7(id) {
		return uuid.Nil, Invalid(pointer, CodeNumbering, "must be a UUID of version 7")
	}
	return id, nil
}

// Number checks a number of a sender's numbering, which PostgreSQL keeps in a
// bigint, that was given at pointer. OK is false if what was given is none.
func Number(n uint64, ok bool, pointer string) (uint64, error) {
	if !ok || n < 1 || n > math.MaxInt64 {
		return 0, Invalid(pointer, CodeNumbering, "must be whole and at least 1")
	}
	return n, nil
}

// AddRefused adds a number that a gateway refused. OK is false if what was
// given is none.
func (h *Head) AddRefused(n uint64, ok bool) error {
	n, err := Number(n, ok, "/refused")
	if err != nil {
		return err
	}
	if len(h.Refused) == maxRefused {
		return Invalid("/refused", CodeNumbering, "at most 1,000 refused numbers fit into one batch")
	}
	h.Refused = append(h.Refused, n)
	return nil
}

// AddLabel adds a label. OK is false if what was given as its value is no text.
func (h *Head) AddLabel(name, value []byte, ok bool) error {
	if !ok || Printable(name) == "" || !ValidNote(value) || len(h.Labels) == MaxLabels {
		return LabelsInvalid()
	}
	if slices.ContainsFunc(h.Labels, func(l batch.Label) bool { return l.Name == string(name) }) {
		return Invalid("/labels", CodeDuplicateName, "a label stands there twice")
	}
	h.Labels = append(h.Labels, batch.Label{Name: string(name), Value: string(value)})
	return nil
}

// LabelsInvalid returns the fault of labels that are none.
func LabelsInvalid() *fault.Error {
	return Invalid("/labels", CodeLabels, "must be at most 64 texts of at most 255 bytes, with names of letters, digits and underscores")
}

// numbering checks that a sender numbers its batches fully or not at all.
func (h *Head) numbering() error {
	numbered := h.Epoch != uuid.Nil
	switch {
	case numbered != (h.Sequence != 0):
		return Invalid("/sequence", CodeNumbering, "epoch and sequence stand together or not at all")
	case !numbered && (h.Previous != nil || h.Refused != nil):
		return Invalid("/epoch", CodeNumbering, "previous and refused need epoch and sequence")
	case h.Previous != nil && (h.Sequence != 1 || h.Previous.Epoch == uuid.Nil || h.Previous.Sequence == 0 || h.Previous.Epoch == h.Epoch):
		return Invalid("/previous", CodeNumbering, "names another epoch and its last number, in the first batch of an epoch")
	case slices.ContainsFunc(h.Refused, func(n uint64) bool { return n >= h.Sequence }):
		return Invalid("/refused", CodeNumbering, "refused numbers lie below sequence")
	}
	return nil
}

// Batch makes the batch without its rows. A batch with an id of its sender's is
// sent at the id's time; else the form gives both.
func (h *Head) Batch(collector, derived uuid.UUID, sentAt, now time.Time, lim *Limits) (*batch.Batch, error) {
	if err := h.numbering(); err != nil {
		return nil, err
	}
	slices.SortFunc(h.Labels, func(a, b batch.Label) int { return cmp.Compare(a.Name, b.Name) })
	b := &batch.Batch{
		CollectorID: collector,
		ID:          derived,
		SentAt:      sentAt,
		Epoch:       h.Epoch,
		Sequence:    h.Sequence,
		Refused:     append([]uint64(nil), h.Refused...),
		Labels:      h.Labels,
		ReceivedAt:  now.UTC().Truncate(time.Microsecond),
	}
	if h.BatchID != uuid.Nil {
		b.ID, b.SentAt = h.BatchID, timeOfUUIDv7(h.BatchID)
	}
	if h.Previous != nil {
		b.Previous = *h.Previous
	}
	switch {
	case b.SentAt.Before(now.Add(-lim.MaxAge)):
		return nil, Invalid("", CodeTooOld, "the batch's time lies too far in the past")
	case b.SentAt.After(now.Add(lim.MaxAhead)):
		return nil, fault.New(fault.Unprocessable, CodeClockSkew, "the batch's time lies ahead of the server's clock")
	}
	return b, nil
}
