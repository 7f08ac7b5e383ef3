package jsonpush

import (
	"hash"
	"io"

	"pganalytics/pkg/batch/push"
)

// maxToken bounds what is buffered of one value that is read whole, such as a
// row, and how long a run of white space may be. The largest text of a row may
// take six bytes of escapes for one.
const maxToken = 7 << 20

// Sizes of the buffer in bytes: what a small body needs, and what reading a
// large one needs to be cheap. It grows beyond for a long token only.
const (
	smallBuffer = 4 << 10
	largeBuffer = 32 << 10
)

// window is the part of a body that is in memory.
type window struct {
	src    io.Reader
	buf    []byte    // buf[pos:] is still to be scanned
	pos    int       // of the scanner
	keep   int       // where the value begins that is being read whole, or -1
	base   int64     // the body's bytes before buf
	since  int64     // the body's bytes before what maxToken bounds
	ended  error     // io.EOF, or how reading failed
	passed hash.Hash // takes the bytes before buf; nil: nobody asks for them
}

// offset returns how many bytes of the body lie before the scanner.
func (w *window) offset() int64 { return w.base + int64(w.pos) }

// fill reads on. It returns false when no more bytes came, and ended tells why.
func (w *window) fill() bool {
	if w.ended != nil {
		return false
	}
	if w.base+int64(len(w.buf))-w.since > maxToken {
		w.ended = push.TooLarge("", push.CodeBodyTooLarge, "a value or a run of white space is larger than allowed")
		return false
	}
	w.makeRoom()
	const patience = 100 // reads of nothing, as in bufio
	for range patience {
		n, err := w.src.Read(w.buf[len(w.buf):cap(w.buf)])
		w.buf = w.buf[:len(w.buf)+n]
		w.ended = err
		if n > 0 || err != nil {
			return n > 0
		}
	}
	w.ended = io.ErrNoProgress
	return false
}

// makeRoom gives back what was scanned, and takes a larger buffer when that is
// not enough.
func (w *window) makeRoom() {
	size := cap(w.buf)
	if size > 0 && size-len(w.buf) >= size/16 {
		return
	}
	start := w.pos
	if w.keep >= 0 {
		start = w.keep
	}
	live := w.buf[start:]
	if w.passed != nil {
		w.passed.Write(w.buf[:start])
	}
	switch {
	case size == 0:
		w.buf = make([]byte, 0, smallBuffer)
	case size < largeBuffer || len(live) > size/2:
		w.buf = append(make([]byte, 0, max(2*size, largeBuffer)), live...)
	default:
		w.buf = w.buf[:copy(w.buf, live)]
	}
	w.base += int64(start)
	w.pos -= start
	if w.keep >= 0 {
		w.keep = 0
	}
}

// extend reads on within a token that begins at the scanner, until it is twice
// as long or no more bytes come. So a token that arrives in small pieces is
// scanned anew a few times only.
func (w *window) extend() bool {
	extended := false
	for want := 2 * (len(w.buf) - w.pos); len(w.buf)-w.pos <= want && w.fill(); {
		extended = true
	}
	return extended
}

// next passes over white space and returns the byte that follows. At the end
// it returns 0, which begins no token either.
func (w *window) next() byte {
	if w.pos < len(w.buf) && w.buf[w.pos] > ' ' { // as a rule, so that this is inlined
		return w.buf[w.pos]
	}
	return w.nextBehindSpace()
}

func (w *window) nextBehindSpace() byte {
	for {
		for ; w.pos < len(w.buf); w.pos++ {
			switch c := w.buf[w.pos]; c {
			case ' ', '\t', '\n', '\r':
			default:
				return c
			}
		}
		if !w.fill() {
			return 0
		}
	}
}

// failed reports whether the body could not be read to its end. An error that
// only wraps io.EOF is not the end: so an inflater says that it found nothing.
func (w *window) failed() bool {
	return w.ended != nil && w.ended != io.EOF //nolint:errorlint // see above
}
