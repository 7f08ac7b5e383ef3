package jsonpush

import (
	"cmp"
	"slices"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/push"
)

// Members of a body. Those that must be there come first.
var (
	requiredMembers = []string{"collector_id", "hostname", "timestamp", "version", "metrics_count", "metrics"}
	optionalMembers = []string{"batch_id", "epoch", "sequence", "previous", "refused", "labels"}
)

// members reads the body's members in whatever order they come.
func (d *decoder) members() error {
	d.seen = make([]string, 0, len(requiredMembers)+len(optionalMembers))
	if d.scan.peek() != kindObject {
		if err := d.scan.skip(); err != nil {
			return err
		}
		return push.Invalid("", push.CodeWrongType, "the body must be a JSON object")
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
			if known := push.Printable(given); known != "" {
				pointer = "/" + known
			}
			return push.Invalid(pointer, push.CodeUnknownMember, "the body has no such member")
		}
		if !required && d.scan.peek() == kindNull {
			if err := d.scan.skip(); err != nil {
				return err
			}
			continue
		}
		d.seen = append(d.seen, name)
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
	switch name {
	case "collector_id":
		id, ok := rawUUID(raw)
		err = d.head.SetCollector(id, ok, d.collector)
	case "hostname":
		if err = d.head.SetHostname(rawText(raw)); err == nil {
			d.hostname = d.servers.Named(rawText(raw))
		}
	case "timestamp":
		var ok bool
		if d.timestamp, ok = parseTime(rawText(raw)); !ok {
			return push.Invalid("/timestamp", push.CodeTimestamp, timestampInvalid.Reason)
		}
	case "version":
		err = d.head.SetVersion(rawText(raw), kindOf(raw) == kindString)
	case "batch_id":
		id, ok := rawUUID(raw)
		err = d.head.SetBatchID(id, ok)
		d.scan.passed = nil
	case "epoch":
		d.head.Epoch, err = rawEpoch(raw, "/epoch")
	case "sequence":
		d.head.Sequence, err = rawNumber(raw, "/sequence")
	case "metrics_count":
		n, bad := rawInt(raw)
		if bad != nil {
			return push.Invalid("/metrics_count", push.CodeWrongType, "must be a whole number")
		}
		d.counted = n
	}
	return err
}

// metrics decodes the items.
func (d *decoder) metrics() error {
	if ok, err := d.enter(kindArray); !ok {
		return cmp.Or[error](err, push.Invalid("/metrics", push.CodeWrongType, "must be an array"))
	}
	for d.scan.more() {
		if d.itemCount == d.limits.MaxItems {
			return push.TooLarge("/metrics", push.CodeTooManyItems, "the body has more items than allowed")
		}
		if err := d.item(d.itemCount); err != nil {
			return err
		}
		d.itemCount++
	}
	return d.scan.leave()
}

func (d *decoder) labels() error {
	if ok, err := d.enter(kindObject); !ok {
		return cmp.Or[error](err, push.LabelsInvalid())
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
		if err := d.head.AddLabel(name, rawText(raw), kindOf(raw) == kindString); err != nil {
			return err
		}
	}
	for _, l := range d.head.Labels {
		d.overhead += push.LabelBytes(l)
	}
	return d.scan.leave()
}

func (d *decoder) refusedNumbers() error {
	if ok, err := d.enter(kindArray); !ok {
		return cmp.Or[error](err, push.Invalid("/refused", push.CodeNumbering, "must be an array of numbers"))
	}
	d.head.Refused = []uint64{}
	for d.scan.more() {
		raw, err := d.scan.value()
		if err != nil {
			return err
		}
		n, bad := rawInt(raw)
		if err := d.head.AddRefused(uint64(n), bad == nil); err != nil {
			return err
		}
		d.overhead += push.RefusedBytes
	}
	return d.scan.leave()
}

func (d *decoder) previous() error {
	if ok, err := d.enter(kindObject); !ok {
		return cmp.Or[error](err, push.Invalid("/previous", push.CodeNumbering, "must be an object"))
	}
	d.head.Previous = new(batch.Mark)
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
			d.head.Previous.Epoch, err = rawEpoch(raw, "/previous/epoch")
		case "sequence":
			d.head.Previous.Sequence, err = rawNumber(raw, "/previous/sequence")
		default:
			err = push.Invalid("/previous", push.CodeUnknownMember, "has only epoch and sequence")
		}
		if err != nil {
			return err
		}
	}
	return d.scan.leave()
}

// enter opens the object or array that a member must be, or passes over it and
// returns false if it is none.
func (d *decoder) enter(want kind) (bool, error) {
	if d.scan.peek() != want {
		return false, d.scan.skip()
	}
	err := d.scan.open()
	return err == nil, err
}

// complete checks what can be judged only when all members are known.
func (d *decoder) complete() error {
	for _, name := range requiredMembers {
		switch {
		case slices.Contains(d.seen, name):
		case name == "timestamp":
			return push.Invalid("/timestamp", codeTimestampMissing, "the body has no timestamp")
		default:
			return push.Invalid("/"+name, push.CodeMissing, "the body needs this member")
		}
	}
	if d.counted != int64(d.itemCount) {
		return push.Invalid("/metrics_count", codeMetricsCount, "is not the number of entries of metrics")
	}
	return nil
}

func rawUUID(raw []byte) (uuid.UUID, bool) {
	return parseUUID(rawText(raw))
}

func rawEpoch(raw []byte, pointer string) (uuid.UUID, error) {
	id, ok := rawUUID(raw)
	return push.Epoch(id, ok, pointer)
}

func rawNumber(raw []byte, pointer string) (uint64, error) {
	n, bad := rawInt(raw)
	return push.Number(uint64(n), bad == nil, pointer)
}

// rawText returns the text of a raw string, none of anything else.
func rawText(raw []byte) []byte {
	if kindOf(raw) != kindString {
		return nil
	}
	return text(raw)
}

// rawInt returns a 64-bit integer sent as a number or a string.
func rawInt(raw []byte) (int64, *push.Problem) {
	switch kindOf(raw) {
	case kindNumber:
		return parseInt(raw)
	case kindString:
		return parseIntText(text(raw))
	}
	return 0, push.ValueType
}
