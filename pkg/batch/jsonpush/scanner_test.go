package jsonpush

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/fault"
)

// FuzzScanner compares the scanner with two libraries: it accepts what jsontext
// accepts, sees the same tokens, and finds the fault at the same byte, however
// the bytes arrive. What it accepts, encoding/json accepts too.
func FuzzScanner(f *testing.F) {
	for _, seed := range []string{
		`{"a": [1, -0.5e+10, 0, true, false, null, {"b": {}, "c": []}], "d": "\u00e9\ud83d\ude00é\\\"\/\b\f\n\r\t"}`,
		` [ 1 , 2 ] `, `{"a":1,"\u0061":2}`, `{"a":{"a":[{"a":1}]},"b":1}`, `"\ud800"`, `"\udc00\ud800"`, "\"\xff\"", "\"\xe2\x82\"", "\"\x1f\"",
		`01`, `-`, `1.`, `1e`, `1e+`, `[1,]`, `[,1]`, `{"a"}`, `{"a":}`, `{"a":1,}`, `{1:2}`, `{-`, `{nulx`, `[1}`, `nul`, `truer`, `[1 2]`, `{} {}`, `12`, ``, ` `,
		`[` + strings.Repeat("123456789,", 600) + `1]`, `"` + strings.Repeat("é", 3000) + `\n"`, strings.Repeat("[", 10_001),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		want, wantErr := jsontextTokens(data)
		if wantErr == nil {
			require.True(t, json.Valid(data))
		}
		var s scanner // used again and again, as by Decode
		for name, r := range map[string]io.Reader{
			"at once":     bytes.NewReader(data),
			"by byte":     iotest.OneByteReader(bytes.NewReader(data)),
			"by chance":   &randomReader{data: data, rand: rand.New(rand.NewPCG(uint64(len(data)), 1))},
			"with an end": iotest.DataErrReader(bytes.NewReader(data)),
		} {
			s.reset(r, nil)
			require.Zero(t, s.names.len())
			got, err := tokensOf(&s)
			requireSameOutcome(t, data, wantErr, err, name)
			if wantErr == nil {
				require.Equal(t, want, got, name)
			}
		}
		requireWholeValue(t, data, wantErr)
	})
}

// randomReader returns its data in pieces of random size.
type randomReader struct {
	data []byte
	rand *rand.Rand
}

func (r *randomReader) Read(p []byte) (int, error) {
	if len(r.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.data[:r.rand.IntN(min(len(r.data), 300)+1)])
	r.data = r.data[n:]
	return n, nil
}

func newScanner(body io.Reader) *scanner {
	s := &scanner{}
	s.reset(body, nil)
	return s
}

// errMore stands for what follows a whole JSON text.
var errMore = errors.New("goes on")

// jsontextTokens returns the tokens of one JSON text as jsontext sees them.
func jsontextTokens(data []byte) ([]string, error) {
	var tokens []string
	for d, done := jsontext.NewDecoder(bytes.NewReader(data)), false; ; done = d.StackDepth() == 0 {
		token, err := d.ReadToken()
		switch {
		case errors.Is(err, io.EOF) && done:
			return tokens, nil
		case err != nil:
			return tokens, err
		case done:
			return tokens, errMore
		}
		tokens = append(tokens, string(rune(token.Kind()))+token.String())
	}
}

// tokensOf returns the tokens of one JSON text as the scanner sees them.
func tokensOf(s *scanner) ([]string, error) {
	tokens, err := appendTokens(nil, s)
	if err != nil {
		return tokens, err
	}
	return tokens, s.end()
}

func appendTokens(tokens []string, s *scanner) ([]string, error) {
	k := s.peek()
	if k != kindObject && k != kindArray {
		raw, err := s.scalar()
		switch {
		case err != nil:
			return tokens, err
		case k == kindString:
			raw = text(raw)
		}
		return append(tokens, string(rune(k))+string(raw)), nil
	}
	if err := s.open(); err != nil {
		return tokens, err
	}
	tokens = append(tokens, string(rune(k))+string(rune(k)))
	for s.more() {
		if k == kindObject {
			name, err := s.name()
			if err != nil {
				return tokens, err
			}
			tokens = append(tokens, `"`+string(name))
		}
		var err error
		if tokens, err = appendTokens(tokens, s); err != nil {
			return tokens, err
		}
	}
	if err := s.leave(); err != nil {
		return tokens, err
	}
	return append(tokens, string(rune(k+2))+string(rune(k+2))), nil
}

// requireSameOutcome requires that the scanner accepts or refuses a text as
// jsontext does, and for the same reason at the same place.
func requireSameOutcome(t *testing.T, data []byte, want, got error, how string) {
	t.Helper()
	if want == nil {
		require.NoError(t, got, how)
		return
	}
	f, ok := errors.AsType[*fault.Error](got)
	require.True(t, ok, "%s: %v, not %v", how, got, want)
	syntax, ok := errors.AsType[*jsontext.SyntacticError](want)
	switch {
	case errors.Is(want, errMore):
		require.Equal(t, "the body goes on after its JSON value", f.Detail)
	case errors.Is(want, io.EOF):
		require.Equal(t, "the body is empty", f.Detail)
	case !ok:
		require.Fail(t, "another error of jsontext", want)
	case errors.Is(want, jsontext.ErrDuplicateName):
		require.Equal(t, push.CodeDuplicateName, f.Code)
		require.Equal(t, fmt.Sprintf("an object has the same name twice, near byte %d", syntax.ByteOffset), f.Detail, how)
	case errors.Is(want, io.ErrUnexpectedEOF): // of a number jsontext names the beginning
		require.Equal(t, "invalid_json", f.Code)
	default:
		require.Equal(t, "invalid_json", f.Code)
		var at int64
		_, err := fmt.Sscanf(f.Detail, "the body is not valid JSON in UTF-8, near byte %d", &at)
		require.NoError(t, err)
		if at < syntax.ByteOffset {
			// Instead of a name jsontext reads other tokens to their end.
			require.False(t, bytes.ContainsAny(data[at:syntax.ByteOffset], " \t\n\r,:[]{}\""), "%s: %v, not %v", how, got, want)
			return
		}
		// Of a comma with no value behind it jsontext names the comma.
		require.Empty(t, bytes.Trim(data[syntax.ByteOffset:at], ", \t\n\r"), "%s: %v, not %v", how, got, want)
	}
}

func TestValuesLieWithinEachOtherTenThousandDeep(t *testing.T) {
	t.Parallel()
	for depth, refused := range map[int]bool{10_000: false, 10_001: true} {
		for _, pair := range []string{"[]", "{}"} {
			text := strings.Repeat("[", depth-1) + pair + strings.Repeat("]", depth-1)
			s := newScanner(strings.NewReader(text))
			err := s.skip()
			require.Equal(t, refused, err != nil, depth)
			if refused {
				require.ErrorIs(t, err, errDepth)
				continue
			}
			require.NoError(t, s.end())
		}
	}
}

// requireWholeValue requires that a text read or skipped as one value has the
// outcome that it has token by token.
func requireWholeValue(t *testing.T, data []byte, want error) {
	t.Helper()
	s := newScanner(iotest.HalfReader(bytes.NewReader(data)))
	raw, err := s.value()
	if err == nil {
		require.Equal(t, string(bytes.TrimLeft(data, " \t\n\r")[:len(raw)]), string(raw))
		err = s.end()
	}
	requireSameOutcome(t, data, want, err, "as one value")
	s = newScanner(iotest.HalfReader(bytes.NewReader(data)))
	if err = s.skip(); err == nil {
		err = s.end()
	}
	requireSameOutcome(t, data, want, err, "skipped")
}
