package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/go-chi/chi/v5"
	"github.com/google/uuid"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/httpserver"
	"pganalytics/pkg/policy/pulled"
)

// config answers a collector with what it is to read, from memory. On the way
// it takes what the collector says of what it has; whether that can be kept
// does not matter to the answer.
func (g *Gateway) config(w http.ResponseWriter, r *http.Request) error {
	result, err := g.answerConfig(w, r)
	if err != nil {
		result = fault.ClassOf(err).String()
	}
	g.metrics.configs.WithLabelValues(result).Inc()
	return err
}

func (g *Gateway) answerConfig(w http.ResponseWriter, r *http.Request) (result string, err error) {
	who, err := g.authenticate(r)
	if err != nil {
		return "", err
	}
	if chi.URLParam(r, "collector_id") != who.CollectorID.String() {
		return "", fault.New(fault.Forbidden, "forbidden", "A collector gets its own configuration only.")
	}
	state, reports, err := readState(r.URL.RawQuery)
	if err != nil {
		return "", err
	}
	if reports {
		g.report(r.Context(), who.CollectorID, state)
	}
	answer, known := g.configs.Answer(who.CollectorID)
	switch {
	case !known:
		return "", fault.New(fault.Unavailable, fault.Unavailable.String(), "The configurations are not known yet.")
	case answer.Version == 0 && answer.Resend == nil:
		return "", fault.New(fault.NotFound, "no_config", "Nothing was ever set for this collector.")
	}
	return sendConfig(w, r, answer)
}

// sendConfig answers 304 to who has the very same answer.
func sendConfig(w http.ResponseWriter, r *http.Request, answer pulled.Answer) (result string, err error) {
	body, err := json.Marshal(answer)
	if err != nil {
		return "", fmt.Errorf("marshal configuration: %w", err)
	}
	sum := sha256.Sum256(body)
	tag := `"` + base64.RawURLEncoding.EncodeToString(sum[:16]) + `"`
	h := w.Header()
	h.Set("ETag", tag)
	h.Set("Cache-Control", "no-store")
	if matches(r.Header.Values("If-None-Match"), tag) {
		w.WriteHeader(http.StatusNotModified)
		return "unchanged", nil
	}
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	if _, err := w.Write(body); err != nil {
		return "", fmt.Errorf("write answer: %w", err)
	}
	return "sent", nil
}

func matches(conditions []string, tag string) bool {
	for _, line := range conditions {
		for one := range strings.SplitSeq(line, ",") {
			one = strings.TrimSpace(one)
			if one == "*" || strings.TrimPrefix(one, "W/") == tag {
				return true
			}
		}
	}
	return false
}

// reportTimeout is short: the collector waits, and says the same next time.
const reportTimeout = 2 * time.Second

func (g *Gateway) report(ctx context.Context, collector uuid.UUID, s pulled.State) {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	err := g.configs.Report(ctx, collector, s)
	g.metrics.reports.WithLabelValues(outcome(err)).Inc()
	if err != nil {
		httpserver.Annotate(ctx, slog.Any("report_err", err))
	}
}

// readState reads what a collector says in the query: applied, and with it
// refused, detail, resent, found and missing. False means that it says nothing.
func readState(query string) (s pulled.State, says bool, err error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return s, false, badQuery("")
	}
	if !values.Has("applied") {
		return s, false, nil
	}
	s.Detail = printable(values.Get("detail"))
	var errs []error
	number := func(name string, bits int) int64 {
		text := values.Get(name)
		if text == "" && name != "applied" {
			return 0
		}
		n, err := strconv.ParseUint(text, 10, bits)
		if err != nil {
			errs = append(errs, badQuery(name))
		}
		return int64(n) // of at most 63 bits
	}
	s.Applied, s.Refused = number("applied", 63), number("refused", 63)
	if text := values.Get("resent"); text != "" {
		id, err := uuid.Parse(text)
		if err != nil {
			errs = append(errs, badQuery("resent"))
		}
		s.Resent = &pulled.Resent{ID: id, Found: int(number("found", 31)), Missing: int(number("missing", 63))}
	}
	return s, true, errors.Join(errs...)
}

func badQuery(parameter string) error {
	return &fault.Error{
		Class: fault.Invalid, Code: "request_invalid", Detail: "A parameter is not what this path takes.",
		Fields: []fault.Field{{Pointer: parameter, Code: "wrong_type", Detail: "This parameter cannot be read."}},
	}
}

// printable bounds a text of a collector and leaves nothing in it that could
// move a terminal's cursor.
func printable(text string) string {
	text = strings.ToValidUTF8(text[:min(len(text), pulled.MaxDetail)], "")
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text)
}
