package authsvc_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/identity"
	"pganalytics/pkg/identity/ca"
	"pganalytics/pkg/internal/testdb"
)

func TestEnrolmentGivesExactlyOurProfileWhateverTheCSRAsks(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	isCA, err := asn1.Marshal(struct{ IsCA bool }{true})
	require.NoError(t, err)
	template := &x509.CertificateRequest{
		Subject:         pkix.Name{CommonName: "admin"},
		DNSNames:        []string{"127.0.0.1", "gateway.example"},
		IPAddresses:     []net.IP{net.IPv4(127, 0, 0, 1)},
		URIs:            []*url.URL{{Scheme: "spiffe", Host: trustDomain, Path: "/collector/" + uuid.NewString()}},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: isCA}},
	}
	for i := range 500 {
		template.DNSNames = append(template.DNSNames, fmt.Sprintf("h%d.example", i))
	}
	token, key := s.enrolmentToken(authsvc.EnrollmentRequest{}), newKey(t)
	a := s.register(token, registerBody("db1", newCSR(t, template, key)))
	require.Equal(t, http.StatusCreated, a.status, a.raw)
	require.Equal(t, "no-store", a.header.Get("Cache-Control"))
	require.Equal(t, collectorURL, a.CollectorURL)
	require.Equal(t, collectorURL, a.TokenURL)
	require.Empty(t, a.PrivateKey)
	require.Equal(t, string(ca.EncodePEM(s.authority.ServerCAs()...)), a.CA)
	require.WithinDuration(t, s.clock.now().Add(30*time.Minute), a.ExpiresAt, time.Minute)

	cert := keyPair(t, a.Certificate, key)
	require.False(t, cert.Leaf.IsCA)
	require.Empty(t, cert.Leaf.DNSNames)
	require.Empty(t, cert.Leaf.IPAddresses)
	require.Equal(t, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, cert.Leaf.ExtKeyUsage)
	id, err := ca.CollectorID(cert.Leaf, trustDomain)
	require.NoError(t, err)
	require.Equal(t, a.CollectorID, id)
	require.Equal(t, cert.Leaf.NotAfter, a.CertificateExpiresAt.UTC())

	// The verifiers learn of it, and both tokens work.
	s.known(func(c identity.Collector) bool {
		return c.Status == identity.Registered && c.Generation == 1 && c.Thumbprint == ca.Fingerprint(cert.Leaf) && c.Hostname == "db1.example"
	}, id)
	second := s.token(cert)
	require.Equal(t, http.StatusOK, second.status, second.raw)
	require.NotEqual(t, a.Token, second.Token)

	require.Equal(t, 1, query[int](s, `select count(*) from identity.audit where action = 'collector.register'
		and resource_id = $1 and source_ip = '127.0.0.1' and actor like 'enrollment_token:%'`, id))
	require.Equal(t, "registered", query[string](s, `select status from identity.collector where id = $1`, id))
	for _, secret := range []string{token, token[len(token)-64:], a.Token} {
		require.NotContains(t, s.logs.String(), secret)
		for _, table := range []string{"audit", "enrollment_token", "collector", "certificate"} {
			require.Zero(t, query[int](s, `select count(*) from identity.`+table+` x where x::text like '%' || $1 || '%'`, secret))
		}
	}
}

func TestTokenEnrolsExactlyOneOfFiftyAtOnce(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	token := s.enrolmentToken(authsvc.EnrollmentRequest{})
	client := s.client()
	csr := newCSR(t, &x509.CertificateRequest{}, newKey(t))
	statuses := make([]int, 50)
	var wg sync.WaitGroup
	for i := range statuses {
		wg.Go(func() {
			a, err := s.tryCall(client, http.MethodPost, s.users.URL()+"/api/v1/collectors/register", "Bearer "+token,
				registerBody(fmt.Sprintf("db%d", i), csr))
			if err == nil {
				statuses[i] = a.status
			}
		})
	}
	wg.Wait()
	counts := map[int]int{}
	for _, status := range statuses {
		counts[status]++
	}
	require.Equal(t, map[int]int{http.StatusCreated: 1, http.StatusUnauthorized: 49}, counts)
	require.Equal(t, 1, query[int](s, `select count(*) from identity.collector`))
	require.Equal(t, 1, query[int](s, `select count(*) from identity.certificate`))
	require.Equal(t, 1, query[int](s, `select count(*) from identity.audit where action = 'collector.register'`))
}

func TestEveryBadEnrolmentTokenGetsTheSameAnswer(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	body := func(name string) string { return registerBody(name, newCSR(t, &x509.CertificateRequest{}, newKey(t))) }

	used := s.enrolmentToken(authsvc.EnrollmentRequest{})
	require.Equal(t, http.StatusCreated, s.register(used, body("used")).status)
	revoked := s.enrolmentToken(authsvc.EnrollmentRequest{})
	require.NoError(t, s.exec(`update identity.enrollment_token set revoked_at = now() where 'pge_' || id = left($1, 20)`, revoked))
	good := s.enrolmentToken(authsvc.EnrollmentRequest{})
	last := good[len(good)-1]
	oneBitOff := good[:len(good)-1] + string("0123456789abcdef"[(strings.IndexByte("0123456789abcdef", last))^1])
	expired := s.enrolmentToken(authsvc.EnrollmentRequest{TTL: time.Minute})
	s.clock.advance(2 * time.Minute)

	var first answer
	for name, token := range map[string]string{
		"used": used, "revoked": revoked, "expired": expired, "one bit off": oneBitOff, "upper case": "pge_" + strings.ToUpper(good[4:]),
		"unknown": "pge_" + strings.Repeat("0", 16) + "_" + strings.Repeat("0", 64), "short": good[:len(good)-2], "none": "",
		"long": good + "00", "text": "hello", "an access token": "eyJhbGciOiJub25lIn0.e30.",
	} {
		a := s.register(token, "not even JSON: the token is looked at before the body is read")
		require.Equal(t, http.StatusUnauthorized, a.status, name)
		require.NotEmpty(t, a.header.Get("WWW-Authenticate"), name)
		a.raw = a.raw[:strings.Index(a.raw, "request_id")]
		if first.raw == "" {
			first = a
		}
		require.Equal(t, first.raw, a.raw, name)
	}
	require.Equal(t, http.StatusCreated, s.register(good, body("good")).status, "the token itself is unharmed")
}

func TestBadBodyLeavesTheTokenUsable(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	token := s.enrolmentToken(authsvc.EnrollmentRequest{BoundName: "db1"})
	csr := newCSR(t, &x509.CertificateRequest{}, newKey(t))
	good := registerBody("db1", csr)
	for name, c := range map[string]struct {
		body, code, pointer string
		status              int
	}{
		"no csr":         {registerBody("db1", ""), "csr_required", "/csr", 400},
		"bad csr":        {registerBody("db1", "x"), "csr_invalid", "/csr", 400},
		"unknown name":   {`{"admin":true,` + good[1:], "body_invalid", "", 400},
		"duplicate name": {`{"name":"a",` + good[1:], "body_invalid", "", 400},
		"other spelling": {strings.Replace(good, `"name"`, `"Name"`, 1), "body_invalid", "", 400},
		"no name":        {registerBody("", csr), "body_invalid", "/name", 400},
		"control":        {registerBody("db1\n", csr), "body_invalid", "/name", 400},
		"long":           {registerBody(strings.Repeat("x", 201), csr), "body_invalid", "/name", 400},
		"text after":     {good + "{}", "body_invalid", "", 400},
		"empty":          {"", "body_invalid", "", 400},
		"too large":      {`{"name":"` + strings.Repeat("x", 70<<10) + `"}`, "body_too_large", "", 413},
		"other's name":   {registerBody("db2", csr), "enrollment_name_mismatch", "", 403},
	} {
		a := s.register(token, c.body)
		require.Equal(t, c.status, a.status, name)
		require.Equal(t, c.code, a.Code, name)
		if c.pointer != "" {
			require.Equal(t, c.pointer, a.Errors[0].Pointer, name)
		}
	}
	a := s.register(token, good)
	require.Equal(t, http.StatusCreated, a.status, a.raw)

	// A name that is taken does not use the token up either.
	another := s.enrolmentToken(authsvc.EnrollmentRequest{})
	a = s.register(another, good)
	require.Equal(t, http.StatusConflict, a.status)
	require.Equal(t, "name_taken", a.Code)
	require.Equal(t, http.StatusCreated, s.register(another, registerBody("db2", csr)).status)
}

func TestEnrolmentTokenLifeIsBounded(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	for _, ttl := range []time.Duration{-time.Second, 7*24*time.Hour + time.Second} {
		_, err := authsvc.CreateEnrollmentToken(t.Context(), s.store, authsvc.EnrollmentRequest{TTL: ttl, Actor: "cli:test"})
		require.ErrorContains(t, err, "--ttl")
	}
	e, err := authsvc.CreateEnrollmentToken(t.Context(), s.store, authsvc.EnrollmentRequest{TTL: 7 * 24 * time.Hour, Actor: "cli:test"})
	require.NoError(t, err)
	require.NotContains(t, fmt.Sprint(e), e.Token[21:])
	require.Regexp(t, `^pge_[0-9a-f]{16}_[0-9a-f]{64}$`, e.Token)
	require.Equal(t, 1, query[int](s, `select count(*) from identity.audit where action = 'enrollment_token.create' and actor = 'cli:test' and resource_id = $1`, e.ID))
}

func TestAuditIsAppendOnly(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	s.enrolmentToken(authsvc.EnrollmentRequest{})
	for _, sql := range []string{
		`update identity.audit set actor = 'nobody'`, `delete from identity.audit`, `truncate identity.audit`,
	} {
		require.ErrorContains(t, s.exec(sql), "append only")
	}
	require.Equal(t, 1, query[int](s, `select count(*) from identity.audit`))
}

func TestServerCAIsServedWithTheFingerprintThatOperatorsAreShown(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	a := s.call(s.client(), http.MethodGet, s.users.URL()+"/api/v1/ca", "", "")
	require.Equal(t, http.StatusOK, a.status)
	require.Equal(t, "application/x-pem-file", a.header.Get("Content-Type"))
	require.Equal(t, string(ca.EncodePEM(s.authority.ServerCAs()...)), a.raw)
}

func TestConfigReportsAllFaults(t *testing.T) {
	t.Parallel()
	err := authsvc.Config{CollectorURL: "http://plain.example", TokenURL: "https://user@host"}.Validate()
	require.ErrorContains(t, err, `--collector-url "http://plain.example"`)
	require.ErrorContains(t, err, "--token-url")
}
