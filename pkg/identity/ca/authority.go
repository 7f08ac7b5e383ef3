package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
)

// The files of an authority's directory. Gateways need copies of
// CollectorCAFile and RootFile only.
const (
	CollectorCAFile = "collector-ca.crt" // bundle; the certificate of the key beside it issues
	ServerCAFile    = "server-ca.crt"    // bundle, likewise
	RootFile        = "root.pub"         // root public keys that verifiers trust
	ServerCertFile  = "server.crt"       // of the listeners; may be replaced by the operator's own
	ServerKeyFile   = "server.key"

	collectorCAKeyFile = "collector-ca.key"
	serverCAKeyFile    = "server-ca.key"
	rootKeyFile        = "root.key" // needed to make a signing key, not to use one: may be kept elsewhere
	signingKeyFile     = "signing.key"
	revokedKeysFile    = "revoked-keys.json" // signing keys that must not be believed any more

	// What replaces the file of the same name without "-next"; see Rotation.
	nextSuffix = "-next"
)

// Options says where an authority lives and for whom it speaks.
type Options struct {
	Dir         string           // holds the files; made with mode 0700
	TrustDomain string           // of collector identities; fixed once the CA exists
	ServerNames []string         // host names and IPs for the server certificate; none: those that it has
	Now         func() time.Time // Defaults to time.Now
}

// Validate reports all faults at once.
func (o Options) Validate() error {
	var errs []error
	if o.Dir == "" {
		errs = append(errs, errors.New("identity directory: must not be empty"))
	}
	if err := CheckTrustDomain(o.TrustDomain); err != nil {
		errs = append(errs, err)
	}
	for _, name := range o.ServerNames {
		if err := checkServerName(name); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Authority issues certificates and holds the key that signs access tokens.
// Its methods may be called at once, also while it is reloaded.
type Authority struct {
	options Options
	current atomic.Pointer[material]
}

// material is what the directory held when it was last read.
type material struct {
	collector    issuer
	collectorCAs []*x509.Certificate
	serverCAs    []*x509.Certificate
	roots        []ed25519.PublicKey
	signingKey   ed25519.PrivateKey
	signing      SigningKey
	revoked      []RevokedKey
}

// Init makes whatever is missing in the directory and opens it. It overwrites
// no key, may be repeated, stopped half-way and run twice at once. It errs on
// files with loose modes, and rather than make a second CA over a certificate
// whose key is gone.
func Init(o Options) (*Authority, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("init identity: %w", err)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := initFiles(o); err != nil {
		return nil, fmt.Errorf("init identity: %w", err)
	}
	a := &Authority{options: o}
	if err := a.Reload(); err != nil {
		return nil, err
	}
	return a, nil
}

// Reload reads the directory again and checks that its parts belong together.
// When they don't, what was read before stays in use.
func (a *Authority) Reload() error {
	m, err := read(a.options)
	if err != nil {
		return err
	}
	a.current.Store(m)
	return nil
}

func initFiles(o Options) error {
	now := o.Now()
	if err := makeDir(o.Dir); err != nil {
		return err
	}
	domain := &url.URL{Scheme: "spiffe", Host: o.TrustDomain}
	for _, c := range []newAuthority{
		// Ed25519, for its signatures can't be altered into other valid ones:
		// certificates are revoked by thumbprint. Only we verify them.
		{collectorCAKeyFile, CollectorCAFile, "pganalytics collector CA", newEd25519Key, x509.ExtKeyUsageClientAuth, domain},
		// P-256, for browsers and old clients verify these.
		{serverCAKeyFile, ServerCAFile, "pganalytics server CA", newECKey, x509.ExtKeyUsageServerAuth, nil},
	} {
		if err := c.init(o.Dir, now); err != nil {
			return err
		}
	}
	if err := initRoot(o.Dir); err != nil {
		return err
	}
	if err := initSigningKey(o.Dir, now); err != nil {
		return err
	}
	return RenewServer(o.Dir, o.ServerNames, now)
}

// newAuthority describes a CA that is yet to be made.
type newAuthority struct {
	keyFile, certFile, title string
	key                      func() (crypto.Signer, error)
	usage                    x509.ExtKeyUsage
	uri                      *url.URL
}

// init writes the key first: a key without certificate is completed by the
// next run, a certificate without key could not be.
func (n newAuthority) init(dir string, now time.Time) error {
	keyPath, certPath := filepath.Join(dir, n.keyFile), filepath.Join(dir, n.certFile)
	if exists(certPath) {
		return nil // open() says what is wrong with it, a missing key included
	}
	if err := makeKey(keyPath, n.key); err != nil {
		return err
	}
	key, err := readKey(keyPath)
	if err != nil {
		return err
	}
	cert, err := newCA(key, n.title, n.usage, n.uri, now)
	if err != nil {
		return err
	}
	return ifMissing(writeFile(certPath, EncodePEM(cert), 0o644, createOnly))
}

func initRoot(dir string) error {
	keyPath, publicPath := filepath.Join(dir, rootKeyFile), filepath.Join(dir, RootFile)
	if exists(publicPath) {
		return nil
	}
	if err := makeKey(keyPath, newEd25519Key); err != nil {
		return err
	}
	key, err := readEd25519Key(keyPath)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("encode root public key: %w", err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: blockPublicKey, Bytes: der})
	return ifMissing(writeFile(publicPath, public, 0o644, createOnly))
}

// read reads the directory and checks that its parts belong together.
func read(o Options) (*material, error) {
	a := &material{}
	var err error
	at := func(name string) string { return filepath.Join(o.Dir, name) }
	if a.collector, a.collectorCAs, err = openCA(at(collectorCAKeyFile), at(CollectorCAFile)); err != nil {
		return nil, err
	}
	if want := (&url.URL{Scheme: "spiffe", Host: o.TrustDomain}).String(); len(a.collector.cert.URIs) != 1 || a.collector.cert.URIs[0].String() != want {
		return nil, fmt.Errorf("%s was made for another trust domain than %q", at(CollectorCAFile), o.TrustDomain)
	}
	if _, a.serverCAs, err = openCA(at(serverCAKeyFile), at(ServerCAFile)); err != nil {
		return nil, err
	}
	if a.roots, err = LoadRoots(at(RootFile)); err != nil {
		return nil, err
	}
	if a.signingKey, a.signing, err = readSigningKey(at(signingKeyFile)); err != nil {
		return nil, err
	}
	if err := a.signing.Verify(a.roots); err != nil {
		return nil, fmt.Errorf("%s: %w", at(signingKeyFile), err)
	}
	if a.revoked, err = readRevokedKeys(at(revokedKeysFile)); err != nil {
		return nil, err
	}
	return a, nil
}

// openCA reads a CA's key and bundle. The certificate of the key issues: so a
// CA is exchanged by exchanging one file, its key.
func openCA(keyPath, certPath string) (issuer, []*x509.Certificate, error) {
	certs, err := LoadCertificates(certPath)
	if err != nil {
		return issuer{}, nil, err
	}
	key, err := readKey(keyPath)
	if errors.Is(err, fs.ErrNotExist) {
		return issuer{}, nil, fmt.Errorf("%s is there but its key %s is gone: restore the key, or move the certificate away to have a new CA", certPath, keyPath)
	}
	if err != nil {
		return issuer{}, nil, err
	}
	for i, cert := range certs {
		if sameKey(key, cert) {
			// The issuer first, wherever it stands: that is the one that people are told of.
			return issuer{cert: cert, key: key}, append([]*x509.Certificate{cert}, slices.Delete(certs, i, i+1)...), nil
		}
	}
	return issuer{}, nil, fmt.Errorf("%s is not the key of a certificate in %s", keyPath, certPath)
}

// IssueCollector signs a collector certificate for the request's key.
func (a *Authority) IssueCollector(id uuid.UUID, r *Request) (*x509.Certificate, error) {
	cert, err := a.current.Load().collector.issueCollector(a.options.TrustDomain, id, r, a.options.Now())
	if err != nil {
		return nil, fmt.Errorf("issue collector certificate: %w", err)
	}
	return cert, nil
}

// Dir returns the authority's directory.
func (a *Authority) Dir() string { return a.options.Dir }

// Files returns the files that Reload reads.
func (a *Authority) Files() []string {
	files := []string{
		collectorCAKeyFile, CollectorCAFile, serverCAKeyFile, ServerCAFile, RootFile, signingKeyFile, revokedKeysFile,
	}
	for i, name := range files {
		files[i] = filepath.Join(a.options.Dir, name)
	}
	return files
}

// TrustDomain returns the trust domain of the collector identities.
func (a *Authority) TrustDomain() string { return a.options.TrustDomain }

// CollectorCAs returns the CAs that collector certificates may come from, the
// one that issues first.
func (a *Authority) CollectorCAs() []*x509.Certificate {
	return slices.Clone(a.current.Load().collectorCAs)
}

// ServerCAs returns the CAs that server certificates may come from, the one
// that issues first.
func (a *Authority) ServerCAs() []*x509.Certificate { return slices.Clone(a.current.Load().serverCAs) }

// Roots returns the public keys that vouch for signing keys.
func (a *Authority) Roots() []ed25519.PublicKey { return slices.Clone(a.current.Load().roots) }

// SigningKey returns the key that signs access tokens, and its public record.
func (a *Authority) SigningKey() (ed25519.PrivateKey, SigningKey) {
	m := a.current.Load()
	return m.signingKey, m.signing
}

// RevokedKeys returns the signing keys that must not be believed any more.
func (a *Authority) RevokedKeys() []RevokedKey { return slices.Clone(a.current.Load().revoked) }

func makeKey(path string, generate func() (crypto.Signer, error)) error {
	if exists(path) {
		return nil
	}
	key, err := generate()
	if err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	encoded, err := encodeKey(key)
	if err != nil {
		return err
	}
	return ifMissing(writeFile(path, encoded, 0o600, createOnly))
}

// ifMissing takes "it is there now" for success: another process came first.
func ifMissing(err error) error {
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

func newEd25519Key() (crypto.Signer, error) {
	_, key, err := ed25519.GenerateKey(nil)
	return key, err
}

// sameKey works for every key that this package makes or accepts for a CA.
func sameKey(key crypto.Signer, cert *x509.Certificate) bool {
	switch public := key.Public().(type) {
	case *ecdsa.PublicKey:
		return public.Equal(cert.PublicKey)
	case ed25519.PublicKey:
		return public.Equal(cert.PublicKey)
	}
	return false
}

// exists says that there is something under the name; whether it is good is
// for its reader to say.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
