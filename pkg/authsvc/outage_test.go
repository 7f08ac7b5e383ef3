package authsvc_test

import (
	"context"
	"crypto/x509"
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/identity"
	"pganalytics/pkg/internal/testdb"
	"pganalytics/pkg/store"
)

func TestTokenIsHandedOutWhileTheDatabaseIsStopped(t *testing.T) {
	t.Parallel()
	cluster := testdb.StartCluster(t)
	require.NoError(t, store.Migrate(t.Context(), cluster.URL()))
	s := newStack(t, cluster.URL())
	c := s.enrol("db1")
	pending := s.enrolmentToken(authsvc.EnrollmentRequest{})
	cluster.Stop()

	a := s.token(c.cert)
	require.Equal(t, http.StatusOK, a.status, a.raw)
	require.NotEmpty(t, a.Token)
	// What needs the database says to come back.
	a = s.renew(c.cert, newKey(t))
	require.Equal(t, http.StatusServiceUnavailable, a.status, a.raw)
	require.NotEmpty(t, a.header.Get("Retry-After"))
	csr := newCSR(t, &x509.CertificateRequest{}, newKey(t))
	require.Equal(t, http.StatusServiceUnavailable, s.register(pending, registerBody("db2", csr)).status)

	cluster.Start()
	s.eventually(func() bool { return s.store.Ping(context.Background()) == nil }, "back")
	require.Equal(t, http.StatusCreated, s.register(pending, registerBody("db2", csr)).status)
	// The use of the certificate was not forgotten.
	s.eventually(func() bool {
		return query[int](s, `select count(*) from identity.certificate c join identity.collector k on k.id = c.collector_id
			where k.id = $1 and c.first_used_at is not null and k.last_seen is not null`, c.id) == 1
	}, "marked used")
}

func TestEnrolmentWhileNATSIsAwayIsPublishedLater(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	token := s.enrolmentToken(authsvc.EnrollmentRequest{})
	s.nats.Stop()
	key := newKey(t)
	a := s.register(token, registerBody("db1", newCSR(t, &x509.CertificateRequest{}, key)))
	require.Equal(t, http.StatusCreated, a.status, a.raw)
	cert := keyPair(t, a.Certificate, key)
	require.Equal(t, "identity_propagating", s.token(cert).Code)

	s.nats.Restart()
	s.eventually(func() bool { return s.token(cert).status == http.StatusOK }, "published after the restart")
}

func TestReconcileRepairsTheBucketAndTakesNothingBack(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	c := s.enrol("db1")
	bucket := s.bus.IdentityBucket()

	// Lost from the bucket: published again.
	require.NoError(t, bucket.Delete(t.Context(), "collector."+c.id.String()))
	s.eventually(func() bool { o, _ := s.snapshot.Observed(); return len(o.Collectors) == 0 }, "deleted")
	require.NoError(t, s.service.Reconcile(t.Context()))
	s.known(func(k identity.Collector) bool { return k.Status == identity.Registered }, c.id)

	// Newer in the bucket than in a database from a backup: left as it is, and what the database never heard of stays.
	stranger := identity.Collector{ID: uuid.New(), Status: identity.Disabled, ChangedAt: time.Now()}
	locked := identity.Collector{ID: c.id, Status: identity.Locked, ChangedAt: time.Now().Add(time.Minute)}
	revoked := identity.Revocation{Thumbprint: "sha256:" + "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff", CollectorID: c.id}
	for _, record := range []interface {
		Record() (string, []byte, error)
	}{stranger, locked, revoked} {
		key, value, err := record.Record()
		require.NoError(t, err)
		require.NoError(t, bucket.Put(t.Context(), key, value))
	}
	s.eventually(func() bool { o, _ := s.snapshot.Observed(); return len(o.Revoked) == 1 }, "seen")
	require.NoError(t, s.service.Reconcile(t.Context()))
	s.eventually(func() bool {
		o, _ := s.snapshot.Observed()
		return o.Meta.Collectors == 2 && o.Meta.Revoked == 1 && o.Meta.Keys == 1
	}, "meta counts it all")
	o, _ := s.snapshot.Observed()
	require.Equal(t, identity.Locked, o.Collectors[c.id].Status)
	require.Contains(t, o.Collectors, stranger.ID)
	require.Equal(t, "collector_locked", s.token(c.cert).Code)

	// Revoked in the database: published, and effective on a live connection.
	other := s.enrol("db2")
	client := s.client(other.cert)
	call := func() answer {
		return s.call(client, http.MethodPost, s.collectors.URL()+"/api/v1/collectors/token", "", "")
	}
	require.Equal(t, http.StatusOK, call().status)
	require.NoError(t, s.exec(`update identity.certificate set revoked_at = now() where collector_id = $1`, other.id))
	require.NoError(t, s.service.Reconcile(t.Context()))
	s.eventually(func() bool { return call().Code == "certificate_revoked" }, "revoked")
}

func TestDatabaseFromABackupTakesOverWhatWasRenewedSince(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	c := s.enrol("db1")
	key := newKey(t)
	second := keyPair(t, s.renew(c.cert, key).Certificate, key)
	s.known(func(k identity.Collector) bool { return k.Generation == 2 }, c.id)
	// As the database was before the renewal.
	require.NoError(t, s.exec(`update identity.collector set generation = 1, updated_at = created_at where id = $1`, c.id))
	require.NoError(t, s.exec(`delete from identity.certificate where generation = 2`))
	require.NoError(t, s.service.Reconcile(t.Context()))
	require.Equal(t, http.StatusOK, s.token(second).status, "verifiers are ahead")

	key = newKey(t)
	a := s.renew(second, key)
	require.Equal(t, http.StatusOK, a.status, a.raw)
	third := keyPair(t, a.Certificate, key)
	s.known(func(k identity.Collector) bool { return k.Generation == 3 }, c.id)
	require.Equal(t, http.StatusOK, s.token(third).status)
	require.Equal(t, 1, query[int](s, `select count(*) from identity.audit where action = 'certificate.adopt'`))
}
