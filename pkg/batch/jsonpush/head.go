package jsonpush

import (
	"cmp"
	"slices"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
)

// head is what a body says beside its metrics.
type head struct {
	seen         []string // members that were given and not null
	hostname     server
	timestamp    int64 // microseconds since 1970
	version      string
	batchID      uuid.UUID
	epoch        uuid.UUID
	sequence     uint64
	previous     batch.Mark
	refused      []uint64
	labels       []batch.Label
	metricsCount int64
}

func (h *head) has(member string) bool { return slices.Contains(h.seen, member) }

// Members of a body. Those that must be there come first.
var (
	requiredMembers = []string{"collector_id", "hostname", "timestamp", "version", "metrics_count", "metrics"}
	optionalMembers = []string{"batch_id", "epoch", "sequence", "previous", "refused", "labels"}
)

// members reads the body's members in whatever order they come.
func (d *decoder) members() error {
	d.head.seen = make([]string, 0, len(requiredMembers)+len(optionalMembers))
	if d.scan.peek() != kindObject {
		if err := d.scan.skip(); err != nil {
			return err
		}
		return invalid("", codeWrongType, "the body must be a JSON object")
	}
	if err := d.scan.open(); err != nil {
		return err
	}
	for d.scan.more() {
		given, err := d.scan.name()
		if err != nil {
			return err
		}
		name, required := memberOf(given)
		if name == "" {
			pointer := ""
			if known := printable(given); known != "" {
				pointer = "/" + known
			}
			return invalid(pointer, codeUnknownMember, "the body has no such member")
		}
		if !required && d.scan.peek() == kindNull {
			if err := d.scan.skip(); err != nil {
				return err
			}
			continue
		}
		d.head.seen = append(d.head.seen, name)
		if err := d.member(name); err != nil {
			return err
		}
	}
	return d.scan.leave()
}

// memberOf returns the member of that name, empty if there is none, and whether
// it is required.
func memberOf(given []byte) (name string, required bool) {
	is := func(member string) bool { return member == string(given) }
	if i := slices.IndexFunc(requiredMembers, is); i >= 0 {
		return requiredMembers[i], true
	}
	if i := slices.IndexFunc(optionalMembers, is); i >= 0 {
		return optionalMembers[i], false
	}
	return "", false
}

func (d *decoder) member(name string) error {
	switch name {
	case "metrics":
		return d.metrics()
	case "labels":
		return d.labels()
	case "refused":
		return d.refusedNumbers()
	case "previous":
		return d.previous()
	}
	raw, err := d.scan.value()
	if err != nil {
		return err
	}
	h := &d.head
	switch name {
	case "collector_id":
		id, ok := rawUUID(raw)
		if !ok {
			return invalid("/collector_id", codeCollectorInvalid, "must be a UUID in its canonical form")
		}
		if id != d.collector {
			e := invalid("/collector_id", codeCollectorForeign, "collector_id is not the credential's own")
			e.Class = fault.Forbidden
			return e
		}
	case "hostname":
		if kindOf(raw) != kindString || !validName(text(raw)) {
			return invalid("/hostname", codeHostname, "must be 1 to 255 bytes long without control characters")
		}
		h.hostname = d.server(text(raw))
	case "timestamp":
		ok := kindOf(raw) == kindString
		if ok {
			h.timestamp, ok = parseTime(text(raw))
		}
		if !ok {
			return invalid("/timestamp", codeTimestamp, timestampInvalid.reason)
		}
	case "version":
		if kindOf(raw) != kindString || !validNote(text(raw)) {
			return invalid("/version", codeVersion, "must be a text of at most 255 bytes without control characters")
		}
		h.version = string(text(raw))
	case "batch_id":
		id, ok := rawUUID(raw)
		if !ok || !isUUIDv7(id) {
			return invalid("/batch_id", codeBatchID, "must be a UUID of version 7")
		}
		h.batchID = id
		d.scan.passed = nil
	case "epoch":
		h.epoch, err = rawEpoch(raw, "/epoch")
	case "sequence":
		h.sequence, err = rawNumber(raw, "/sequence")
	case "metrics_count":
		n, bad := rawInt(raw)
		if bad != nil {
			return invalid("/metrics_count", codeWrongType, "must be a whole number")
		}
		h.metricsCount = n
	}
	return err
}

// metrics decodes the items.
func (d *decoder) metrics() error {
	if err := d.enter(kindArray, "/metrics", codeWrongType, "must be an array"); err != nil {
		return err
	}
	for d.scan.more() {
		if d.itemCount == d.limits.MaxItems {
			return tooLarge("/metrics", codeTooManyItems, "the body has more items than allowed")
		}
		if err := d.item(d.itemCount); err != nil {
			return err
		}
		d.itemCount++
	}
	return d.scan.leave()
}

func (d *decoder) labels() error {
	const detail = "must be an object of at most 64 texts of at most 255 bytes, with names of letters, digits and underscores"
	if err := d.enter(kindObject, "/labels", codeLabels, detail); err != nil {
		return err
	}
	for d.scan.more() {
		name, err := d.scan.name()
		if err != nil {
			return err
		}
		raw, err := d.scan.value()
		if err != nil {
			return err
		}
		if !validLabel(name) || kindOf(raw) != kindString || !validNote(text(raw)) || len(d.head.labels) == maxLabels {
			return invalid("/labels", codeLabels, detail)
		}
		label := batch.Label{Name: string(name), Value: string(text(raw))}
		d.head.labels = append(d.head.labels, label)
		d.overhead += labelOverhead + len(label.Name) + len(label.Value)
	}
	slices.SortFunc(d.head.labels, func(a, b batch.Label) int { return cmp.Compare(a.Name, b.Name) })
	return d.scan.leave()
}

func (d *decoder) refusedNumbers() error {
	if err := d.enter(kindArray, "/refused", codeNumbering, "must be an array of numbers"); err != nil {
		return err
	}
	for d.scan.more() {
		raw, err := d.scan.value()
		if err != nil {
			return err
		}
		n, err := rawNumber(raw, "/refused")
		if err != nil {
			return err
		}
		if len(d.head.refused) == maxRefused {
			return invalid("/refused", codeNumbering, "at most 1,000 refused numbers fit into one batch")
		}
		d.head.refused = append(d.head.refused, n)
		d.overhead += refusedOverhead
	}
	return d.scan.leave()
}

func (d *decoder) previous() error {
	if err := d.enter(kindObject, "/previous", codeNumbering, "must be an object"); err != nil {
		return err
	}
	for d.scan.more() {
		name, err := d.scan.name()
		if err != nil {
			return err
		}
		raw, err := d.scan.value()
		if err != nil {
			return err
		}
		switch string(name) {
		case "epoch":
			d.head.previous.Epoch, err = rawEpoch(raw, "/previous/epoch")
		case "sequence":
			d.head.previous.Sequence, err = rawNumber(raw, "/previous/sequence")
		default:
			err = invalid("/previous", codeUnknownMember, "has only epoch and sequence")
		}
		if err != nil {
			return err
		}
	}
	return d.scan.leave()
}

// enter opens the object or array that a member must be.
func (d *decoder) enter(want kind, pointer, code, detail string) error {
	if d.scan.peek() != want {
		if err := d.scan.skip(); err != nil {
			return err
		}
		return invalid(pointer, code, detail)
	}
	return d.scan.open()
}

// complete checks what can be judged only when all members are known.
func (h *head) complete(items int) error {
	for _, name := range requiredMembers {
		switch {
		case h.has(name):
		case name == "timestamp":
			return invalid("/timestamp", codeTimestampMissing, "the body has no timestamp")
		default:
			return invalid("/"+name, codeMissing, "the body needs this member")
		}
	}
	if h.metricsCount != int64(items) {
		return invalid("/metrics_count", codeMetricsCount, "is not the number of entries of metrics")
	}
	return h.numbering()
}

// numbering checks that a sender numbers its batches fully or not at all.
func (h *head) numbering() error {
	numbered := h.has("epoch")
	switch {
	case numbered != h.has("sequence"):
		return invalid("/sequence", codeNumbering, "epoch and sequence stand together or not at all")
	case !numbered && (h.has("previous") || h.has("refused")):
		return invalid("/epoch", codeNumbering, "previous and refused need epoch and sequence")
	case h.has("previous") && (h.sequence != 1 || h.previous.Epoch == uuid.Nil || h.previous.Sequence == 0 || h.previous.Epoch == h.epoch):
		return invalid("/previous", codeNumbering, "names another epoch and its last number, in the first batch of an epoch")
	case slices.ContainsFunc(h.refused, func(n uint64) bool { return n >= h.sequence }):
		return invalid("/refused", codeNumbering, "refused numbers lie below sequence")
	}
	return nil
}

func rawUUID(raw []byte) (uuid.UUID, bool) {
	if kindOf(raw) != kindString {
		return uuid.Nil, false
	}
	return parseUUID(text(raw))
}

func rawEpoch(raw []byte, pointer string) (uuid.UUID, error) {
	id, ok := rawUUID(raw)
	if !ok || !isUUIDv7(id) {
		return uuid.Nil, invalid(pointer, codeNumbering, "must be a UUID of version 7")
	}
	return id, nil
}

// rawNumber returns a number of a sender's numbering, which PostgreSQL keeps
// in a bigint.
func rawNumber(raw []byte, pointer string) (uint64, error) {
	n, bad := rawInt(raw)
	if bad != nil || n < 1 {
		return 0, invalid(pointer, codeNumbering, "must be whole and at least 1")
	}
	return uint64(n), nil
}

// rawInt returns a 64-bit integer sent as a number or a string.
func rawInt(raw []byte) (int64, *problem) {
	switch kindOf(raw) {
	case kindNumber:
		return parseInt(raw)
	case kindString:
		return parseIntText(text(raw))
	}
	return 0, valueType
}
