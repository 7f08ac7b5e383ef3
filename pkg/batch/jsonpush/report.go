package jsonpush

import (
	"cmp"
	"slices"

	"pganalytics/pkg/fault"
)

// Report is what the sender is told about its body.
type Report struct {
	ItemsAccepted int
	RowsAccepted  int
	Rejected      []Rejection // by index, at most 100; never nil
	RejectedMore  int         // refused items that are not listed
	MetricsCount  int
	Hostname      string
	Version       string
}

// Rejection is one refused item with the first fault that was found in it.
type Rejection struct {
	Index   int    `json:"index"`   // in metrics, from 0
	Type    string `json:"type"`    // the item's family; empty when it has none or no well-formed one
	Pointer string `json:"pointer"` // JSON pointer to the faulty place
	Code    string `json:"code"`    // stable
	Reason  string `json:"reason"`  // for people, never the value itself
}

// problem is one way in which a value or an item can be refused.
type problem struct{ code, reason string }

// Codes of faults that refuse the whole body.
const (
	codeInvalidJSON      = "invalid_json"
	codeDuplicateName    = "duplicate_name"
	codeUnknownMember    = "unknown_member"
	codeMissing          = "member_missing"
	codeTimestampMissing = "timestamp_missing"
	codeWrongType        = "wrong_type"
	codeCollectorInvalid = "collector_id_invalid"
	codeCollectorForeign = "collector_id_mismatch"
	codeBatchID          = "batch_id_invalid"
	codeTimestamp        = "timestamp_invalid"
	codeHostname         = "hostname_invalid"
	codeVersion          = "version_invalid"
	codeNumbering        = "numbering_invalid"
	codeLabels           = "labels_invalid"
	codeMetricsCount     = "metrics_count_mismatch"
	codeMetricsEmpty     = "metrics_empty"
	codeNothingAccepted  = "nothing_accepted"
	codeTooOld           = "batch_too_old"
	codeClockSkew        = "clock_skew"
	codeBodyTooLarge     = "body_too_large"
	codeBatchTooLarge    = "batch_too_large"
	codeTooManyItems     = "too_many_items"
	codeTooManyRows      = "too_many_rows"
)

// Faults of one item.
var (
	itemNotObject     = &problem{codeWrongType, "an entry of metrics must be an object"}
	itemUnknownMember = &problem{codeUnknownMember, "an item has no such member"}
	itemMissing       = &problem{codeMissing, "an item needs type and rows"}
	familyUnknown     = &problem{"unknown_family", "no metric family has this name"}
	serverInvalid     = &problem{"server_invalid", "a server name must be 1 to 255 bytes long without control characters"}
	timestampInvalid  = &problem{codeTimestamp, "must be a time as in RFC 3339"}
	columnsInvalid    = &problem{"columns_invalid", "columns must be an array of names with at least one besides time"}
	columnsMissing    = &problem{"columns_missing", "rows that are arrays need columns"}
	columnsWithNames  = &problem{"columns_unexpected", "rows that are objects name their columns themselves"}
	columnUnknown     = &problem{"unknown_column", "the family has no column of this name"}
	columnTwice       = &problem{"duplicate_column", "the column is named twice"}
	keyMissing        = &problem{"key_missing", "a key column of the family is missing"}
	rowsInvalid       = &problem{codeWrongType, "rows must be an array of arrays or of objects, all alike"}
	rowArity          = &problem{"wrong_arity", "the row must have one value for each of columns"}
	rowTimeMixed      = &problem{"time_missing", "either all rows of an item have a time or none"}
	timeOutOfRange    = &problem{"time_out_of_range", "the row's time lies outside of what is kept for this family"}
)

// Faults of one value.
var (
	valueNull        = &problem{"null_not_allowed", "must not be null"}
	valueType        = &problem{codeWrongType, "the value is not of the column's type"}
	valueNotIntegral = &problem{"not_an_integer", "must be a whole number"}
	valueRange       = &problem{"number_out_of_range", "the number is out of the column's range"}
	valueUUID        = &problem{"invalid_uuid", "must be a UUID in its canonical form"}
	valueTime        = &problem{"invalid_time", "must be a time as in RFC 3339"}
	valueNUL         = &problem{"nul_character", "text must not hold the character U+0000"}
	valueTextLong    = &problem{"text_too_long", "the text is longer than the limit"}
	valueKeyLong     = &problem{"key_too_long", "the text of a key must not be longer than 2,000 bytes"}
)

// invalid returns a fault that refuses the whole body.
func invalid(pointer, code, detail string) *fault.Error {
	e := fault.New(fault.Invalid, code, detail)
	if pointer != "" {
		e.Fields = []fault.Field{{Pointer: pointer, Code: code, Detail: detail}}
	}
	return e
}

// list puts the refused items into the report.
func (r *Report) list(rejected []Rejection) {
	slices.SortFunc(rejected, func(a, b Rejection) int { return cmp.Compare(a.Index, b.Index) })
	r.Rejected = append([]Rejection{}, rejected[:min(len(rejected), maxRejections)]...) // a list in JSON, not null
	r.RejectedMore = len(rejected) - len(r.Rejected)
}

// nothingAccepted returns the fault of a body without one good item.
func (r *Report) nothingAccepted() *fault.Error {
	e := fault.New(fault.Invalid, codeNothingAccepted, "no item of metrics can be accepted")
	for _, rejection := range r.Rejected {
		e.Fields = append(e.Fields, fault.Field{Pointer: rejection.Pointer, Code: rejection.Code, Detail: rejection.Reason})
	}
	return e
}

// printable returns a name as it may stand in an answer: as it is when it could
// be the name of a family or a column, else empty, for inputs are not echoed.
func printable(name []byte) string {
	if len(name) == 0 || len(name) > maxPrintedName {
		return ""
	}
	for i, c := range name {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '_', i > 0 && '0' <= c && c <= '9':
		default:
			return ""
		}
	}
	return string(name)
}
