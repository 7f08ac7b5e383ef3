package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/identity"
	"pganalytics/pkg/identity/ca"
)

func TestTokenWorksOnlyWithItsOwnCertificate(t *testing.T) {
	t.Parallel()
	b := setup(t)
	otherID := uuid.New()
	other := issue(t, b.authority, otherID)
	b.put(t, identity.Collector{ID: otherID, Status: identity.Active, Hostname: "db2", ChangedAt: b.clock.now()})
	_, err := b.verifier.VerifyCollector(connect(t, other), "Bearer "+b.token)
	requireFault(t, err, fault.Unauthenticated, "token_invalid")

	// Another certificate of the same collector: only cnf tells.
	_, err = b.verifier.VerifyCollector(connect(t, issue(t, b.authority, b.id)), "Bearer "+b.token)
	requireFault(t, err, fault.Unauthenticated, "token_invalid")
	require.NoError(t, b.verify())
}

// That its signature was good once is all that is remembered of a token.
func TestTokenThatIsKnownIsHeldAgainstEverythingElseEachTime(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.NoError(t, b.verify())
	require.NoError(t, b.verify())
	_, err := b.verifier.VerifyCollector(connect(t, issue(t, b.authority, b.id)), "Bearer "+b.token)
	requireFault(t, err, fault.Unauthenticated, "token_invalid")
	_, err = b.verifier.VerifyCollector(b.state, "Bearer "+b.token[:len(b.token)-4]+"AAAA")
	requireFault(t, err, fault.Unauthenticated, "token_invalid")
	b.put(t, b.collector(identity.Disabled))
	requireFault(t, b.verify(), fault.Forbidden, "collector_disabled")
	b.put(t, b.collector(identity.Active))
	require.NoError(t, b.verify())
	b.clock.advance(identity.CollectorTokenLife + time.Minute)
	b.snapshot.Confirm(b.clock.now())
	requireFault(t, b.verify(), fault.Unauthenticated, "token_expired")
}

func BenchmarkVerifyCollector(b *testing.B) {
	w := setup(b)
	for b.Loop() {
		if err := w.verify(); err != nil {
			b.Fatal(err)
		}
	}
}

func TestRequestWithoutAProperConnectionIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, spoil := range map[string]func(*tls.ConnectionState){
		"no certificate":       func(s *tls.ConnectionState) { s.PeerCertificates = nil },
		"handshake unfinished": func(s *tls.ConnectionState) { s.HandshakeComplete = false },
		"TLS 1.2":              func(s *tls.ConnectionState) { s.Version = tls.VersionTLS12 },
		"no TLS":               func(s *tls.ConnectionState) { *s = tls.ConnectionState{} },
	} {
		t.Run(name, func(t *testing.T) {
			state := b.state
			spoil(&state)
			_, err := b.verifier.VerifyCollector(state, "Bearer "+b.token)
			requireFault(t, err, fault.Unauthenticated, "certificate_required")
		})
	}
}

func TestForeignCertificatesAreRefusedWhateverTheListenerLetIn(t *testing.T) {
	t.Parallel()
	b, evil := setup(t), setup(t)
	foreign := issue(t, evil.authority, b.id) // same trust domain, same collector, another CA
	_, err := b.verifier.VerifyCertificate(connect(t, foreign))
	requireFault(t, err, fault.Unauthenticated, "certificate_invalid")
	_, err = b.verifier.VerifyRenewal(connect(t, foreign))
	requireFault(t, err, fault.Unauthenticated, "certificate_invalid")

	// A certificate chained below a collector's: leaves can't sign.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		URIs: b.cert.Leaf.URIs, ExtKeyUsage: b.cert.Leaf.ExtKeyUsage,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, b.cert.Leaf, key.Public(), b.cert.PrivateKey)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	below := tls.Certificate{Certificate: [][]byte{der, b.cert.Leaf.Raw}, PrivateKey: key, Leaf: leaf}
	_, err = b.verifier.VerifyCertificate(connect(t, below))
	requireFault(t, err, fault.Unauthenticated, "certificate_invalid")
}

// An ECDSA signature (r, s) is as valid as (r, n-s): a revoked certificate could come back under a new thumbprint.
func TestOnlyEd25519AnchorsAreTrusted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
		URIs: []*url.URL{{Scheme: "spiffe", Host: trustDomain}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	anchor, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	_, err = identity.NewVerifier(identity.VerifierConfig{CollectorCAs: []*x509.Certificate{anchor}, TrustDomain: trustDomain}, b.snapshot)
	require.ErrorContains(t, err, "Ed25519")
}

func TestTwoAnchorsAreTrustedAtOnce(t *testing.T) {
	t.Parallel()
	b, successor := setup(t), setup(t)
	anchors := append(b.authority.CollectorCAs(), successor.authority.CollectorCAs()...)
	v, err := identity.NewVerifier(identity.VerifierConfig{CollectorCAs: anchors, TrustDomain: trustDomain}, b.snapshot)
	require.NoError(t, err)
	for _, cert := range []tls.Certificate{b.cert, issue(t, successor.authority, b.id)} {
		_, err := v.VerifyCertificate(connect(t, cert))
		require.NoError(t, err)
	}
}

func TestExpiredCertificateRenewsWithinTheGraceAndDoesNothingElse(t *testing.T) {
	t.Parallel()
	b := setup(t)
	step := func(d time.Duration) { b.clock.advance(d); b.snapshot.Confirm(b.clock.now()) }
	check := func() (push, token, renew error) {
		fresh, _, err := b.signer.CollectorToken(b.id, "db1", b.cert.Leaf)
		require.NoError(t, err)
		_, push = b.verifier.VerifyCollector(b.state, "Bearer "+fresh)
		_, token = b.verifier.VerifyCertificate(b.state)
		_, renew = b.verifier.VerifyRenewal(b.state)
		return push, token, renew
	}
	step(ca.CollectorLife - time.Minute)
	push, token, renew := check()
	require.NoError(t, push)
	require.NoError(t, token)
	require.NoError(t, renew)

	step(2 * time.Minute)
	push, token, renew = check()
	requireFault(t, push, fault.Unauthenticated, "certificate_expired")
	requireFault(t, token, fault.Unauthenticated, "certificate_expired")
	require.NoError(t, renew)

	step(29 * 24 * time.Hour)
	_, _, renew = check()
	require.NoError(t, renew)
	step(24 * time.Hour)
	_, _, renew = check()
	requireFault(t, renew, fault.Unauthenticated, "certificate_expired")
}

// Nobody has verified this certificate while it was in time: the grace must not depend on what is remembered.
func TestExpiredCertificateOfAnotherCAIsStillForeign(t *testing.T) {
	t.Parallel()
	b, evil := setup(t), setup(t)
	foreign, own := connect(t, issue(t, evil.authority, b.id)), connect(t, issue(t, b.authority, b.id))
	b.clock.advance(8 * 24 * time.Hour)
	b.snapshot.Confirm(b.clock.now())
	_, err := b.verifier.VerifyRenewal(foreign)
	requireFault(t, err, fault.Unauthenticated, "certificate_invalid")
	_, err = b.verifier.VerifyRenewal(own)
	require.NoError(t, err)
}

func TestCertificateOfTheFutureIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.clock.advance(time.Hour)
	future := connect(t, issue(t, b.authority, b.id))
	b.clock.advance(-time.Hour)
	_, err := b.verifier.VerifyCertificate(future)
	requireFault(t, err, fault.Unauthenticated, "certificate_invalid")
}

func TestStatusAndRevocationDecideOnALiveConnection(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.NoError(t, b.verify())
	b.put(t, b.collector(identity.Disabled))
	requireFault(t, b.verify(), fault.Forbidden, "collector_disabled")
	b.put(t, b.collector(identity.Locked))
	requireFault(t, b.verify(), fault.Forbidden, "collector_locked")
	for _, good := range []identity.Status{identity.Active, identity.Offline, identity.Registered} {
		b.put(t, b.collector(good))
		require.NoError(t, b.verify())
	}
	b.put(t, identity.Revocation{Thumbprint: ca.Fingerprint(b.cert.Leaf), CollectorID: b.id})
	requireFault(t, b.verify(), fault.Unauthenticated, "certificate_revoked")
	_, err := b.verifier.VerifyCertificate(b.state)
	requireFault(t, err, fault.Unauthenticated, "certificate_revoked")
	_, err = b.verifier.VerifyRenewal(b.state)
	requireFault(t, err, fault.Unauthenticated, "certificate_revoked")
}

func TestUnknownCollectorIsRefusedButNotWithinThePropagation(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.snapshot.Remove("collector." + b.id.String())
	requireFault(t, b.verify(), fault.Unavailable, "identity_propagating")
	b.clock.advance(2 * time.Minute)
	requireFault(t, b.verify(), fault.Unauthenticated, "collector_unknown")
}
