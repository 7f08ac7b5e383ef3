package httpserver

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"pganalytics/pkg/fault"
)

// ReadJSON reads a small JSON body of at most limit bytes. Names that T does
// not have and names that occur twice are refused, and so are other content
// types and any content encoding. All errors are *fault.Error: UnsupportedMedia,
// TooLarge, Invalid, or Unavailable when the body did not arrive.
func ReadJSON[T any](r *http.Request, limit int64) (T, error) {
	var v T
	data, err := ReadJSONBody(r, limit)
	if err != nil {
		return v, err
	}
	return v, DecodeJSON(data, &v)
}

// ReadJSONBody is ReadJSON without the decoding.
func ReadJSONBody(r *http.Request, limit int64) ([]byte, error) {
	if _, err := ContentType(r, "application/json"); err != nil {
		return nil, err
	}
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return nil, fault.New(fault.UnsupportedMedia, "unsupported_encoding", "This path takes no content encoding.")
	}
	return readAll(r, limit)
}

// DecodeJSON is the decoding of ReadJSON. into is a pointer.
func DecodeJSON(data []byte, into any) error {
	if err := json.Unmarshal(data, into, json.RejectUnknownMembers(true)); err != nil {
		return invalidJSON(err)
	}
	return nil
}

// ContentType returns the media type of a request's body. It refuses those that
// are not wanted, and a charset that is not UTF-8.
func ContentType(r *http.Request, want ...string) (string, error) {
	media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	charset := params["charset"]
	if err != nil || !slices.Contains(want, media) || (charset != "" && !strings.EqualFold(charset, "utf-8")) {
		return "", fault.New(fault.UnsupportedMedia, "unsupported_media_type", "The Content-Type must be "+strings.Join(want, " or ")+".")
	}
	return media, nil
}

func readAll(r *http.Request, limit int64) ([]byte, error) {
	tooLarge := fault.New(fault.TooLarge, "body_too_large", fmt.Sprintf("The body is larger than %d bytes.", limit))
	if r.ContentLength > limit {
		return nil, tooLarge
	}
	var buf bytes.Buffer
	n, err := io.Copy(&buf, io.LimitReader(r.Body, limit+1))
	switch {
	case n > limit:
		return nil, tooLarge
	case err == nil:
		return buf.Bytes(), nil
	}
	if e, ok := errors.AsType[*fault.Error](err); ok {
		return nil, e
	}
	return nil, fault.Wrap(fault.Unavailable, fmt.Errorf("read body: %w", err))
}

// invalidJSON tells where a body is wrong. An unknown or repeated name is
// reported at the object that holds it: the name itself is the sender's text.
func invalidJSON(err error) error {
	field := fault.Field{Code: "invalid_json", Detail: "This is not valid JSON."}
	if syntactic, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		field.Pointer = string(syntactic.JSONPointer.Parent())
		if errors.Is(err, jsontext.ErrDuplicateName) {
			field.Code, field.Detail = "duplicate_name", "A name occurs twice in this object."
		}
	} else if semantic, ok := errors.AsType[*json.SemanticError](err); ok {
		field.Pointer = string(semantic.JSONPointer)
		field.Code, field.Detail = "wrong_type", "The value is of the wrong type."
		if errors.Is(err, json.ErrUnknownName) {
			field.Pointer = string(semantic.JSONPointer.Parent())
			field.Code, field.Detail = "unknown_member", "This object has a name that is not known."
		}
	}
	// The cause is not kept: it quotes the input, and the log must not.
	return &fault.Error{
		Class: fault.Invalid, Code: "body_invalid", Detail: "The body is not what this path takes.",
		Fields: []fault.Field{field},
	}
}

// WriteJSON answers with v. It marshals before it writes, so that an error is
// still a problem to the client.
func WriteJSON(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("marshal answer: %w", err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	if _, err := w.Write(body); err != nil {
		return fmt.Errorf("write answer: %w", err)
	}
	return nil
}
