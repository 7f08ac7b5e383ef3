package jsonpush

import "pganalytics/pkg/batch/push"

// Codes of faults that refuse the whole body and that only JSON can have.
const (
	codeInvalidJSON      = "invalid_json"
	codeTimestampMissing = "timestamp_missing"
	codeMetricsCount     = "metrics_count_mismatch"
)

// Faults of one item or value that only JSON can have.
var (
	itemNotObject     = &push.Problem{Code: push.CodeWrongType, Reason: "an entry of metrics must be an object"}
	itemUnknownMember = &push.Problem{Code: push.CodeUnknownMember, Reason: "an item has no such member"}
	itemMissing       = &push.Problem{Code: push.CodeMissing, Reason: "an item needs type and rows"}
	timestampInvalid  = &push.Problem{Code: push.CodeTimestamp, Reason: "must be a time as in RFC 3339"}
	columnsMissing    = &push.Problem{Code: "columns_missing", Reason: "rows that are arrays need columns"}
	columnsWithNames  = &push.Problem{Code: "columns_unexpected", Reason: "rows that are objects name their columns themselves"}
	rowsInvalid       = &push.Problem{Code: push.CodeWrongType, Reason: "rows must be an array of arrays or of objects, all alike"}
	rowTimeMixed      = &push.Problem{Code: "time_missing", Reason: "either all rows of an item have a time or none"}
	valueNotIntegral  = &push.Problem{Code: "not_an_integer", Reason: "must be a whole number"}
	valueUUID         = &push.Problem{Code: "invalid_uuid", Reason: "must be a UUID in its canonical form"}
)
