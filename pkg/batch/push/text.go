package push

import (
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
)

// ValidName reports whether a text can name a server: 1 to 255 bytes of UTF-8
// without control characters.
func ValidName[T string | []byte](name T) bool { return len(name) > 0 && ValidNote(name) }

// ValidNote is ValidName for texts that may be empty, such as the value of a
// label.
func ValidNote[T string | []byte](note T) bool {
	if len(note) > maxNameBytes {
		return false
	}
	for s := []byte(note); len(s) > 0; {
		r, n := utf8.DecodeRune(s)
		if unicode.IsControl(r) || r == utf8.RuneError && n == 1 {
			return false
		}
		s = s[n:]
	}
	return true
}

// Printable returns a name as it may stand in an answer: as it is when it could
// be the name of a family or a column, else empty, for inputs are not echoed.
// Names of labels are such as well.
func Printable[T string | []byte](name T) string {
	if len(name) == 0 || len(name) > maxPrintedName {
		return ""
	}
	for i, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '_', i > 0 && '0' <= c && c <= '9':
		default:
			return ""
		}
	}
	return string(name)
}

// timeOfUUIDv7 returns the time that a UUIDv7 carries.
func timeOfUUIDv7(id uuid.UUID) time.Time {
	ms := int64(id[0])<<40 | int64(id[1])<<32 | int64(id[2])<<24 | int64(id[3])<<16 | int64(id[4])<<8 | int64(id[5])
	return time.UnixMilli(ms).UTC()
}

func isUUIDv7(id uuid.UUID) bool { return id.Version() == 7 && id.Variant() == uuid.RFC4122 }
