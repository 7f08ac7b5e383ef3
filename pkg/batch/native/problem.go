package native

import (
	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/fault"
)

// Codes of faults that refuse the whole body and that only this form can have.
const codeSectionCount = "section_count_mismatch"

// Faults of a message, the body's own or one within it.
var (
	malformed    = &push.Problem{Code: "protobuf_invalid", Reason: "the message is not valid protobuf, or was cut off"}
	fieldUnknown = &push.Problem{Code: push.CodeUnknownMember, Reason: "the message has a field that is not known, or of another type"}
	fieldTwice   = &push.Problem{Code: push.CodeDuplicateName, Reason: "the message has a field twice that is no list"}
)

// Faults of one item or value that only this form can have, or has for a reason
// of its own.
var (
	columnType      = &push.Problem{Code: push.CodeWrongType, Reason: "the column is of another type in the catalogue"}
	serverForeign   = &push.Problem{Code: "server_id_mismatch", Reason: "is not the id of this collector's server of the section's name"}
	rowsMiscounted  = &push.Problem{Code: "rows_mismatch", Reason: "is not the number of the tuples"}
	tuplesMalformed = &push.Problem{Code: "tuples_malformed", Reason: "is no tuple of PostgreSQL's binary COPY format"}
	valueInfinite   = &push.Problem{Code: push.ValueRange.Code, Reason: "must be a finite number"}
	valueTime       = &push.Problem{Code: push.ValueTime.Code, Reason: "must be a time that PostgreSQL can store"}
	valueUTF8       = &push.Problem{Code: "invalid_utf8", Reason: "text must be UTF-8"}
)

// invalid returns the fault of a body for a fault of its message.
func invalid(pointer string, p *push.Problem) *fault.Error {
	return push.Invalid(pointer, p.Code, p.Reason)
}

func tooLarge() *fault.Error { return push.BatchTooLarge("/sections") }
