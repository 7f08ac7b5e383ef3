package logread

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"unicode/utf8"
)

// format is how records lie in a file.
type format struct {
	end func(data []byte) int // bytes of the first record, 0 if it is not complete
	key func(record []byte) (Key, bool)
}

var (
	csvlog  = format{csvEnd, csvKey}
	jsonlog = format{jsonEnd, jsonKey}
)

// Columns of csvlog, from 0. Source: PostgreSQL documentation, "Using
// CSV-Format Log Output"; the first 23 are the same since version 9.0.
const (
	csvSeverity = 11
	csvSQLState = 12
	csvColumns  = 23
)

// csvEnd finds the line feed that is in no quotes. A quote within quotes is
// doubled, so it opens what it has just closed.
func csvEnd(data []byte) int {
	quoted := false
	for i, c := range data {
		switch {
		case c == '"':
			quoted = !quoted
		case c == '\n' && !quoted:
			return i + 1
		}
	}
	return 0
}

func csvKey(record []byte) (Key, bool) {
	r := csv.NewReader(bytes.NewReader(record))
	r.ReuseRecord = true
	fields, err := r.Read()
	if err != nil || len(fields) < csvColumns {
		return Key{}, false
	}
	return key(fields[csvSeverity], fields[csvSQLState])
}

func jsonEnd(data []byte) int { return bytes.IndexByte(data, '\n') + 1 }

// jsonKey reads the keys that jsonlog has since version 15. Source: PostgreSQL
// documentation, "Using JSON-Format Log Output".
func jsonKey(record []byte) (Key, bool) {
	var fields struct {
		Severity string `json:"error_severity"`
		SQLState string `json:"state_code"`
	}
	if json.Unmarshal(record, &fields) != nil {
		return Key{}, false
	}
	if fields.SQLState == "" {
		fields.SQLState = "00000"
	}
	return key(fields.Severity, fields.SQLState)
}

// maxSeverity is the longest severity in bytes that is taken for one, in
// whatever language.
const maxSeverity = 32

// key takes only what looks like a severity and an SQLSTATE, so that a record
// that was misread cannot bring a message's text into the database.
func key(severity, state string) (Key, bool) {
	if severity == "" || len(severity) > maxSeverity || !utf8.ValidString(severity) || len(state) != 5 {
		return Key{}, false
	}
	for _, c := range severity {
		if c <= ' ' || c == 0x7f {
			return Key{}, false
		}
	}
	for _, c := range []byte(state) {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') {
			return Key{}, false
		}
	}
	return Key{severity, state}, true
}
