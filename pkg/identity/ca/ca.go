// Package ca makes and reads the keys that identities rest on: a collector CA
// and a server CA in separate pools, the issuer's root key, and the signing
// keys that the root vouches for.
//
// What a certificate says is decided here alone. A request contributes its
// public key and the proof that the sender holds the private half; names,
// usages, lifetimes and extensions that it asks for are ignored.
//
// The package must not know databases, brokers or HTTP.
package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"
)

const (
	caLife = 10 * 365 * 24 * time.Hour
	// Clocks of collectors and servers differ by a little; a certificate
	// that is valid only from now on would be refused by the one behind.
	backdate = time.Minute

	blockCertificate = "CERTIFICATE"
	blockPrivateKey  = "PRIVATE KEY"
	blockPublicKey   = "PUBLIC KEY"
	blockRequest     = "CERTIFICATE REQUEST"

	blockSigningRecord = "PGANALYTICS SIGNING KEY RECORD"
)

// Fingerprint returns "sha256:" and the hex SHA-256 of the certificate's DER:
// how certificates are named in records, logs, and on the command line.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// EncodePEM returns the certificates as PEM blocks, one after the other.
func EncodePEM(certs ...*x509.Certificate) []byte {
	var out bytes.Buffer
	for _, c := range certs {
		out.Write(pem.EncodeToMemory(&pem.Block{Type: blockCertificate, Bytes: c.Raw}))
	}
	return out.Bytes()
}

// issuer is a CA certificate and its key.
type issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// newCA makes a self-signed CA over key, good for one usage and for leaves
// only. A collector CA also names its trust domain, so that a directory can't
// be used under another one unnoticed.
func newCA(key crypto.Signer, name string, usage x509.ExtKeyUsage, uri *url.URL, now time.Time) (*x509.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{usage},
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	if uri != nil {
		template.URIs = []*url.URL{uri}
	}
	return create(template, template, key.Public(), key)
}

// sign completes the template and signs it for key.
func (i *issuer) sign(template *x509.Certificate, key crypto.PublicKey, life time.Duration, now time.Time) (*x509.Certificate, error) {
	template.SerialNumber = newSerial()
	template.NotBefore = now.Add(-backdate)
	template.NotAfter = now.Add(life)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	if template.NotAfter.After(i.cert.NotAfter) {
		return nil, fmt.Errorf("certificate would outlive its CA, which ends at %s", i.cert.NotAfter.Format(time.RFC3339))
	}
	return create(template, i.cert, key, i.key)
}

func create(template, parent *x509.Certificate, key crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, signer)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// newSerial returns a random serial of exactly 128 bits. The top bit is set so
// that every serial has the same length and none is zero.
func newSerial() *big.Int {
	raw := make([]byte, 16)
	_, _ = rand.Read(raw) // never fails: the runtime ends the process instead
	raw[0] |= 0x80
	return new(big.Int).SetBytes(raw)
}

func newECKey() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// parseCertificates reads a bundle of PEM certificates and nothing else.
func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := bytes.TrimSpace(data); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var block *pem.Block
		if block, rest = nextBlock(rest); block == nil || block.Type != blockCertificate {
			return nil, errors.New("not a PEM bundle of certificates")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("holds no certificate")
	}
	return certs, nil
}

// nextBlock is pem.Decode without its tolerance for text before the block.
func nextBlock(data []byte) (*pem.Block, []byte) {
	if !bytes.HasPrefix(data, []byte("-----BEGIN ")) {
		return nil, data
	}
	block, rest := pem.Decode(data)
	if block == nil || len(block.Headers) > 0 {
		return nil, data
	}
	// pem.Decode skips a broken block and finds the next one. What it skipped
	// must not pass for read: exactly one BEGIN may lie in what it consumed.
	if bytes.Count(data[:len(data)-len(rest)], []byte("-----BEGIN ")) != 1 {
		return nil, data
	}
	return block, rest
}
