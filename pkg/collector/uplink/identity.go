// Package uplink is the collector's way to the backend: its identity, and the
// client that enrols, renews, fetches tokens and pushes batches.
//
// Invariants: the private key never leaves the machine; the enrolment token
// is sent only over a connection whose server proved to belong to the pinned
// CA; a new identity replaces the old one on disk in one step. No token and no
// key is ever part of a log line or an error.
package uplink

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
)

// identityName is the one file that makes a collector itself. All of it is in
// one file so that it is replaced at once: a certificate never stands beside
// another one's key.
const identityName = "identity.json"

// ErrNotEnrolled says that the state directory has no identity.
var ErrNotEnrolled = errors.New("this collector is not enrolled")

// Identity is who a collector is.
type Identity struct {
	CollectorID  uuid.UUID
	Name         string
	Hostname     string
	URL          string // where it enrolled
	CollectorURL string // where it pushes
	TokenURL     string // where it renews and fetches tokens
	ServerCAs    []*x509.Certificate
	Certificate  tls.Certificate // with Leaf
	nextKey      []byte          // PEM; of a renewal whose answer has not arrived
}

// identityFile is Identity as it lies on disk, mode 0600.
type identityFile struct {
	CollectorID  uuid.UUID `json:"collector_id"`
	Name         string    `json:"name"`
	Hostname     string    `json:"hostname"`
	URL          string    `json:"url"`
	CollectorURL string    `json:"collector_url"`
	TokenURL     string    `json:"token_url"`
	CA           string    `json:"ca"`
	Certificate  string    `json:"certificate"`
	PrivateKey   string    `json:"private_key"`
	NextKey      string    `json:"next_private_key,omitempty"`
}

// LoadIdentity reads the identity in the state directory. Errors:
// ErrNotEnrolled.
func LoadIdentity(stateDir string) (*Identity, error) {
	data, err := os.ReadFile(filepath.Join(stateDir, identityName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", stateDir, ErrNotEnrolled)
	}
	if err != nil {
		return nil, fmt.Errorf("load identity: %w", err)
	}
	var f identityFile
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, errors.New("load identity: " + identityName + " is not valid") // the cause may quote the key
	}
	id := &Identity{
		CollectorID: f.CollectorID, Name: f.Name, Hostname: f.Hostname,
		URL: f.URL, CollectorURL: f.CollectorURL, TokenURL: f.TokenURL, nextKey: []byte(f.NextKey),
	}
	if err := id.setCredentials([]byte(f.Certificate), []byte(f.PrivateKey), []byte(f.CA)); err != nil {
		return nil, fmt.Errorf("load identity: %w", err)
	}
	return id, nil
}

// setCredentials takes certificate, key and CAs if they belong together and
// to this collector.
func (id *Identity) setCredentials(certificate, key, ca []byte) error {
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return fmt.Errorf("certificate and key do not belong together: %w", err)
	}
	if pair.Leaf == nil {
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return fmt.Errorf("parse certificate: %w", err)
		}
	}
	owner := "/collector/" + id.CollectorID.String()
	if uris := pair.Leaf.URIs; len(uris) != 1 || uris[0].Scheme != "spiffe" || uris[0].Path != owner {
		return fmt.Errorf("certificate is not that of collector %s", id.CollectorID)
	}
	cas, err := parseCertificates(ca)
	if err != nil {
		return err
	}
	id.Certificate, id.ServerCAs = pair, cas
	return nil
}

// save replaces the identity on disk. Until it returns nil the old one is
// there.
func (id *Identity) save(stateDir string) error {
	key, err := x509.MarshalPKCS8PrivateKey(id.Certificate.PrivateKey)
	if err != nil {
		return fmt.Errorf("save identity: %w", err)
	}
	var chain []byte
	for _, der := range id.Certificate.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	data, err := json.MarshalIndent(identityFile{
		CollectorID: id.CollectorID, Name: id.Name, Hostname: id.Hostname,
		URL: id.URL, CollectorURL: id.CollectorURL, TokenURL: id.TokenURL,
		CA: string(encodeCertificates(id.ServerCAs)), Certificate: string(chain),
		PrivateKey: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
		NextKey:    string(id.nextKey),
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("save identity: %w", err)
	}
	if err := replaceFile(filepath.Join(stateDir, identityName), append(data, '\n')); err != nil {
		return fmt.Errorf("save identity: %w", err)
	}
	return nil
}

// renewAt returns when a third of the certificate's life is over, and up to a
// twelfth of it later, as jitter (0 to 1) says: collectors enrolled at once
// need not renew at once.
func (id *Identity) renewAt(jitter float64) time.Time {
	leaf := id.Certificate.Leaf
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	return leaf.NotBefore.Add(life/3 + time.Duration(jitter*float64(life/12)))
}

// clone returns a copy that may be changed without the original's knowing.
func (id *Identity) clone() *Identity {
	c := *id
	return &c
}

// newKey makes a private key, PEM.
func newKey() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// signingRequest returns the request to certify a key, PEM. The backend takes
// nothing from it but the key.
func signingRequest(name string, key []byte) ([]byte, error) {
	block, _ := pem.Decode(key)
	if block == nil {
		return nil, errors.New("make signing request: key is not PEM")
	}
	private, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("make signing request: key is not valid")
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, private)
	if err != nil {
		return nil, fmt.Errorf("make signing request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// encodeCertificates returns a PEM bundle.
func encodeCertificates(certs []*x509.Certificate) []byte {
	var bundle []byte
	for _, c := range certs {
		bundle = append(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return bundle
}

// parseCertificates reads a PEM bundle of at least one certificate.
func parseCertificates(bundle []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, bundle = pem.Decode(bundle); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse CA certificate: %w", err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("no CA certificate in the bundle")
	}
	return certs, nil
}

// replaceFile writes a file so that its name holds either the old or the new
// content, whatever happens meanwhile.
func replaceFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// hostOf returns the machine's name, for want of a better one.
func hostOf(given string) string {
	if given != "" {
		return given
	}
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(name)
}
