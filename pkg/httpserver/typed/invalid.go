package typed

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"pganalytics/pkg/fault"
)

// found makes a fault of what huma found. Below 500 it is about the request,
// and only the places and what is expected there are told: huma's values and
// the names of unknown parameters are the sender's text.
func found(op *huma.Operation, status int, message string, errs []error) error {
	if status >= http.StatusInternalServerError || status == http.StatusNotAcceptable {
		return errors.Join(append([]error{errors.New(message)}, errs...)...)
	}
	f := &fault.Error{Class: fault.Invalid, Code: "request_invalid", Detail: "The request is not what this path takes."}
	for _, err := range errs {
		detail, ok := errors.AsType[*huma.ErrorDetail](err)
		if !ok {
			continue
		}
		f.Fields = append(f.Fields, fault.Field{
			Pointer: pointer(op, detail.Location), Code: "value_invalid", Detail: expectation(detail.Message),
		})
	}
	return f
}

// expectation drops what stands behind a colon: there huma quotes parsers,
// which quote the input.
func expectation(message string) string {
	text, _, _ := strings.Cut(message, ":")
	return text
}

var escape = strings.NewReplacer("~", "~0", "/", "~1")

// pointer makes a JSON pointer of "body.hosts[3].name", and the bare name of
// "query.page" and "path.id".
func pointer(op *huma.Operation, location string) string {
	in, rest, _ := strings.Cut(location, ".")
	if in != "body" {
		for _, p := range op.Parameters {
			if p.In == in && p.Name == rest {
				return rest
			}
		}
		return ""
	}
	var b strings.Builder
	for _, part := range strings.FieldsFunc(rest, func(r rune) bool { return r == '.' || r == '[' || r == ']' }) {
		b.WriteString("/" + escape.Replace(part))
	}
	return b.String()
}

// checkText refuses paths and queries that are not UTF-8 or have control
// characters, before a database has to.
func checkText(r *http.Request) error {
	ok := plain(r.URL.Path)
	query, err := url.ParseQuery(r.URL.RawQuery)
	for name, values := range query {
		ok = ok && plain(name) && !slices.ContainsFunc(values, func(v string) bool { return !plain(v) })
	}
	if !ok || err != nil {
		return fault.New(fault.Invalid, "request_invalid", "The path or a parameter has characters that it must not have.")
	}
	return nil
}

func plain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}
