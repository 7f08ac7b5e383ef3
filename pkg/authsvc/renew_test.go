package authsvc_test

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/identity"
	"pganalytics/pkg/identity/ca"
	"pganalytics/pkg/internal/testdb"
)

func TestRenewalGivesTheNextGenerationToTheHolderOfTheNewest(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	c := s.enrol("db1")
	key := newKey(t)
	a := s.renew(c.cert, key)
	require.Equal(t, http.StatusOK, a.status, a.raw)
	require.Equal(t, c.id, a.CollectorID)
	second := keyPair(t, a.Certificate, key)
	id, err := ca.CollectorID(second.Leaf, trustDomain)
	require.NoError(t, err)
	require.Equal(t, c.id, id)
	s.known(func(k identity.Collector) bool {
		return k.Generation == 2 && k.Thumbprint == ca.Fingerprint(second.Leaf)
	}, c.id)
	require.Equal(t, http.StatusOK, s.token(second).status)

	third := newKey(t)
	a = s.renew(second, third)
	require.Equal(t, http.StatusOK, a.status, a.raw)
	require.Equal(t, 2, query[int](s, `select count(*) from identity.audit where action = 'certificate.renew' and resource_id = $1`, c.id))
}

func TestOldCertificateThatRenewsLocksTheCollector(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	c := s.enrol("db1")
	key := newKey(t)
	second := keyPair(t, s.renew(c.cert, key).Certificate, key)
	require.Equal(t, http.StatusOK, s.token(second).status) // seen in use

	a := s.renew(c.cert, newKey(t))
	require.Equal(t, http.StatusForbidden, a.status)
	require.Equal(t, "collector_locked", a.Code)
	require.Empty(t, a.Certificate)
	s.known(func(k identity.Collector) bool { return k.Status == identity.Locked }, c.id)
	for _, cert := range []tls.Certificate{c.cert, second} {
		s.eventually(func() bool { return s.token(cert).Code == "collector_locked" }, "locked for tokens")
		require.Equal(t, "collector_locked", s.renew(cert, newKey(t)).Code)
	}
	require.Equal(t, 1, query[int](s, `select count(*) from identity.audit where action = 'collector.lock' and resource_id = $1`, c.id))
	require.Contains(t, s.logs.String(), "its key may have been copied")
}

func TestLostAnswerIsForgivenOnceAndARepeatedRequestAlways(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	c := s.enrol("db1")
	lost := newKey(t)
	first := s.renew(c.cert, lost)
	for range 3 { // the same key: the same renewal
		again := s.renew(c.cert, lost)
		require.Equal(t, http.StatusOK, again.status, again.raw)
		require.Equal(t, first.Certificate, again.Certificate)
	}
	require.Equal(t, http.StatusOK, s.renew(c.cert, newKey(t)).status, "another key: once")
	a := s.renew(c.cert, newKey(t))
	require.Equal(t, http.StatusForbidden, a.status)
	require.Equal(t, "collector_locked", a.Code)
}

func TestRenewalsAtOnceGiveOneGenerationEach(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	c := s.enrol("db1")
	key := newKey(t)
	answers := make([]answer, 10)
	var wg sync.WaitGroup
	for i := range answers {
		wg.Go(func() { answers[i] = s.renew(c.cert, key) })
	}
	wg.Wait()
	for _, a := range answers {
		require.Equal(t, http.StatusOK, a.status, a.raw)
		require.Equal(t, answers[0].Certificate, a.Certificate)
	}
	require.Equal(t, 2, query[int](s, `select count(*) from identity.certificate`))
}

func TestRenewalNeedsANewKey(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	c := s.enrol("db1")
	a := s.call(s.client(c.cert), http.MethodPost, s.collectors.URL()+"/api/v1/collectors/renew", "",
		fmt.Sprintf(`{"csr":%q}`, newCSR(t, &x509.CertificateRequest{}, c.cert.PrivateKey.(crypto.Signer))))
	require.Equal(t, http.StatusBadRequest, a.status)
	require.Equal(t, "key_reused", a.Code)
	a = s.call(s.client(c.cert), http.MethodPost, s.collectors.URL()+"/api/v1/collectors/renew", "", `{}`)
	require.Equal(t, "csr_required", a.Code)
}

func TestExpiredCertificateRenewsForThirtyDaysAndGetsNoToken(t *testing.T) {
	t.Parallel()
	// The listener goes by the machine's clock: so certificates must have expired by that one.
	s := newStackAt(t, testdb.New(t), -40*24*time.Hour)
	old := s.enrol("old")
	s.clock.advance(20 * 24 * time.Hour)
	recent := s.enrol("recent")
	s.clock.advance(20 * 24 * time.Hour)
	s.eventually(func() bool { return s.verifier.Ready() == nil }, "fresh again")

	a := s.token(recent.cert)
	require.Equal(t, http.StatusUnauthorized, a.status)
	require.Equal(t, "certificate_expired", a.Code)
	key := newKey(t)
	a = s.renew(recent.cert, key)
	require.Equal(t, http.StatusOK, a.status, a.raw)
	fresh := keyPair(t, a.Certificate, key)
	s.known(func(k identity.Collector) bool { return k.Generation == 2 }, recent.id)
	require.Equal(t, http.StatusOK, s.token(fresh).status)

	_, err := s.tryCall(s.client(old.cert), http.MethodPost, s.collectors.URL()+"/api/v1/collectors/renew", "", "{}")
	require.Error(t, err, "33 days after its end it opens no connection")
}

func TestForeignCertificateOpensNoConnection(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	c := s.enrol("db1")
	foreign, err := ca.Init(ca.Options{Dir: filepath.Join(t.TempDir(), "foreign"), TrustDomain: trustDomain, ServerNames: []string{"127.0.0.1"}})
	require.NoError(t, err)
	key := newKey(t)
	request, err := ca.ParseRequest(newCSR(t, &x509.CertificateRequest{}, key))
	require.NoError(t, err)
	leaf, err := foreign.IssueCollector(c.id, request)
	require.NoError(t, err)
	// Shown whatever CAs the server asks for.
	client := s.client()
	client.Transport.(*http.Transport).TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}, nil
	}
	_, err = s.tryCall(client, http.MethodPost, s.collectors.URL()+"/api/v1/collectors/token", "", "")
	require.Error(t, err, "any answer would do for the attacker; there must be none")
	_, err = s.tryCall(s.client(), http.MethodPost, s.collectors.URL()+"/api/v1/collectors/token", "", "")
	require.Error(t, err, "nor does none")
	require.Equal(t, http.StatusOK, s.token(c.cert).status)
}

// On the listener without client certificates these routes are not there; were they, they would refuse.
func TestCollectorRoutesAreNotOnTheUserListener(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	c := s.enrol("db1")
	for _, route := range []string{"token", "renew"} {
		a := s.call(s.client(c.cert), http.MethodPost, s.users.URL()+"/api/v1/collectors/"+route, "", "{}")
		require.Equal(t, http.StatusMethodNotAllowed, a.status, "the path is taken for a collector's id")
	}
}
