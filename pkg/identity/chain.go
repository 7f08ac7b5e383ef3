package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/identity/ca"
)

const (
	// RenewalGrace is how long after its end a certificate may still be
	// exchanged for a new one, and for nothing else.
	RenewalGrace = 30 * 24 * time.Hour

	// propagation bounds how long a new collector takes to reach every
	// verifier, on top of the minute that certificates are backdated.
	propagation = 2 * time.Minute

	// maxChains bounds the memory of verified certificates, at about 100 bytes
	// each. Only certificates that our CA signed get there, four in a month of each collector.
	maxChains = 100_000
)

// chains verifies that certificates come from a collector CA and remembers
// those that do, so that every request can be checked at the cost of a hash
// instead of a signature. Times are not remembered.
type chains struct {
	pool        *x509.CertPool
	trustDomain string

	mu       sync.RWMutex
	verified map[[sha256.Size]byte]chain
}

type chain struct {
	collector uuid.UUID
	until     time.Time // end of the CA
}

func newChains(anchors []*x509.Certificate, trustDomain string) (*chains, error) {
	c := &chains{pool: x509.NewCertPool(), trustDomain: trustDomain, verified: map[[sha256.Size]byte]chain{}}
	for _, a := range anchors {
		if a.PublicKeyAlgorithm != x509.Ed25519 {
			return nil, fmt.Errorf("collector CA %s: its key must be Ed25519", ca.Fingerprint(a))
		}
		c.pool.AddCert(a)
	}
	return c, nil
}

// verify returns the collector that the certificate names. Whether the
// certificate itself is in time is left to inTime; its CA must be.
func (c *chains) verify(cert *x509.Certificate, now time.Time) (uuid.UUID, error) {
	sum := sha256.Sum256(cert.Raw)
	c.mu.RLock()
	known, ok := c.verified[sum]
	c.mu.RUnlock()
	if !ok {
		var err error
		if known, err = c.build(cert, now); err != nil {
			return uuid.Nil, err
		}
		c.mu.Lock()
		if len(c.verified) >= maxChains {
			clear(c.verified)
		}
		c.verified[sum] = known
		c.mu.Unlock()
	}
	if now.After(known.until) {
		return uuid.Nil, errors.New("the CA has expired")
	}
	return known.collector, nil
}

func (c *chains) build(cert *x509.Certificate, now time.Time) (chain, error) {
	at := now
	if at.Before(cert.NotBefore) {
		at = cert.NotBefore
	}
	if at.After(cert.NotAfter) {
		at = cert.NotAfter
	}
	// An ECDSA signature can be turned into a second valid one by anybody. A
	// certificate altered so would have another thumbprint, which no record
	// revokes. Ed25519 signatures are unique.
	if cert.SignatureAlgorithm != x509.PureEd25519 {
		return chain{}, errors.New("certificate: not signed with Ed25519")
	}
	// No intermediates: a collector CA signs leaves itself.
	found, err := cert.Verify(x509.VerifyOptions{Roots: c.pool, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return chain{}, fmt.Errorf("verify chain: %w", err)
	}
	id, err := ca.CollectorID(cert, c.trustDomain)
	if err != nil {
		return chain{}, fmt.Errorf("certificate: %w", err)
	}
	until := time.Time{}
	for _, path := range found {
		if end := path[len(path)-1].NotAfter; end.After(until) {
			until = end
		}
	}
	return chain{collector: id, until: until}, nil
}

// inTime errs unless now lies between the certificate's times, its end moved
// by grace.
func inTime(cert *x509.Certificate, now time.Time, grace time.Duration) error {
	if now.Before(cert.NotBefore) {
		return refuseCertificate(errors.New("not valid yet"))
	}
	if now.After(cert.NotAfter.Add(grace)) {
		return fault.New(fault.Unauthenticated, "certificate_expired", "The certificate has expired.")
	}
	return nil
}
