package uplink

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxAnswerBytes bounds what is read of an answer.
const maxAnswerBytes = 1 << 20

// problem is what the backend says when it does not do what was asked.
type problem struct {
	Status     int
	Code       string        // empty when the answer was not a problem document: then it is not the backend's
	Detail     string        // for people
	RetryAfter time.Duration // 0 when it says nothing
	Text       []byte        // the answer itself
}

// Error returns what the backend said about the failure.
func (p *problem) Error() string {
	if p.Code == "" {
		return fmt.Sprintf("status %d without a problem document", p.Status)
	}
	return fmt.Sprintf("status %d %s: %s", p.Status, p.Code, p.Detail)
}

// newTransport makes the connections of one identity. cert is nil before
// enrolment.
func newTransport(cas []*x509.Certificate, cert *tls.Certificate) *http.Transport {
	pool := x509.NewCertPool()
	for _, c := range cas {
		pool.AddCert(c)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	return &http.Transport{
		TLSClientConfig:     cfg,
		TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConns:        2,
		IdleConnTimeout:     2 * time.Minute, // beyond the usual interval between two pushes
		DisableCompression:  true,
		Proxy:               http.ProxyFromEnvironment,
	}
}

// request is one call of the backend.
type request struct {
	method   string
	url      string
	token    string // empty: none
	body     []byte
	kind     string // media type of the body; empty: JSON
	encoding string // of the body

	// tag, if it is not nil, is the entity tag of what we have: it is sent as a
	// condition, and replaced by that of the answer.
	tag *string
}

// do sends the request and returns the answer's body if its status is one of
// want.
// Any other answer is a *problem; other errors mean that there was none.
func do(ctx context.Context, client *http.Client, r request, want ...int) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, r.method, r.url, bytes.NewReader(r.body))
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	if r.body != nil {
		req.Header.Set("Content-Type", cmp.Or(r.kind, "application/json"))
	}
	if r.encoding != "" {
		req.Header.Set("Content-Encoding", r.encoding)
	}
	if r.token != "" {
		req.Header.Set("Authorization", "Bearer "+r.token)
	}
	if r.tag != nil && *r.tag != "" {
		req.Header.Set("If-None-Match", *r.tag)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if !slices.Contains(want, resp.StatusCode) {
		return nil, readProblem(resp, text)
	}
	if r.tag != nil {
		*r.tag = resp.Header.Get("ETag")
	}
	return text, nil
}

func readProblem(resp *http.Response, text []byte) *problem {
	p := &problem{Status: resp.StatusCode, Text: text, RetryAfter: retryAfter(resp.Header.Get("Retry-After"), time.Now())}
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	var doc struct {
		Type   string `json:"type"`
		Code   string `json:"code"`
		Detail string `json:"detail"`
	}
	// Gateways of others speak problem+json too, and know codes of their own.
	if kind == "application/problem+json" && json.Unmarshal(text, &doc) == nil && doc.Code != "" && doc.Type == problemType+doc.Code {
		p.Code, p.Detail = doc.Code, doc.Detail
	}
	return p
}

// problemType begins the type of every problem of the backend.
const problemType = "urn:pganalytics:error:"

// retryAfter reads both forms of the header: seconds and a date.
func retryAfter(value string, now time.Time) time.Duration {
	if n, err := strconv.Atoi(value); err == nil && n > 0 {
		return time.Duration(min(n, 24*3600)) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil && at.After(now) {
		return min(at.Sub(now), 24*time.Hour)
	}
	return 0
}

// checkURL accepts an https URL without anything behind the host's path.
func checkURL(name, text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return fmt.Errorf("%s %q: must be https://host[:port]", name, text)
	}
	return nil
}

// at returns the URL of a route.
func at(base, route string) string { return strings.TrimRight(base, "/") + "/api/v1/" + route }

// decode reads an answer that should be a JSON object.
func decode(text []byte, answer any) error {
	if err := json.Unmarshal(text, answer); err != nil {
		return errors.New("answer is not the expected JSON") // the cause may quote a token
	}
	return nil
}
