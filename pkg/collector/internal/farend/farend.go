// Package farend is a backend for tests of the collector: a real TLS server
// that speaks the collector's side of the contract and answers pushes as it is
// told. It stores nothing and checks no more than tests ask for.
package farend

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
)

// Answer is one to a push.
type Answer struct {
	Status  int
	Body    string
	Headers map[string]string
}

// OK accepts a batch.
var OK = Answer{Status: http.StatusAccepted, Body: `{"status":"accepted","rows_accepted":3,"duplicate":false,"rejected":[],"rejected_more":0}`}

// Refusal is a problem document. headers are names and values in turn.
func Refusal(status int, code string, headers ...string) Answer {
	a := Answer{
		Status:  status,
		Body:    fmt.Sprintf(`{"type":"urn:pganalytics:error:%s","status":%d,"code":%q,"detail":"no"}`, code, status, code),
		Headers: map[string]string{"Content-Type": "application/problem+json"},
	}
	for i := 0; i < len(headers); i += 2 {
		a.Headers[headers[i]] = headers[i+1]
	}
	return a
}

// Seen is what has reached the backend.
type Seen struct {
	Enrolments []string // Authorization headers
	Enrolled   []string // signing requests of enrolments, PEM
	Renewals   []string // signing requests, PEM
	Tokens     int      // handed out: token-1, token-2, …
	Pushes     []Push
	Configs    []Config
}

// Push is one push, whatever it was answered.
type Push struct {
	Body     string
	Kind     string // media type
	Encoding string
	Token    string
	Serial   string // of the client's certificate
}

// Config is one question for the configuration, whatever it was answered.
type Config struct {
	Path, Query string
	Tag         string // of the condition
}

// Backend is the far end.
type Backend struct {
	URL     string
	ID      uuid.UUID // of whatever collector enrols
	Servers *Authority
	clients *Authority

	mu      sync.Mutex
	answers []Answer // in turn; the last one is for all that follow
	lose    int      // answers to renewals that are not sent
	loseNew int      // answers to enrolments that are not sent
	config  Answer   // with an ETag header it is given once to whoever remembers it
	seen    Seen
}

// New starts a backend that shows ca as its own. With ca nil it has one; with
// a foreign one it is an impostor. It stops with the test.
func New(t *testing.T, ca *Authority, answers ...Answer) *Backend {
	t.Helper()
	own := NewAuthority(t)
	b := &Backend{ID: uuid.New(), Servers: own, clients: NewAuthority(t), answers: answers, config: Refusal(http.StatusNotFound, "no_config")}
	if ca != nil {
		b.Servers = ca
	}
	der, key := own.server(t)
	pool := x509.NewCertPool()
	pool.AddCert(b.clients.cert)
	s := httptest.NewUnstartedServer(http.HandlerFunc(b.serve))
	s.TLS = &tls.Config{
		MinVersion: tls.VersionTLS13, ClientCAs: pool, ClientAuth: tls.VerifyClientCertIfGiven,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	s.StartTLS()
	t.Cleanup(s.Close)
	b.URL = s.URL
	return b
}

// Seen returns what has come so far.
func (b *Backend) Seen() Seen {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.seen
	s.Pushes, s.Configs = slices.Clone(s.Pushes), slices.Clone(s.Configs)
	return s
}

// Answer changes the answers from now on.
func (b *Backend) Answer(answers ...Answer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answers = answers
}

// Configure changes what is answered to the question for the configuration. At
// first it is that there is none.
func (b *Backend) Configure(a Answer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.config = a
}

// LoseRenewals does the next n renewals and loses the answers.
func (b *Backend) LoseRenewals(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lose = n
}

// LoseEnrolments does the next n enrolments and loses the answers.
func (b *Backend) LoseEnrolments(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.loseNew = n
}

func (b *Backend) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var in struct {
		CSR string `json:"csr"`
	}
	_ = json.Unmarshal(body, &in)
	route := strings.TrimPrefix(r.URL.Path, "/api/v1/")
	private := route == "collectors/renew" || route == "collectors/token" || route == "metrics/push" || strings.HasPrefix(route, "config/")
	if private && len(r.TLS.PeerCertificates) == 0 {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	switch route {
	case "ca":
		_, _ = io.WriteString(w, b.Servers.pem())
	case "collectors/register":
		b.seen.Enrolments = append(b.seen.Enrolments, r.Header.Get("Authorization"))
		b.seen.Enrolled = append(b.seen.Enrolled, in.CSR)
		if b.loseNew > 0 {
			b.loseNew--
			panic(http.ErrAbortHandler)
		}
		b.certify(w, http.StatusCreated, in.CSR)
	case "collectors/renew":
		b.seen.Renewals = append(b.seen.Renewals, in.CSR)
		if b.lose > 0 {
			b.lose--
			panic(http.ErrAbortHandler)
		}
		b.certify(w, http.StatusOK, in.CSR)
	case "collectors/token":
		b.seen.Tokens++
		_ = json.NewEncoder(w).Encode(map[string]any{
			"token": fmt.Sprintf("token-%d", b.seen.Tokens), "expires_at": time.Now().Add(time.Hour),
		})
	case "metrics/push":
		b.push(w, r, body)
	case "config/" + b.ID.String():
		b.seen.Configs = append(b.seen.Configs, Config{route, r.URL.RawQuery, r.Header.Get("If-None-Match")})
		if tag := b.config.Headers["ETag"]; tag != "" && tag == r.Header.Get("If-None-Match") {
			w.Header().Set("ETag", tag)
			w.WriteHeader(http.StatusNotModified)
			return
		}
		b.config.write(w)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func (a Answer) write(w http.ResponseWriter) {
	for name, value := range a.Headers {
		w.Header().Set(name, value)
	}
	w.WriteHeader(a.Status)
	_, _ = io.WriteString(w, a.Body)
}

func (b *Backend) certify(w http.ResponseWriter, status int, csr string) {
	certificate, err := b.clients.certify(csr, b.ID, time.Hour)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"collector_id": b.ID, "token": "unused", "certificate": certificate, "ca": b.Servers.pem(),
		"expires_at": time.Now().Add(time.Hour), "collector_url": b.URL, "token_url": b.URL,
	})
}

func (b *Backend) push(w http.ResponseWriter, r *http.Request, body []byte) {
	b.seen.Pushes = append(b.seen.Pushes, Push{
		Body:     string(body),
		Kind:     r.Header.Get("Content-Type"),
		Encoding: r.Header.Get("Content-Encoding"),
		Token:    strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "),
		Serial:   r.TLS.PeerCertificates[0].SerialNumber.String(),
	})
	a := b.answers[0]
	if len(b.answers) > 1 {
		b.answers = b.answers[1:]
	}
	a.write(w)
}
