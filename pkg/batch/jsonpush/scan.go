package jsonpush

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json/jsontext"

	"pganalytics/pkg/fault"
)

// scanner reads JSON from a stream, strictly: RFC 8259 grammar, valid UTF-8,
// no duplicate names at any depth. It is the only place that knows the JSON
// library. Errors are *fault.Error for broken JSON and the reader's own,
// wrapped, when reading failed.
type scanner struct {
	dec *jsontext.Decoder
	src *source
}

func newScanner(r io.Reader) *scanner {
	src := &source{Reader: r}
	src.dec = jsontext.NewDecoder(src)
	return &scanner{dec: src.dec, src: src}
}

// maxToken bounds what the library buffers to read on: one value, or a run of
// white space. A row is one value; its largest text may take six bytes of
// escapes for one. The library's buffer doubles when full, so this lies below
// 8 MiB by more than one read.
const (
	maxToken = 7 << 20
	maxRead  = 64 << 10
)

// source remembers how reading failed, because within a nested value the
// library makes that look like broken JSON: a body that did not arrive would be
// refused for good.
type source struct {
	io.Reader
	dec  *jsontext.Decoder
	read int64
	err  error
}

func (s *source) Read(p []byte) (int, error) {
	if s.read-s.dec.InputOffset() > maxToken {
		s.err = tooLarge("", codeBodyTooLarge, "a value or a run of white space is larger than allowed")
		return 0, s.err
	}
	n, err := s.Reader.Read(p[:min(len(p), maxRead)])
	s.read += int64(n)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// kind is what a JSON value begins with. Zero means that the next read will
// return an error.
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

// peek returns the kind of the next value without reading it.
func (s *scanner) peek() kind { return kind(s.dec.PeekKind()) }

// more reports whether the open object or array goes on. It is true before an
// error too, which the next read then returns.
func (s *scanner) more() bool {
	k := s.dec.PeekKind()
	return k != '}' && k != ']'
}

// open enters the object or array that comes next.
func (s *scanner) open() error { return s.token() }

// leave leaves the object or array whose end was reached.
func (s *scanner) leave() error { return s.token() }

func (s *scanner) token() error {
	if _, err := s.dec.ReadToken(); err != nil {
		return s.fail(err)
	}
	return nil
}

// value returns the raw bytes of the next value or object name, which are
// valid JSON and stand until the next call.
func (s *scanner) value() ([]byte, error) {
	raw, err := s.dec.ReadValue()
	if err != nil {
		return nil, s.fail(err)
	}
	return raw, nil
}

// skip passes over the next value in constant memory.
func (s *scanner) skip() error {
	if err := s.dec.SkipValue(); err != nil {
		return s.fail(err)
	}
	return nil
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
	switch _, err := s.dec.ReadToken(); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return s.fail(err)
	default:
		return invalid("", codeInvalidJSON, "the body goes on after its JSON value")
	}
}

// fail tells broken JSON, the sender's fault, from a failed read, whose class is
// for the reader to say. The library's message is kept for our logs: it may
// hold input.
func (s *scanner) fail(err error) error {
	if s.src.err != nil {
		return fmt.Errorf("read body: %w", s.src.err)
	}
	if syntax, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		if errors.Is(err, jsontext.ErrDuplicateName) {
			return refused(codeDuplicateName, fmt.Sprintf("an object has the same name twice, near byte %d", syntax.ByteOffset), err)
		}
		return refused(codeInvalidJSON, fmt.Sprintf("the body is not valid JSON in UTF-8, near byte %d", syntax.ByteOffset), err)
	}
	if errors.Is(err, io.EOF) {
		return refused(codeInvalidJSON, "the body is empty", err)
	}
	return fmt.Errorf("read body: %w", err)
}

func refused(code, detail string, cause error) *fault.Error {
	e := invalid("", code, detail)
	e.Err = cause
	return e
}

// appendUnquoted appends the text of a raw JSON string that holds escapes.
func appendUnquoted(dst, raw []byte) []byte {
	// The string was validated when it was read, so this cannot fail.
	dst, _ = jsontext.AppendUnquote(dst, raw)
	return dst
}

// text returns the text of a raw JSON string, in place where it can.
func text(raw []byte) []byte {
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1]
	}
	return appendUnquoted(nil, raw)
}
