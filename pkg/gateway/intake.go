package gateway

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"pganalytics/pkg/fault"
)

// encoding is a content encoding that we read.
type encoding string

const (
	identityEncoding encoding = "identity"
	gzipEncoding     encoding = "gzip"
	zstdEncoding     encoding = "zstd"
)

// parseEncoding refuses encodings that we do not read and several on top of
// each other.
func parseEncoding(values []string) (encoding, error) {
	switch e := encoding(strings.ToLower(strings.Join(values, ","))); e {
	case "":
		return identityEncoding, nil
	case identityEncoding, gzipEncoding, zstdEncoding:
		return e, nil
	}
	return "", fault.New(fault.UnsupportedMedia, "unsupported_encoding",
		"The Content-Encoding must be gzip, zstd or identity.")
}

// maxWindow is the largest zstd window in bytes. RFC 8878 asks every decoder
// for 8 MiB, and common encoders use as much.
const maxWindow = 8 << 20

// requestCost is booked for each push before its body is read, in bytes: about
// what an inflater and the buffers of a connection take.
const requestCost = 64 << 10

// intake reads one body: from the wire, inflated, within the budget. It must be
// closed. It is a push.Holder.
type intake struct {
	encoding encoding
	wire     wireReader
	content  io.Reader // inflated; nil until the first read
	inflated int64
	lease    lease
	release  func() // gives the inflater back
	err      error  // first fault that was met
}

// open prepares to read a body. It reads nothing, and fails only for want of
// budget.
func (g *Gateway) open(r *http.Request, e encoding) (*intake, error) {
	in := &intake{
		encoding: e,
		wire:     wireReader{src: r.Body, max: g.cfg.MaxWireBytes},
		lease:    lease{budget: g.budget},
		release:  func() {},
	}
	if !in.lease.grow(requestCost) {
		return nil, busy()
	}
	return in, nil
}

// Read returns inflated bytes. Its errors other than io.EOF are *fault.Error.
// Bytes are booked as they come, not as they are announced: a sender that
// stalls must not keep others out with memory that it does not use.
func (in *intake) Read(p []byte) (int, error) {
	if in.err == nil && in.content == nil {
		in.err = in.inflate()
	}
	if in.err != nil {
		return 0, in.err
	}
	n, err := in.content.Read(p)
	in.inflated += int64(n)
	if !in.lease.grow(int64(n)) {
		in.err = busy()
		return 0, in.err
	}
	if err != nil && !errors.Is(err, io.EOF) {
		in.err = in.classify(err)
		return n, in.err
	}
	return n, err
}

// Hold books what the batch takes beside its body.
func (in *intake) Hold(bytes int) error {
	if !in.lease.grow(int64(bytes)) {
		return busy()
	}
	return nil
}

func (in *intake) inflate() error {
	switch in.encoding {
	case identityEncoding:
		in.content = &in.wire
	case gzipEncoding:
		z := gzips.Get().(*gzip.Reader)
		in.release = func() { gzips.Put(z) }
		if err := z.Reset(&in.wire); err != nil {
			return in.classify(err)
		}
		in.content = z
	case zstdEncoding:
		src := bufio.NewReaderSize(&in.wire, 4<<10)
		if err := in.bookWindow(src); err != nil {
			return err
		}
		z := zstds.Get().(*zstd.Decoder)
		in.release = func() {
			_ = z.Reset(nil) // lets go of the body
			zstds.Put(z)
		}
		if err := z.Reset(src); err != nil {
			return in.classify(err)
		}
		in.content = z
	}
	return nil
}

// bookWindow books the memory that the zstd frame asks for.
func (in *intake) bookWindow(src *bufio.Reader) error {
	head, _ := src.Peek(zstd.HeaderMaxSize) // a short body may hold less; the decoder judges it
	var h zstd.Header
	if h.Decode(head) == nil && !h.Skippable && !in.lease.grow(int64(min(h.WindowSize, maxWindow))) {
		return busy()
	}
	return nil
}

// classify tells the wire's own fault from a body that is not what its
// Content-Encoding says.
func (in *intake) classify(err error) error {
	switch {
	case in.wire.err != nil:
		return in.wire.err
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return &fault.Error{
			Class: fault.TooLarge, Code: "window_too_large",
			Detail: fmt.Sprintf("The zstd window is larger than %d bytes.", maxWindow), Err: err,
		}
	default:
		return &fault.Error{
			Class: fault.Invalid, Code: "encoding_invalid",
			Detail: "The body is not encoded as its Content-Encoding says.", Err: err,
		}
	}
}

// hold replaces what the body has booked by the bytes that are held from now
// on. It does not refuse: the work is done, and to stop now would only mean to
// do it again.
func (in *intake) hold(bytes int64) {
	in.release()
	in.release = func() {}
	in.lease.set(bytes)
}

// Close gives everything back.
func (in *intake) Close() {
	in.release()
	in.lease.set(0)
}

// wireReader counts and bounds the body as it is sent.
type wireReader struct {
	src  io.Reader
	max  int64
	read int64
	err  error // first error but io.EOF
}

func (w *wireReader) Read(p []byte) (int, error) {
	n, err := w.src.Read(p)
	w.read += int64(n)
	if w.read > w.max {
		w.err = wireTooLarge(w.max)
		return 0, w.err
	}
	if err != nil && !errors.Is(err, io.EOF) && w.err == nil {
		w.err = fmt.Errorf("read body: %w", err)
	}
	return n, err
}

func wireTooLarge(limit int64) error {
	return fault.New(fault.TooLarge, "body_too_large", fmt.Sprintf("The body is larger than %d bytes as sent.", limit))
}

// Inflaters are kept because each costs tens of kilobytes to make. A zstd
// decoder with concurrency 1 has no goroutines that would outlive it.
var (
	gzips = sync.Pool{New: func() any { return new(gzip.Reader) }}
	zstds = sync.Pool{New: func() any {
		z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow))
		if err != nil {
			panic(err) // only wrong options, which are constant
		}
		return z
	}}
)
