package gateway

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/policy/pulled"
)

// FuzzIntake feeds anything as anything: what comes out is bounded and
// classified, and what was taken is given back.
func FuzzIntake(f *testing.F) {
	gzipHello := []byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xcb\x48\xcd\xc9\xc9\x07\x00\x86\xa6\x10\x36\x05\x00\x00\x00")
	zstdHello := []byte("\x28\xb5\x2f\xfd\x04\x00\x29\x00\x00hello\xf4\xd5\x23\xd7")
	f.Add(byte(0), []byte("hello"))
	f.Add(byte(1), gzipHello)
	f.Add(byte(1), gzipHello[:20])
	f.Add(byte(2), zstdHello)
	f.Add(byte(2), append(zstdHello, zstdHello...))
	f.Fuzz(func(t *testing.T, which byte, wire []byte) {
		encodings := []encoding{identityEncoding, gzipEncoding, zstdEncoding}
		const maxWire, maxInFlight = 64 << 10, 9 << 20
		g := &Gateway{cfg: Config{MaxWireBytes: maxWire}, budget: &budget{max: maxInFlight}}
		r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(wire))
		in, err := g.open(r, encodings[int(which)%len(encodings)])
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, in)
		if n > maxInFlight {
			t.Errorf("%d bytes came out of a budget of %d", n, maxInFlight)
		}
		if _, ok := errors.AsType[*fault.Error](err); err != nil && !ok {
			t.Errorf("unclassified: %v", err)
		}
		in.Close()
		if used := g.budget.used.Load(); used != 0 {
			t.Errorf("%d bytes are not given back", used)
		}
	})
}

// FuzzTraceParent checks that what is passed on is what was sent and cannot
// break a line.
func FuzzTraceParent(f *testing.F) {
	f.Add("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	f.Add("00-00000000000000000000000000000000-b7ad6b7169203331-01")
	f.Fuzz(func(t *testing.T, value string) {
		got := traceParent(http.Header{"Traceparent": {value}})
		if got != "" && (got != value || len(got) != 55) {
			t.Errorf("%q became %q", value, got)
		}
		for _, c := range []byte(got) {
			if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'f') {
				t.Errorf("%q holds %q", got, c)
			}
		}
	})
}

// FuzzReadState reads any query of a collector: what is kept of it is bounded
// and harmless.
func FuzzReadState(f *testing.F) {
	f.Add("applied=1&refused=2&detail=why&resent=6ba7b810-9dad-11d1-80b4-00c04fd430c8&found=3&missing=4")
	f.Add("applied=9223372036854775807&detail=%1b%5b2J%00%ff")
	f.Add("detail=%zz")
	f.Fuzz(func(t *testing.T, query string) {
		s, says, err := readState(query)
		if err != nil && fault.ClassOf(err) != fault.Invalid {
			t.Errorf("unclassified: %v", err)
		}
		if err != nil || !says {
			return
		}
		if s.Applied < 0 || s.Refused < 0 || s.Resent != nil && (s.Resent.Found < 0 || s.Resent.Missing < 0) {
			t.Errorf("below zero: %+v", s)
		}
		if len(s.Detail) > pulled.MaxDetail || strings.ContainsFunc(s.Detail, unicode.IsControl) {
			t.Errorf("detail %q", s.Detail)
		}
	})
}
