// Package client calls the services' HTTP interface as a user: what the
// operators' command line is made of.
//
// Invariants: a password or token is sent only to a server that the given CA
// vouches for, and stands in no error. The session is a file that only its
// owner may read, and it is replaced as a whole.
package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

const (
	timeout        = 30 * time.Second // a login may have to wait for its turn
	maxAnswerBytes = 8 << 20
	apiPath        = "/api/v1/"

	// refreshBefore is how long before its end an access token is exchanged.
	refreshBefore = 30 * time.Second
)

// Server says which server to talk to, and whom to believe that it is that.
type Server struct {
	URL string // https://host[:port]
	// CAFile holds the PEM certificates that vouch for it. Without it, and
	// without the fingerprint, the system's do.
	CAFile string
	// CAFingerprint is sha256:<hex> of the server's CA, which is then asked for
	// at the server itself.
	CAFingerprint string
}

// ProblemError is an error answer.
type ProblemError struct {
	Status    int    `json:"status"`
	Code      string `json:"code"`
	Detail    string `json:"detail"`
	RequestID string `json:"request_id"`
	Errors    []struct {
		Pointer string `json:"pointer"`
		Code    string `json:"code"`
		Detail  string `json:"detail"`
	} `json:"errors"`
}

// Error tells what the server told.
func (p *ProblemError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s", p.Status, p.Code)
	if p.Detail != "" {
		fmt.Fprintf(&b, ": %s", p.Detail)
	}
	for _, e := range p.Errors {
		fmt.Fprintf(&b, "; %s %s", e.Pointer, e.Detail)
	}
	if p.RequestID != "" {
		fmt.Fprintf(&b, " (request %s)", p.RequestID)
	}
	return b.String()
}

// Client calls one server, with the session's tokens if it has one.
type Client struct {
	http    *http.Client
	session Session
	file    string
}

// Connect makes a client without a session.
func Connect(ctx context.Context, s Server) (*Client, error) {
	u, err := url.Parse(s.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" && u.Path != "/" {
		return nil, fmt.Errorf("--server %q: must be https://host[:port]", s.URL)
	}
	base := "https://" + u.Host
	var bundle []byte
	switch {
	case s.CAFile != "":
		if bundle, err = os.ReadFile(s.CAFile); err != nil {
			return nil, fmt.Errorf("--ca-file: %w", err)
		}
	case s.CAFingerprint != "":
		if bundle, err = findCA(ctx, base, s.CAFingerprint); err != nil {
			return nil, err
		}
	}
	return with(Session{Server: base, CA: string(bundle)}, "")
}

func with(s Session, file string) (*Client, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.CA != "" {
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM([]byte(s.CA)) {
			return nil, errors.New("the server's CA: no PEM certificate")
		}
	}
	transport := &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: true, Proxy: http.ProxyFromEnvironment}
	return &Client{http: &http.Client{
		Transport: transport, Timeout: timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, session: s, file: file}, nil
}

// Server returns the address that is called.
func (c *Client) Server() string { return c.session.Server }

// Close closes the connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// findCA asks the server for its CA and takes it by its fingerprint. Nothing
// secret is sent on the way, so it does not matter who answers.
func findCA(ctx context.Context, base, fingerprint string) ([]byte, error) {
	want, err := hex.DecodeString(strings.TrimPrefix(fingerprint, "sha256:"))
	if err != nil || len(want) != sha256.Size {
		return nil, fmt.Errorf("--ca-fingerprint %q: must be sha256: and 64 hex digits", fingerprint)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, //nolint:gosec // what is fetched is verified by its fingerprint
	}}
	defer transport.CloseIdleConnections()
	anyone := &Client{http: &http.Client{Transport: transport, Timeout: timeout}, session: Session{Server: base}}
	status, answer, err := anyone.send(ctx, http.MethodGet, "ca", nil)
	if err != nil {
		return nil, fmt.Errorf("ask for the server's CA: %w", err)
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("ask for the server's CA: status %d", status)
	}
	for len(answer) > 0 {
		var block *pem.Block
		if block, answer = pem.Decode(answer); block == nil {
			break
		}
		if sum := sha256.Sum256(block.Bytes); bytes.Equal(sum[:], want) {
			return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes}), nil
		}
	}
	return nil, errors.New("the server does not have the CA of --ca-fingerprint: it is not the one that is meant")
}

// Call sends in, unless nil, as JSON to a path below /api/v1 and decodes the
// answer into out, unless nil. It exchanges the access token when it is time.
// An error answer is a *ProblemError.
func (c *Client) Call(ctx context.Context, method, path string, in, out any) error {
	if c.session.RefreshToken != "" && time.Until(c.session.ExpiresAt) < refreshBefore {
		if err := c.refresh(ctx); err != nil {
			return err
		}
	}
	err := c.call(ctx, method, path, in, out)
	// The user's role has changed, perhaps: the session goes on under the new one.
	if p, ok := errors.AsType[*ProblemError](err); ok && c.session.RefreshToken != "" && path != refreshPath &&
		(p.Code == "token_revoked" || p.Code == "token_expired") {
		if c.refresh(ctx) == nil {
			err = c.call(ctx, method, path, in, out)
		}
	}
	return err
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
	}
	status, answer, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	if status >= 300 {
		p := &ProblemError{Status: status, Code: strings.ToLower(http.StatusText(status))}
		_ = json.Unmarshal(answer, p) // the status says enough
		return p
	}
	if out == nil || len(answer) == 0 {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("decode answer: %w", err)
	}
	return nil
}

func (c *Client) send(ctx context.Context, method, path string, body []byte) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.session.Server+apiPath+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.session.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.session.Token)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = res.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswerBytes))
	if err != nil {
		return 0, nil, fmt.Errorf("read answer: %w", err)
	}
	return res.StatusCode, answer, nil
}
