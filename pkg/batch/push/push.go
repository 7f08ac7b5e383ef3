// Package push holds what every form of a push has in common: its limits, the
// rules of what stands beside the rows, and what the sender is told. The forms
// read bytes; what is allowed is decided here, once. It must not know any form.
package push

import (
	"io"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/fault"
)

// Holder is a body that bounds the memory it costs. A batch can take many times
// the bytes that its body has.
type Holder interface {
	// Hold is told that reading the body takes so many bytes more. Its error
	// ends the decoding and is returned, wrapped.
	Hold(bytes int) error
}

// BodyTooLarge returns the fault of a body that is larger than allowed.
func BodyTooLarge() *fault.Error {
	return TooLarge("", CodeBodyTooLarge, "the body is larger than allowed")
}

// Bounded returns a body whose reader fails with what full returns once more
// than limit bytes were read.
func Bounded(body io.Reader, limit int64, full func() *fault.Error) io.Reader {
	return &boundedReader{src: body, left: limit, full: full}
}

type boundedReader struct {
	src  io.Reader
	left int64
	full func() *fault.Error
}

func (r *boundedReader) Read(p []byte) (int, error) {
	n, err := r.src.Read(p)
	if r.left -= int64(n); r.left < 0 {
		return 0, r.full()
	}
	return n, err
}

// Servers knows the servers of a collector by name. Each id is computed once.
type Servers struct {
	collector uuid.UUID
	known     map[string]Server
}

// Server is a collector's name for a server, with its id.
type Server struct {
	Name string
	ID   uuid.UUID
}

// ServersOf returns a collector's servers.
func ServersOf(collector uuid.UUID) Servers {
	return Servers{collector: collector, known: map[string]Server{}}
}

// Named returns the server of that name.
func (s *Servers) Named(name []byte) Server {
	server, ok := s.known[string(name)]
	if !ok {
		server.Name = string(name)
		server.ID = batch.ServerID(s.collector, server.Name)
		s.known[server.Name] = server
	}
	return server
}

// Upper bounds of what the envelope takes beside the tuples: fixed fields, and
// of each label and section what is not names.
const (
	HeadBytes    = 512
	RefusedBytes = 10

	labelBytes   = 16
	sectionBytes = 96
	columnBytes  = 12
)

// LabelBytes returns how many bytes a label takes at most.
func LabelBytes(l batch.Label) int { return labelBytes + len(l.Name) + len(l.Value) }

// SectionBytes returns how many bytes a section takes at most beside its tuples.
func SectionBytes(family string, columns []batch.Column) int {
	n := sectionBytes + len(family) + maxNameBytes
	for _, c := range columns {
		n += columnBytes + len(c.Name)
	}
	return n
}

// Invalid returns a fault that refuses the whole body.
func Invalid(pointer, code, detail string) *fault.Error {
	return refusal(fault.Invalid, pointer, code, detail)
}

// TooLarge returns a fault that refuses a body for its size.
func TooLarge(pointer, code, detail string) *fault.Error {
	return refusal(fault.TooLarge, pointer, code, detail)
}

// BatchTooLarge returns the fault of a batch that no message has room for, whose
// items stand at pointer.
func BatchTooLarge(pointer string) *fault.Error {
	return TooLarge(pointer, CodeBatchTooLarge, "the encoded batch is larger than one message may be; send it in parts")
}

func refusal(class fault.Class, pointer, code, detail string) *fault.Error {
	e := fault.New(class, code, detail)
	if pointer != "" {
		e.Fields = []fault.Field{{Pointer: pointer, Code: code, Detail: detail}}
	}
	return e
}
