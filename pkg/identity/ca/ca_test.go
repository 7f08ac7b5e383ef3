package ca_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/identity/ca"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const trustDomain = "test.example"

func options(dir string) ca.Options {
	return ca.Options{Dir: dir, TrustDomain: trustDomain, ServerNames: []string{"localhost", "127.0.0.1"}}
}

func newAuthority(t *testing.T) *ca.Authority {
	t.Helper()
	a, err := ca.Init(options(filepath.Join(t.TempDir(), "identity")))
	require.NoError(t, err)
	return a
}

func newCSR(tb testing.TB, template *x509.CertificateRequest, key crypto.Signer) string {
	tb.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	require.NoError(tb, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func ecKey(tb testing.TB, curve elliptic.Curve) crypto.Signer {
	tb.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	require.NoError(tb, err)
	return key
}

func edKey(tb testing.TB) crypto.Signer {
	tb.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(tb, err)
	return key
}

func rsaKey(tb testing.TB, bits int) crypto.Signer {
	tb.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	require.NoError(tb, err)
	return key
}

// greedy asks for everything that a certificate of ours must not have.
func greedy(tb testing.TB) *x509.CertificateRequest {
	tb.Helper()
	foreign, err := url.Parse("spiffe://" + trustDomain + "/collector/" + uuid.NewString())
	require.NoError(tb, err)
	isCA, err := asn1.Marshal(struct {
		IsCA bool
	}{true})
	require.NoError(tb, err)
	usage, err := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 1}, {2, 5, 29, 37, 0}})
	require.NoError(tb, err)
	return &x509.CertificateRequest{
		Subject:        pkix.Name{CommonName: "root", Organization: []string{"evil"}},
		DNSNames:       []string{"gateway.example", "*.example"},
		EmailAddresses: []string{"root@example.com"},
		IPAddresses:    []net.IP{net.IPv4(127, 0, 0, 1)},
		URIs:           []*url.URL{foreign, foreign},
		ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: isCA},
			{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: usage},
		},
	}
}

func TestCertificateHasOurProfileWhateverIsAsked(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	for name, key := range map[string]crypto.Signer{
		"p256": ecKey(t, elliptic.P256()), "ed25519": edKey(t), "rsa3072": rsaKey(t, 3072),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			request, err := ca.ParseRequest(newCSR(t, greedy(t), key))
			require.NoError(t, err)
			id := uuid.New()
			before := time.Now()
			cert, err := a.IssueCollector(id, request)
			require.NoError(t, err)

			require.Len(t, cert.URIs, 1)
			require.Equal(t, "spiffe://"+trustDomain+"/collector/"+id.String(), cert.URIs[0].String())
			require.Empty(t, cert.DNSNames)
			require.Empty(t, cert.EmailAddresses)
			require.Empty(t, cert.IPAddresses)
			require.Equal(t, "CN="+id.String(), cert.Subject.String())
			require.False(t, cert.IsCA)
			require.Equal(t, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, cert.ExtKeyUsage)
			require.Empty(t, cert.UnknownExtKeyUsage)
			require.Equal(t, x509.KeyUsageDigitalSignature, cert.KeyUsage)
			require.Equal(t, 128, cert.SerialNumber.BitLen())
			require.Equal(t, x509.PureEd25519, cert.SignatureAlgorithm)
			require.WithinDuration(t, before.Add(-time.Minute), cert.NotBefore, 5*time.Second)
			require.WithinDuration(t, before.Add(7*24*time.Hour), cert.NotAfter, 5*time.Second)
			require.Equal(t, key.Public(), cert.PublicKey)
			// Exactly these extensions: key usage, extended usage, basic constraints, authority key id, SAN.
			require.Len(t, cert.Extensions, 5)
			require.True(t, request.SameKey(cert))

			got, err := ca.CollectorID(cert, trustDomain)
			require.NoError(t, err)
			require.Equal(t, id, got)
			_, err = ca.CollectorID(cert, "other.example")
			require.Error(t, err)
		})
	}
}

func TestBadRequestsAreRefused(t *testing.T) {
	t.Parallel()
	good := newCSR(t, &x509.CertificateRequest{}, ecKey(t, elliptic.P256()))
	block, _ := pem.Decode([]byte(good))
	encode := func(der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	}
	flipped := append([]byte(nil), block.Bytes...)
	flipped[len(flipped)-1] ^= 1
	for name, text := range map[string]string{
		"empty":              "",
		"text before":        "hello\n" + good,
		"text after":         good + "hello",
		"two requests":       good + good,
		"trailing DER":       encode(append(append([]byte(nil), block.Bytes...), 0)),
		"other block":        strings.ReplaceAll(good, "CERTIFICATE REQUEST", "CERTIFICATE"),
		"headers":            strings.Replace(good, "REQUEST-----\n", "REQUEST-----\nA: b\n\n", 1),
		"broken, then good":  strings.Replace(good, "-----END", "!----END", 1) + good,
		"signature altered":  encode(flipped),
		"signature by SHA-1": encode(signedBySHA1(t)),
		"RSA 2048":           newCSR(t, &x509.CertificateRequest{}, rsaKey(t, 2048)),
		"P-384":              newCSR(t, &x509.CertificateRequest{}, ecKey(t, elliptic.P384())),
		"P-224":              newCSR(t, &x509.CertificateRequest{}, ecKey(t, elliptic.P224())),
		"too long":           good + strings.Repeat(" ", 20<<10),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := ca.ParseRequest(text)
			require.Error(t, err)
			f, ok := errors.AsType[*fault.Error](err)
			require.True(t, ok)
			require.Equal(t, fault.Invalid, f.Class)
			require.Equal(t, "csr_invalid", f.Code)
		})
	}
	_, err := ca.ParseRequest("\n" + good + "\n")
	require.NoError(t, err)
}

// signedBySHA1 returns a request whose signature is good, but of an algorithm
// for which others can be made.
func signedBySHA1(t *testing.T) []byte {
	t.Helper()
	key := rsaKey(t, 3072)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	require.NoError(t, err)
	csr, err := x509.ParseCertificateRequest(der)
	require.NoError(t, err)
	sum := sha1.Sum(csr.RawTBSCertificateRequest)
	signature, err := key.Sign(rand.Reader, sum[:], crypto.SHA1)
	require.NoError(t, err)
	der, err = asn1.Marshal(struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{
		asn1.RawValue{FullBytes: csr.RawTBSCertificateRequest},
		pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 5}, Parameters: asn1.NullRawValue},
		asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)},
	})
	require.NoError(t, err)
	return der
}

func TestCollectorIDWantsExactlyTheProfile(t *testing.T) {
	t.Parallel()
	id := uuid.New()
	uri := func(s string) *url.URL {
		u, err := url.Parse(s)
		require.NoError(t, err)
		return u
	}
	good := func() *x509.Certificate {
		return &x509.Certificate{
			URIs:        []*url.URL{uri("spiffe://" + trustDomain + "/collector/" + id.String())},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
	}
	_, err := ca.CollectorID(good(), trustDomain)
	require.NoError(t, err)
	for name, spoil := range map[string]func(*x509.Certificate){
		"CA":            func(c *x509.Certificate) { c.IsCA = true },
		"server too":    func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) },
		"any usage":     func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} },
		"unknown usage": func(c *x509.Certificate) { c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 2, 3}} },
		"no URI":        func(c *x509.Certificate) { c.URIs = nil },
		"two URIs":      func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) },
		"DNS too":       func(c *x509.Certificate) { c.DNSNames = []string{"a"} },
		"other path":    func(c *x509.Certificate) { c.URIs[0] = uri("spiffe://" + trustDomain + "/user/" + id.String()) },
		"query":         func(c *x509.Certificate) { c.URIs[0] = uri(c.URIs[0].String() + "?x=1") },
		"upper case id": func(c *x509.Certificate) {
			c.URIs[0] = uri("spiffe://" + trustDomain + "/collector/" + strings.ToUpper(id.String()))
		},
		"braces": func(c *x509.Certificate) {
			c.URIs[0] = uri("spiffe://" + trustDomain + "/collector/{" + id.String() + "}")
		},
		"urn":            func(c *x509.Certificate) { c.URIs[0] = uri("urn:uuid:" + id.String()) },
		"user":           func(c *x509.Certificate) { c.URIs[0].User = url.User("x") },
		"foreign domain": func(c *x509.Certificate) { c.URIs[0].Host = "evil.example" },
	} {
		c := good()
		spoil(c)
		_, err := ca.CollectorID(c, trustDomain)
		require.Error(t, err, name)
	}
}

func TestInitTwiceAtOnceAndAgainGivesOneAuthority(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "identity")
	var wg sync.WaitGroup
	all := make([]*ca.Authority, 8)
	for i := range all {
		wg.Go(func() {
			var err error
			all[i], err = ca.Init(options(dir))
			require.NoError(t, err)
		})
	}
	wg.Wait()
	first, err := ca.Init(options(dir))
	require.NoError(t, err)
	for _, a := range all {
		require.Equal(t, first.CollectorCAs(), a.CollectorCAs())
		require.Equal(t, first.ServerCAs(), a.ServerCAs())
		require.Equal(t, first.Roots(), a.Roots())
	}
	again, err := ca.Init(options(dir))
	require.NoError(t, err)
	firstKey, _ := first.SigningKey()
	againKey, record := again.SigningKey()
	require.Equal(t, firstKey, againKey)
	require.NoError(t, record.Verify(first.Roots()))

	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		require.False(t, strings.HasPrefix(e.Name(), "."), "left behind: %s", e.Name())
		info, err := e.Info()
		require.NoError(t, err)
		if strings.HasSuffix(e.Name(), ".key") {
			require.Equal(t, os.FileMode(0o600), info.Mode(), e.Name())
		}
	}
	info, err := os.Stat(dir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
}

func TestInitRefusesLooseModes(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"collector-ca.key", "server-ca.key", "signing.key"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "identity")
			_, err := ca.Init(options(dir))
			require.NoError(t, err)
			require.NoError(t, os.Chmod(filepath.Join(dir, name), 0o640))
			_, err = ca.Init(options(dir))
			require.ErrorContains(t, err, name)
			require.ErrorContains(t, err, "chmod 600")
		})
	}
	for _, name := range []string{ca.CollectorCAFile, ca.RootFile} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "identity")
			_, err := ca.Init(options(dir))
			require.NoError(t, err)
			require.NoError(t, os.Chmod(filepath.Join(dir, name), 0o666))
			_, err = ca.Init(options(dir))
			require.ErrorContains(t, err, "may be written by others")
		})
	}
	dir := filepath.Join(t.TempDir(), "identity")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, os.Chmod(dir, 0o777))
	_, err := ca.Init(options(dir))
	require.ErrorContains(t, err, "may be written by others")
}

func TestInitMakesNoSecondCAOverALostKey(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"collector-ca.key", "server-ca.key"} {
		dir := filepath.Join(t.TempDir(), "identity")
		_, err := ca.Init(options(dir))
		require.NoError(t, err)
		require.NoError(t, os.Remove(filepath.Join(dir, name)))
		_, err = ca.Init(options(dir))
		require.ErrorContains(t, err, "is gone")
		require.NoFileExists(t, filepath.Join(dir, name))
	}
}

func TestInitRefusesForeignParts(t *testing.T) {
	t.Parallel()
	one, two := filepath.Join(t.TempDir(), "one"), filepath.Join(t.TempDir(), "two")
	for _, dir := range []string{one, two} {
		_, err := ca.Init(options(dir))
		require.NoError(t, err)
	}
	for _, name := range []string{"collector-ca.key", "server-ca.key", "signing.key"} {
		own, err := os.ReadFile(filepath.Join(one, name))
		require.NoError(t, err)
		foreign, err := os.ReadFile(filepath.Join(two, name))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(one, name), foreign, 0o600))
		_, err = ca.Init(options(one))
		require.Error(t, err, name)
		require.NoError(t, os.WriteFile(filepath.Join(one, name), own, 0o600))
	}
	o := options(one)
	o.TrustDomain = "other.example"
	_, err := ca.Init(o)
	require.ErrorContains(t, err, "another trust domain")
}

func TestRootKeyMayLieElsewhere(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "identity")
	o := options(dir)
	now := time.Now()
	o.Now = func() time.Time { return now }
	a, err := ca.Init(o)
	require.NoError(t, err)
	require.NoError(t, os.Rename(filepath.Join(dir, "root.key"), filepath.Join(t.TempDir(), "root.key")))
	b, err := ca.Init(o)
	require.NoError(t, err)
	require.Equal(t, a.Roots(), b.Roots())

	now = now.Add(3 * 365 * 24 * time.Hour)
	_, err = ca.Init(o)
	require.ErrorContains(t, err, "root.key is not there to vouch for it")
}

func TestSigningKeyIsReplacedInTheSecondHalfOfItsLife(t *testing.T) {
	t.Parallel()
	o := options(filepath.Join(t.TempDir(), "identity"))
	now := time.Now()
	o.Now = func() time.Time { return now }
	a, err := ca.Init(o)
	require.NoError(t, err)
	now = now.Add(366 * 24 * time.Hour)
	b, err := ca.Init(o)
	require.NoError(t, err)
	_, old := a.SigningKey()
	_, fresh := b.SigningKey()
	require.NotEqual(t, old.KID, fresh.KID)
	require.NoError(t, fresh.Verify(a.Roots()))
	require.True(t, old.Covers(now))
}

func TestSigningKeyNeedsTheRootsWordForAllOfIt(t *testing.T) {
	t.Parallel()
	a, other := newAuthority(t), newAuthority(t)
	_, good := a.SigningKey()
	require.NoError(t, good.Verify(a.Roots()))
	require.Error(t, good.Verify(other.Roots()))
	require.Error(t, good.Verify(nil))
	_, foreign := other.SigningKey()
	for name, spoil := range map[string]func(*ca.SigningKey){
		"key":          func(k *ca.SigningKey) { k.PublicKey = foreign.PublicKey },
		"key and id":   func(k *ca.SigningKey) { k.PublicKey, k.KID = foreign.PublicKey, foreign.KID },
		"id":           func(k *ca.SigningKey) { k.KID = foreign.KID },
		"end":          func(k *ca.SigningKey) { k.NotAfter = k.NotAfter.Add(time.Second) },
		"beginning":    func(k *ca.SigningKey) { k.NotBefore = k.NotBefore.Add(-time.Second) },
		"no signature": func(k *ca.SigningKey) { k.Signature = nil },
		"short key":    func(k *ca.SigningKey) { k.PublicKey = k.PublicKey[:31] },
	} {
		k := good
		spoil(&k)
		require.Error(t, k.Verify(a.Roots()), name)
	}
}

func TestServerCertificateFollowsNamesAndTimeButNotTheOperatorsOwn(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "identity")
	o := options(dir)
	a, err := ca.Init(o)
	require.NoError(t, err)
	read := func() *x509.Certificate {
		data, err := os.ReadFile(filepath.Join(dir, ca.ServerCertFile))
		require.NoError(t, err)
		block, _ := pem.Decode(data)
		cert, err := x509.ParseCertificate(block.Bytes)
		require.NoError(t, err)
		return cert
	}
	first := read()
	pool := x509.NewCertPool()
	pool.AddCert(a.ServerCAs()[0])
	for _, name := range o.ServerNames {
		_, err = first.Verify(x509.VerifyOptions{Roots: pool, DNSName: name})
		require.NoError(t, err)
	}
	require.NoError(t, ca.RenewServer(dir, o.ServerNames, time.Now()))
	require.NoError(t, ca.RenewServer(dir, nil, time.Now()))
	require.Equal(t, first, read(), "nothing changed")
	_, err = ca.Init(ca.Options{Dir: filepath.Join(t.TempDir(), "none"), TrustDomain: trustDomain})
	require.ErrorContains(t, err, "at least one host name")

	require.NoError(t, ca.RenewServer(dir, []string{"localhost", "db.example", "::1"}, time.Now()))
	second := read()
	require.Equal(t, []string{"db.example", "localhost"}, second.DNSNames)
	require.Equal(t, first.PublicKey, second.PublicKey)

	require.NoError(t, ca.RenewServer(dir, []string{"localhost", "db.example", "::1"}, time.Now().Add(150*24*time.Hour)))
	require.NotEqual(t, second.SerialNumber, read().SerialNumber)

	own, err := os.ReadFile(filepath.Join(dir, ca.CollectorCAFile)) // any certificate that is not from the server CA
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, ca.ServerCertFile), own, 0o600))
	require.NoError(t, ca.RenewServer(dir, []string{"elsewhere"}, time.Now()))
	left, err := os.ReadFile(filepath.Join(dir, ca.ServerCertFile))
	require.NoError(t, err)
	require.Equal(t, own, left)
}

func TestOptionsReportAllFaults(t *testing.T) {
	t.Parallel()
	err := ca.Options{TrustDomain: "No Good", ServerNames: []string{"ok", "not ok", "::0001"}}.Validate()
	require.ErrorContains(t, err, "identity directory")
	require.ErrorContains(t, err, `"No Good"`)
	require.ErrorContains(t, err, `"not ok"`)
	require.ErrorContains(t, err, "write it as ::1")
}

func FuzzParseRequest(f *testing.F) {
	f.Add(newCSR(f, greedy(f), ecKey(f, elliptic.P256())))
	f.Add(newCSR(f, &x509.CertificateRequest{}, edKey(f)))
	f.Add("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n")
	a, err := ca.Init(options(filepath.Join(f.TempDir(), "identity")))
	require.NoError(f, err)
	block, _ := pem.Decode([]byte(newCSR(f, greedy(f), edKey(f))))
	f.Add(string(block.Bytes))
	f.Fuzz(func(t *testing.T, text string) {
		if !strings.HasPrefix(text, "-----") { // let the fuzzer past the base64
			text = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: []byte(text)}))
		}
		r, err := ca.ParseRequest(text)
		if err != nil {
			require.Equal(t, fault.Invalid, fault.ClassOf(err))
			return
		}
		id := uuid.New()
		cert, err := a.IssueCollector(id, r)
		require.NoError(t, err)
		got, err := ca.CollectorID(cert, trustDomain)
		require.NoError(t, err)
		require.Equal(t, id, got)
		require.False(t, cert.IsCA)
	})
}
