package push

// Problem is one way in which a value or an item can be refused.
type Problem struct{ Code, Reason string }

// Codes of faults that refuse the whole body, whatever its form.
const (
	CodeUnknownMember    = "unknown_member"
	CodeDuplicateName    = "duplicate_name"
	CodeMissing          = "member_missing"
	CodeWrongType        = "wrong_type"
	CodeCollectorInvalid = "collector_id_invalid"
	CodeCollectorForeign = "collector_id_mismatch"
	CodeBatchID          = "batch_id_invalid"
	CodeTimestamp        = "timestamp_invalid"
	CodeHostname         = "hostname_invalid"
	CodeVersion          = "version_invalid"
	CodeNumbering        = "numbering_invalid"
	CodeLabels           = "labels_invalid"
	CodeMetricsEmpty     = "metrics_empty"
	CodeNothingAccepted  = "nothing_accepted"
	CodeTooOld           = "batch_too_old"
	CodeClockSkew        = "clock_skew"
	CodeBodyTooLarge     = "body_too_large"
	CodeBatchTooLarge    = "batch_too_large"
	CodeTooManyItems     = "too_many_items"
	CodeTooManyRows      = "too_many_rows"
)

// Faults of one item.
var (
	FamilyUnknown  = &Problem{"unknown_family", "no metric family has this name"}
	ServerInvalid  = &Problem{"server_invalid", "a server name must be 1 to 255 bytes long without control characters"}
	ColumnsInvalid = &Problem{"columns_invalid", "columns must be an array of names with at least one besides time"}
	ColumnUnknown  = &Problem{"unknown_column", "the family has no column of this name"}
	ColumnTwice    = &Problem{"duplicate_column", "the column is named twice"}
	KeyMissing     = &Problem{"key_missing", "a key column of the family is missing"}
	RowArity       = &Problem{"wrong_arity", "the row must have one value for each of columns"}
	TimeOutOfRange = &Problem{"time_out_of_range", "the row's time lies outside of what is kept for this family"}
)

// Faults of one value.
var (
	ValueNull     = &Problem{"null_not_allowed", "must not be null"}
	ValueType     = &Problem{CodeWrongType, "the value is not of the column's type"}
	ValueRange    = &Problem{"number_out_of_range", "the number is out of the column's range"}
	ValueTime     = &Problem{"invalid_time", "must be a time as in RFC 3339"}
	ValueNUL      = &Problem{"nul_character", "text must not hold the character U+0000"}
	ValueTextLong = &Problem{"text_too_long", "the text is longer than the limit"}
	ValueKeyLong  = &Problem{"key_too_long", "the text of a key must not be longer than 2,000 bytes"}
)
