package jsonpush

// extent says how much of a token there is in the bytes that it begins.
type extent uint8

const (
	complete  extent = iota // all of it
	openEnded               // all of it, if nothing follows the bytes
	cut                     // some of it
	wrong                   // no token goes on so
)

// tokenEnd returns the length of the scalar value at the front of b. Unless it
// is complete, that is the place at which it could not go on.
func tokenEnd(b []byte) (int, extent) {
	if len(b) == 0 {
		return 0, cut
	}
	switch b[0] {
	case '"':
		return stringEnd(b)
	case 'n':
		return literalEnd(b, "null")
	case 't':
		return literalEnd(b, "true")
	case 'f':
		return literalEnd(b, "false")
	}
	return numberEnd(b)
}

func literalEnd(b []byte, literal string) (int, extent) {
	if len(b) >= len(literal) && string(b[:len(literal)]) == literal {
		return len(literal), complete
	}
	for i := range b {
		if b[i] != literal[i] {
			return i, wrong
		}
	}
	return len(b), cut
}
