package catalogue

import "fmt"

// Type is one of the closed list of column types. The numbers are those of
// Type in schemas/batch.proto and never change.
type Type uint8

// The types.
const (
	Boolean         Type = 1
	SmallInt        Type = 2
	Integer         Type = 3
	BigInt          Type = 4
	Real            Type = 5
	DoublePrecision Type = 6
	Text            Type = 7
	UUID            Type = 8
	TimestampTZ     Type = 9
)

// typeInfo holds a type's SQL name, its OID in pg_type and the length of a
// value in binary format, -1 when it varies.
var typeInfo = [...]struct {
	sql  string
	oid  uint32
	size int
}{
	Boolean:         {"boolean", 16, 1},
	SmallInt:        {"smallint", 21, 2},
	Integer:         {"integer", 23, 4},
	BigInt:          {"bigint", 20, 8},
	Real:            {"real", 700, 4},
	DoublePrecision: {"double precision", 701, 8},
	Text:            {"text", 25, -1},
	UUID:            {"uuid", 2950, 16},
	TimestampTZ:     {"timestamptz", 1184, 8},
}

// Valid reports whether t is one of the types.
func (t Type) Valid() bool { return t >= Boolean && t <= TimestampTZ }

// String returns the type's name in SQL and in the catalogue's files.
func (t Type) String() string {
	if !t.Valid() {
		return fmt.Sprintf("type(%d)", uint8(t))
	}
	return typeInfo[t].sql
}

// OID returns the type's object id in pg_type.
func (t Type) OID() uint32 { return typeInfo[t].oid }

// Size returns the length in bytes of a value in PostgreSQL's binary format,
// or -1 when it varies.
func (t Type) Size() int { return typeInfo[t].size }

// ParseType returns the type of that name.
func ParseType(name string) (Type, error) {
	for t := Boolean; t <= TimestampTZ; t++ {
		if typeInfo[t].sql == name {
			return t, nil
		}
	}
	return 0, fmt.Errorf("unknown type %q", name)
}

// numeric reports whether values of the type can be added and compared as
// numbers.
func (t Type) numeric() bool { return t >= SmallInt && t <= DoublePrecision }
