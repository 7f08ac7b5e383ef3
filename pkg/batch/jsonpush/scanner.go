package jsonpush

import (
	"errors"
	"fmt"
	"hash"
	"io"

	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/fault"
)

// scanner reads JSON from a stream, strictly: RFC 8259 grammar, valid UTF-8,
// no halves of surrogate pairs, no duplicate names at any depth, at most
// maxDepth values within each other. The caller steps through objects and
// arrays; the scanner sees to commas, colons and white space. Errors are
// *fault.Error for broken JSON and the reader's own, wrapped, when reading
// failed.
type scanner struct {
	window
	due   due
	whole bool        // maxToken bounds the value that is being read, not its parts
	nest  []container // objects and arrays that are open, the outermost first
	names names       // of the open objects
}

// due says what may come next within the innermost open value.
type due uint8

const (
	dueFirst due = iota // its first value or name, or its end
	dueValue            // a value or a name: comma or colon were read
	dueComma            // a comma, or its end
)

// container is an open object or array.
type container struct {
	end   byte // what closes it
	names int  // how many names were known before its own
}

// maxDepth bounds how deep values may lie within each other. It is part of the
// contract.
const maxDepth = 10_000

// reset makes it the scanner of another body and keeps its memory, unless a body
// needed unusually much. The bytes that it has passed over go into passed, which
// may be nil.
func (s *scanner) reset(body io.Reader, passed hash.Hash) {
	const usual = 1024 // values within each other, and names of open objects
	if cap(s.buf) > maxScratch || cap(s.nest) > usual || cap(s.names.ends) > usual || cap(s.names.text) > maxScratch {
		*s = scanner{}
	}
	s.names.drop(0)
	*s = scanner{
		window: window{src: body, buf: s.buf[:0], passed: passed, keep: -1},
		nest:   s.nest[:0],
		names:  s.names,
	}
}

// scannerOf returns a scanner of a value that was read before.
func scannerOf(raw []byte) *scanner {
	return &scanner{window: window{buf: raw, ended: io.EOF, keep: -1}}
}

// kind is what a JSON value begins with. Anything else means that the next read
// will return an error.
type kind byte

const (
	kindNull   kind = 'n'
	kindFalse  kind = 'f'
	kindTrue   kind = 't'
	kindString kind = '"'
	kindNumber kind = '0'
	kindObject kind = '{'
	kindArray  kind = '['
)

// kindOf returns the kind of a value by its first byte.
func kindOf(raw []byte) kind {
	if c := raw[0]; c == '-' || '0' <= c && c <= '9' {
		return kindNumber
	}
	return kind(raw[0])
}

// peek returns the kind of the next value without reading it.
func (s *scanner) peek() kind {
	if s.next() == 0 {
		return 0
	}
	return kindOf(s.buf[s.pos:])
}

// more reports whether the open object or array goes on. It is true before an
// error too, which the next read then returns.
func (s *scanner) more() bool {
	switch c := s.next(); {
	case s.due == dueValue:
	case c == s.nest[len(s.nest)-1].end:
		return false
	case s.due == dueComma && c == ',':
		s.pos++
		s.due = dueValue
	}
	return true
}

// open enters the object or array that comes next.
func (s *scanner) open() error {
	c := s.next()
	if s.due == dueComma || c != '{' && c != '[' {
		return s.unexpected()
	}
	if len(s.nest) == maxDepth {
		return s.broken(0, errDepth)
	}
	s.nest = append(s.nest, container{end: c + 2, names: s.names.len()}) // ']' and '}' are two behind their pairs
	s.due = dueFirst
	s.advance(1)
	return nil
}

// leave leaves the object or array whose end was reached.
func (s *scanner) leave() error {
	c, last := s.next(), len(s.nest)-1
	if s.due == dueValue || c != s.nest[last].end {
		return s.unexpected()
	}
	s.names.drop(s.nest[last].names)
	s.nest = s.nest[:last]
	s.due = dueComma
	s.advance(1)
	return nil
}

// name returns the next name of the open object, without escapes, and passes
// over the colon. It stands until the object is left.
func (s *scanner) name() ([]byte, error) {
	raw, err := s.rawName()
	if err != nil {
		return nil, err
	}
	name, unique := s.names.add(raw, s.nest[len(s.nest)-1].names)
	if !unique {
		return nil, s.broken(-len(raw), errDuplicate)
	}
	return name, s.colon()
}

// rawName is name for a caller that looks for duplicates itself and calls
// colon then. It stands until the next read.
func (s *scanner) rawName() ([]byte, error) {
	if c := s.next(); s.due == dueComma || c != '"' {
		return nil, s.unexpected()
	}
	return s.token()
}

// nameIs passes over the next name and its colon if they are written as quoted
// and stand close to each other. Else it does nothing, which says nothing.
func (s *scanner) nameIs(quoted []byte) bool {
	b, n := s.buf[s.pos:], len(quoted)
	if s.due == dueComma || len(b) <= n || b[n] != ':' || string(b[:n]) != string(quoted) {
		return false
	}
	s.pos += n + 1
	s.due = dueValue
	return true
}

func (s *scanner) colon() error {
	if s.next() != ':' {
		return s.unexpected()
	}
	s.pos++
	s.due = dueValue
	return nil
}

// value returns the raw bytes of the next value. They stand until the next
// call.
func (s *scanner) value() ([]byte, error) {
	if k := s.peek(); k != kindObject && k != kindArray {
		return s.scalar()
	}
	s.keep, s.whole = s.pos, true
	if err := s.skip(); err != nil {
		return nil, err
	}
	raw := s.buf[s.keep:s.pos]
	s.keep = -1
	s.pass()
	return raw, nil
}

// pass ends the reading of a value that is bounded as a whole.
func (s *scanner) pass() { s.whole, s.since = false, s.offset() }

// element is value for a caller that wants no objects and arrays: of such a one
// it returns the first byte, and does not pass over it.
func (s *scanner) element() ([]byte, error) {
	if k := s.peek(); s.due != dueComma && (k == kindObject || k == kindArray) {
		return s.buf[s.pos : s.pos+1], nil
	}
	return s.scalar()
}

// scalar is value for all but objects and arrays.
func (s *scanner) scalar() ([]byte, error) {
	if s.next(); s.due == dueComma {
		return nil, s.unexpected()
	}
	raw, err := s.token()
	s.due = dueComma
	return raw, err
}

// skip passes over the next value in constant memory.
func (s *scanner) skip() error {
	if k := s.peek(); k != kindObject && k != kindArray {
		_, err := s.scalar()
		return err
	}
	depth := len(s.nest)
	if err := s.open(); err != nil {
		return err
	}
	return s.unwind(depth)
}

// unwind passes over what is left of the open values until no more than depth
// are open.
func (s *scanner) unwind(depth int) error {
	for len(s.nest) > depth {
		if !s.more() {
			if err := s.leave(); err != nil {
				return err
			}
			continue
		}
		if s.nest[len(s.nest)-1].end == '}' {
			if _, err := s.name(); err != nil {
				return err
			}
		}
		if err := s.enter(); err != nil {
			return err
		}
	}
	return nil
}

// enter opens the next value if it is an object or array, and else passes over
// it.
func (s *scanner) enter() error {
	if k := s.peek(); k == kindObject || k == kindArray {
		return s.open()
	}
	_, err := s.scalar()
	return err
}

// rest returns what is left of the open array, as an array of its own.
func (s *scanner) rest() ([]byte, error) {
	held := []byte{'['}
	for s.more() {
		raw, err := s.value()
		if err != nil {
			return nil, err
		}
		if len(held) > 1 {
			held = append(held, ',')
		}
		held = append(held, raw...)
	}
	return append(held, ']'), nil
}

// end reads to the end of the body and allows white space only.
func (s *scanner) end() error {
	if s.next(); s.pos == len(s.buf) {
		if s.failed() {
			return s.unread()
		}
		if s.passed != nil {
			s.passed.Write(s.buf)
		}
		return nil
	}
	s.due = dueFirst
	if err := s.enter(); err != nil {
		return err
	}
	return push.Invalid("", codeInvalidJSON, "the body goes on after its JSON value")
}

// token returns the raw bytes of the token that begins at the scanner.
func (s *scanner) token() ([]byte, error) {
	for {
		n, is := tokenEnd(s.buf[s.pos:])
		switch {
		case is == complete:
		case is != wrong && s.extend():
			continue
		case is == openEnded && !s.failed():
		case is == wrong:
			return nil, s.broken(n, errCharacter)
		default:
			return nil, s.broken(n, errEnd)
		}
		raw := s.buf[s.pos : s.pos+n]
		s.advance(n)
		return raw, nil
	}
}

// advance passes over a token.
func (s *scanner) advance(n int) {
	s.pos += n
	if !s.whole {
		s.since = s.offset()
	}
}

// What is wrong with broken JSON.
var (
	errCharacter = errors.New("unexpected character")
	errEnd       = errors.New("unexpected end")
	errDepth     = fmt.Errorf("more than %d values within each other", maxDepth)
	errDuplicate = errors.New("duplicate name")
)

// unexpected is the error of a byte, or an end, at which nothing may be that
// begins so.
func (s *scanner) unexpected() error {
	if s.pos == len(s.buf) {
		return s.broken(0, errEnd)
	}
	return s.broken(0, errCharacter)
}

// broken tells broken JSON, the sender's fault, from a failed read, whose class
// is for the reader to say: a body that did not arrive must not be refused for
// good. The fault lies so many bytes behind the scanner.
func (s *scanner) broken(behind int, cause error) error {
	at := s.offset() + int64(behind)
	switch {
	case s.failed():
		return s.unread()
	case errors.Is(cause, errDuplicate):
		return refused(push.CodeDuplicateName, fmt.Sprintf("an object has the same name twice, near byte %d", at), cause)
	case len(s.nest) == 0 && s.pos == len(s.buf):
		return refused(codeInvalidJSON, "the body is empty", cause)
	}
	return refused(codeInvalidJSON, fmt.Sprintf("the body is not valid JSON in UTF-8, near byte %d", at), cause)
}

func (s *scanner) unread() error { return fmt.Errorf("read body: %w", s.ended) }

func refused(code, detail string, cause error) *fault.Error {
	e := push.Invalid("", code, detail)
	e.Err = cause
	return e
}
