package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/fault"
)

const (
	// CollectorLife is how long a collector certificate is valid.
	CollectorLife = 7 * 24 * time.Hour

	maxRequestBytes = 16 << 10
	minRSABits      = 3072
	maxRSABits      = 8192 // beyond it one verification costs a core for milliseconds
)

// Only the public key of a request is used, but its signature is the proof of
// possession, so it must be one that can't be made without the key.
var requestSignatures = []x509.SignatureAlgorithm{
	x509.PureEd25519,
	x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512,
	x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
	x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
}

// Request is what is taken from a certificate signing request: a public key
// whose private half the sender has shown to hold.
type Request struct {
	key     crypto.PublicKey
	keyHash [sha256.Size]byte
}

// ParseRequest reads one PEM block "CERTIFICATE REQUEST". Every error is a
// fault.Invalid with code csr_invalid.
func ParseRequest(text string) (*Request, error) {
	if len(text) > maxRequestBytes {
		return nil, badRequest("it is longer than 16 KiB", nil)
	}
	block, rest := nextBlock([]byte(strings.TrimSpace(text)))
	if block == nil || block.Type != blockRequest || len(bytes.TrimSpace(rest)) > 0 {
		return nil, badRequest("it must be exactly one PEM block of type CERTIFICATE REQUEST", nil)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, badRequest("it is not a PKCS #10 request", err)
	}
	if err := checkKey(csr.PublicKey); err != nil {
		return nil, badRequest("its key must be P-256, Ed25519, or RSA of 3072 to 8192 bits", err)
	}
	if !slices.Contains(requestSignatures, csr.SignatureAlgorithm) {
		return nil, badRequest("its signature algorithm is not accepted", nil)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, badRequest("its signature does not match its key", err)
	}
	return &Request{key: csr.PublicKey, keyHash: sha256.Sum256(csr.RawSubjectPublicKeyInfo)}, nil
}

// KeyHash returns the SHA-256 of the certificate's public key in DER.
func KeyHash(cert *x509.Certificate) [sha256.Size]byte {
	return sha256.Sum256(cert.RawSubjectPublicKeyInfo)
}

// KeyHash returns the SHA-256 of the request's public key in DER.
func (r *Request) KeyHash() [sha256.Size]byte { return r.keyHash }

// SameKey reports whether cert is over the request's key.
func (r *Request) SameKey(cert *x509.Certificate) bool { return r.keyHash == KeyHash(cert) }

func badRequest(detail string, err error) error {
	const sentence = "The certificate signing request is not acceptable: "
	return &fault.Error{Class: fault.Invalid, Code: "csr_invalid", Detail: sentence + detail + ".", Err: err,
		Fields: []fault.Field{{Pointer: "/csr", Code: "csr_invalid", Detail: detail}}}
}

func checkKey(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return nil
		}
	case ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits >= minRSABits && bits <= maxRSABits && k.E >= 65537 {
			return nil
		}
	}
	return errors.New("key type or size not accepted")
}

// issueCollector signs the request by the one profile that collectors have.
func (i *issuer) issueCollector(trustDomain string, id uuid.UUID, r *Request, now time.Time) (*x509.Certificate, error) {
	return i.sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: id.String()}, // for people; nothing reads it
		URIs:        []*url.URL{collectorURI(trustDomain, id)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, r.key, CollectorLife, now)
}

// CollectorID returns the collector that a certificate of our profile names.
// It does not verify the chain. It errs on a certificate that is not exactly
// of the profile, even under our CA.
func CollectorID(cert *x509.Certificate, trustDomain string) (uuid.UUID, error) {
	switch {
	case cert.IsCA:
		return uuid.Nil, errors.New("is a CA")
	case len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth || len(cert.UnknownExtKeyUsage) > 0:
		return uuid.Nil, errors.New("is not for client authentication only")
	case len(cert.URIs) != 1 || len(cert.DNSNames)+len(cert.EmailAddresses)+len(cert.IPAddresses) > 0:
		return uuid.Nil, errors.New("does not name exactly one URI")
	}
	uri := cert.URIs[0].String()
	id, err := uuid.Parse(uri[strings.LastIndexByte(uri, '/')+1:])
	if err != nil || uri != collectorURI(trustDomain, id).String() {
		return uuid.Nil, errors.New("names no collector of this trust domain")
	}
	return id, nil
}

func collectorURI(trustDomain string, id uuid.UUID) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: trustDomain, Path: "/collector/" + id.String()}
}

var trustDomainForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,253}[a-z0-9])?$`)

// CheckTrustDomain errs unless s may stand as a SPIFFE trust domain.
func CheckTrustDomain(s string) error {
	if !trustDomainForm.MatchString(s) {
		return fmt.Errorf("trust domain %q: must be 1 to 255 of a-z 0-9 . _ - and begin and end with a letter or digit", s)
	}
	return nil
}
