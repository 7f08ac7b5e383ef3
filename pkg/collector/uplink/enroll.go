package uplink

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
)

// ErrEnrolled says that the state directory has an identity already.
var ErrEnrolled = errors.New("this collector is enrolled already")

// Enrollment is what an operator gives a new collector.
type Enrollment struct {
	URL           string // of the listener for users, https://host[:port]
	CAFingerprint string // "sha256:" and the hex SHA-256 of the server CA's DER
	Token         string // enrolment token; never printed
	Name          string // the collector's
	Hostname      string // defaults to the machine's
	Version       string // of the collector
	StateDir      string
	Force         bool // replace an identity that is there

	// Retire is told of the identity that is about to be replaced by that of
	// another collector; may be nil.
	Retire func(old *Identity) error
}

// Validate reports all faults.
func (e *Enrollment) Validate() error {
	var errs []error
	if err := checkURL("url", e.URL); err != nil {
		errs = append(errs, err)
	}
	if _, err := parseFingerprint(e.CAFingerprint); err != nil {
		errs = append(errs, err)
	}
	if e.Token == "" {
		errs = append(errs, errors.New("enrolment token is empty"))
	}
	if e.Name == "" {
		errs = append(errs, errors.New("name is empty"))
	}
	if e.StateDir == "" {
		errs = append(errs, errors.New("state-dir is empty"))
	}
	return errors.Join(errs...)
}

// Enroll makes a key, has it certified and writes the identity. If the answer
// gets lost, another Enroll with the same token and name has it repeated.
// Errors: ErrEnrolled without Force.
func Enroll(ctx context.Context, e Enrollment) (*Identity, error) {
	if err := e.Validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(e.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	_, err := os.Stat(filepath.Join(e.StateDir, identityName))
	if err == nil && !e.Force {
		return nil, fmt.Errorf("%s: %w", e.StateDir, ErrEnrolled)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look for an identity: %w", err)
	}
	fingerprint, err := parseFingerprint(e.CAFingerprint)
	if err != nil {
		return nil, err
	}
	ca, err := findCA(ctx, e.URL, fingerprint)
	if err != nil {
		return nil, err
	}
	id, err := register(ctx, e, ca)
	if err != nil {
		return nil, err
	}
	// An old identity that cannot be read has nothing to retire. One of the same
	// collector goes on: what is spooled is still its own.
	if old, err := LoadIdentity(e.StateDir); err == nil && e.Retire != nil && old.CollectorID != id.CollectorID {
		if err := e.Retire(old); err != nil {
			return nil, err
		}
	}
	if err := id.save(e.StateDir); err != nil {
		return nil, err
	}
	// A key that stays behind is never used for another token.
	_ = os.Remove(filepath.Join(e.StateDir, enrollingName))
	return id, nil
}

// enrollingName is the file of the key that an enrolment is about.
const enrollingName = "enrolling.json"

// enrolling is a key on its way to be certified, and for which token.
type enrolling struct {
	TokenHash  string `json:"token_sha256"`
	PrivateKey string `json:"private_key"`
}

// keyFor returns the key to have certified with the token, and makes it at the
// first attempt. It is on disk before it is shown: the backend repeats a lost
// answer to the same key, and to no other.
func keyFor(stateDir, token string) ([]byte, error) {
	path := filepath.Join(stateDir, enrollingName)
	sum := sha256.Sum256([]byte(token))
	e := enrolling{TokenHash: hex.EncodeToString(sum[:])}
	var former enrolling
	if data, err := os.ReadFile(path); err == nil && json.Unmarshal(data, &former) == nil &&
		former.TokenHash == e.TokenHash && former.PrivateKey != "" {
		return []byte(former.PrivateKey), nil
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	e.PrivateKey = string(key)
	data, err := json.Marshal(e) //nolint:gosec // the key goes into a file of mode 0600
	if err != nil {
		return nil, errors.New("keep the key: encode it")
	}
	if err := replaceFile(path, data); err != nil {
		return nil, fmt.Errorf("keep the key: %w", err)
	}
	return key, nil
}

// register has the key certified over a connection that is verified against
// the pinned CA and nothing else.
func register(ctx context.Context, e Enrollment, ca *x509.Certificate) (*Identity, error) {
	key, err := keyFor(e.StateDir, e.Token)
	if err != nil {
		return nil, err
	}
	csr, err := signingRequest(e.Name, key)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(map[string]string{
		"name": e.Name, "hostname": hostOf(e.Hostname), "version": e.Version, "csr": string(csr),
	})
	if err != nil {
		return nil, fmt.Errorf("register: %w", err)
	}
	client, done := newClient(newTransport([]*x509.Certificate{ca}, nil))
	defer done()
	text, err := do(ctx, client, request{
		method: http.MethodPost, url: at(e.URL, "collectors/register"), token: e.Token, body: body,
	}, http.StatusOK, http.StatusCreated)
	if err != nil {
		return nil, fmt.Errorf("register: %w", err)
	}
	var answer struct {
		CollectorID  uuid.UUID `json:"collector_id"`
		Certificate  string    `json:"certificate"`
		CA           string    `json:"ca"`
		CollectorURL string    `json:"collector_url"`
		TokenURL     string    `json:"token_url"`
	}
	if err := decode(text, &answer); err != nil {
		return nil, fmt.Errorf("register: %w", err)
	}
	if err := errors.Join(checkURL("collector_url", answer.CollectorURL), checkURL("token_url", answer.TokenURL)); err != nil {
		return nil, fmt.Errorf("register: answer: %w", err)
	}
	id := &Identity{
		CollectorID: answer.CollectorID, Name: e.Name, Hostname: hostOf(e.Hostname),
		URL: e.URL, CollectorURL: answer.CollectorURL, TokenURL: answer.TokenURL,
	}
	if err := id.setCredentials([]byte(answer.Certificate), key, []byte(answer.CA)); err != nil {
		return nil, fmt.Errorf("register: answer: %w", err)
	}
	return id, nil
}

// findCA returns the CA of that fingerprint. Nothing secret is sent on the
// way, so it does not matter whom it asks: only the certificate with that
// fingerprint is taken, from the server's chain or from its route for it.
func findCA(ctx context.Context, base string, want [sha256.Size]byte) (*x509.Certificate, error) {
	var chain []*x509.Certificate
	transport := newTransport(nil, nil)
	transport.TLSClientConfig.InsecureSkipVerify = true // see above
	transport.TLSClientConfig.VerifyConnection = func(s tls.ConnectionState) error {
		chain = s.PeerCertificates
		return nil
	}
	client, done := newClient(transport)
	defer done()
	bundle, err := do(ctx, client, request{method: http.MethodGet, url: at(base, "ca")}, http.StatusOK)
	if err == nil {
		if certs, err := parseCertificates(bundle); err == nil {
			chain = append(chain, certs...)
		}
	}
	for _, c := range chain {
		if c.IsCA && sha256.Sum256(c.Raw) == want {
			return c, nil
		}
	}
	if len(chain) == 0 && err != nil {
		return nil, fmt.Errorf("fetch CA: %w", err)
	}
	return nil, errors.New("the server does not show a CA with the given fingerprint: wrong server, or wrong fingerprint")
}

func parseFingerprint(text string) (sum [sha256.Size]byte, err error) {
	digits, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(text)), "sha256:")
	raw, err := hex.DecodeString(strings.ReplaceAll(digits, ":", ""))
	if !ok || err != nil || len(raw) != sha256.Size {
		return sum, fmt.Errorf("ca-fingerprint %q: must be sha256: and 64 hex digits", text)
	}
	return [sha256.Size]byte(raw), nil
}

// newClient returns a client of one transport and what ends its connections.
func newClient(t *http.Transport) (*http.Client, func()) {
	return &http.Client{
		Transport: t,
		Timeout:   30 * time.Second,
		// A redirect would carry token and body to wherever it points.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, t.CloseIdleConnections
}
