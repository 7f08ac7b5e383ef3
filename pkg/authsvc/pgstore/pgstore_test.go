package pgstore_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/authsvc/pgstore"
	"pganalytics/pkg/fault"
	"pganalytics/pkg/identity"
	"pganalytics/pkg/internal/testdb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func setup(t *testing.T) *pgstore.Store {
	t.Helper()
	s, err := pgstore.Open(t.Context(), testdb.New(t))
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

var now = time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)

func newToken(t *testing.T, s *pgstore.Store, boundName string) authsvc.EnrollmentToken {
	t.Helper()
	token := authsvc.EnrollmentToken{
		ID: uuid.NewString(), Hash: sha256.Sum256([]byte(uuid.NewString())), BoundName: boundName, CreatedBy: "cli:test",
		CreatedAt: now, ExpiresAt: now.Add(time.Hour),
	}
	require.NoError(t, s.CreateEnrollmentToken(t.Context(), token))
	return token
}

func newCertificate() authsvc.Certificate {
	key := sha256.Sum256([]byte(uuid.NewString()))
	return authsvc.Certificate{
		Thumbprint: "sha256:" + hex.EncodeToString(key[:]), Serial: "1", KeyHash: key, DER: key[:],
		NotBefore: now, NotAfter: now.Add(time.Hour),
	}
}

func registration(token authsvc.EnrollmentToken, name string) authsvc.Registration {
	return authsvc.Registration{
		TokenID: token.ID, TokenHash: token.Hash, At: now, Source: netip.MustParseAddr("192.0.2.1"),
		CollectorID: uuid.New(), Name: name, Hostname: "h", Certificate: newCertificate(),
	}
}

// What the service looked at before does not count: the store decides alone.
func TestRegisterTakesOnlyAUsableToken(t *testing.T) {
	t.Parallel()
	s := setup(t)
	token := newToken(t, s, "db1")
	for name, spoil := range map[string]func(*authsvc.Registration){
		"unknown":    func(r *authsvc.Registration) { r.TokenID = "nobody" },
		"other hash": func(r *authsvc.Registration) { r.TokenHash[31] ^= 1 },
		"expired":    func(r *authsvc.Registration) { r.At = token.ExpiresAt },
		"other name": func(r *authsvc.Registration) { r.Name = "db2" },
	} {
		r := registration(token, "db1")
		spoil(&r)
		_, err := s.Register(t.Context(), r)
		require.ErrorIs(t, err, authsvc.ErrEnrollmentRefused, name)
	}
	r := registration(token, "db1")
	c, err := s.Register(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, identity.Collector{
		ID: r.CollectorID, Status: identity.Registered, Generation: 1, Thumbprint: r.Certificate.Thumbprint, Hostname: "h", ChangedAt: c.Record.ChangedAt,
	}, c.Record)
	_, err = s.Register(t.Context(), registration(token, "db1"))
	require.ErrorIs(t, err, authsvc.ErrEnrollmentRefused, "used")

	spent, err := s.EnrollmentToken(t.Context(), token.ID)
	require.NoError(t, err)
	require.Equal(t, "used", spent.Status(now))
	none, err := s.EnrollmentToken(t.Context(), "nobody")
	require.NoError(t, err)
	require.NotEqual(t, "usable", none.Status(now))
}

func TestRegisterOfATakenNameChangesNothing(t *testing.T) {
	t.Parallel()
	s := setup(t)
	_, err := s.Register(t.Context(), registration(newToken(t, s, ""), "db1"))
	require.NoError(t, err)
	token := newToken(t, s, "")
	_, err = s.Register(t.Context(), registration(token, "db1"))
	require.ErrorIs(t, err, authsvc.ErrNameTaken)
	_, err = s.Register(t.Context(), registration(token, "db2"))
	require.NoError(t, err, "the token is still there")
	collectors, revocations, err := s.Directory(t.Context(), now)
	require.NoError(t, err)
	require.Len(t, collectors, 2)
	require.Empty(t, revocations)
}

func TestRegisterAtOnceWithOneTokenEnrolsOne(t *testing.T) {
	t.Parallel()
	s := setup(t)
	token := newToken(t, s, "")
	var wg sync.WaitGroup
	errs := make([]error, 20)
	for i := range errs {
		wg.Go(func() { _, errs[i] = s.Register(t.Context(), registration(token, uuid.NewString())) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
			continue
		}
		require.ErrorIs(t, err, authsvc.ErrEnrollmentRefused)
	}
	require.Equal(t, 1, won)
}

func TestRenewWithAnUnknownCertificateLocksNobody(t *testing.T) {
	t.Parallel()
	s := setup(t)
	r := registration(newToken(t, s, ""), "db1")
	_, err := s.Register(t.Context(), r)
	require.NoError(t, err)
	other := registration(newToken(t, s, ""), "db2")
	_, err = s.Register(t.Context(), other)
	require.NoError(t, err)
	renewal := authsvc.Renewal{CollectorID: r.CollectorID, Presented: other.Certificate, At: now, Certificate: newCertificate()}
	_, err = s.Renew(t.Context(), renewal)
	require.ErrorIs(t, err, authsvc.ErrCertificateUnknown, "another collector's certificate")
	renewal.Presented = r.Certificate
	done, err := s.Renew(t.Context(), renewal)
	require.NoError(t, err)
	require.Equal(t, 2, done.Collector.Generation)
	require.True(t, done.Collector.ChangedAt.After(now), "the record must be newer, although the clock stood still")
	renewal.CollectorID = uuid.New()
	_, err = s.Renew(t.Context(), renewal)
	require.ErrorIs(t, err, authsvc.ErrCertificateUnknown)
}

func TestOverlapEndsWhenTheNewestIsSeenInUse(t *testing.T) {
	t.Parallel()
	for name, used := range map[string]bool{"unused": false, "used": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := setup(t)
			r := registration(newToken(t, s, ""), "db1")
			_, err := s.Register(t.Context(), r)
			require.NoError(t, err)
			renewal := authsvc.Renewal{CollectorID: r.CollectorID, Presented: r.Certificate, At: now, Certificate: newCertificate()}
			_, err = s.Renew(t.Context(), renewal)
			require.NoError(t, err)
			if used {
				require.NoError(t, s.MarkUsed(t.Context(), map[string]time.Time{renewal.Certificate.Thumbprint: now}))
			}
			renewal.Certificate = newCertificate()
			done, err := s.Renew(t.Context(), renewal)
			require.NoError(t, err)
			require.Equal(t, used, done.Collector.Status == identity.Locked)
			require.Equal(t, used, len(done.DER) == 0)
		})
	}
}

func TestDatabaseThatIsAwayIsUnavailable(t *testing.T) {
	t.Parallel()
	s, err := pgstore.Open(t.Context(), "postgres://127.0.0.1:1/none?sslmode=disable&connect_timeout=1")
	require.NoError(t, err, "the service must start without its database")
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = s.EnrollmentToken(ctx, "x")
	require.Equal(t, fault.Unavailable, fault.ClassOf(err))
	_, err = s.Register(ctx, authsvc.Registration{})
	require.Equal(t, fault.Unavailable, fault.ClassOf(err))
	require.Equal(t, fault.Unavailable, fault.ClassOf(s.MarkUsed(ctx, map[string]time.Time{"x": now})))
}

func TestRenewAtOnceWithOneKeyIsOneRenewal(t *testing.T) {
	t.Parallel()
	s := setup(t)
	for range 5 {
		r := registration(newToken(t, s, ""), uuid.NewString())
		_, err := s.Register(t.Context(), r)
		require.NoError(t, err)
		same := newCertificate()
		var wg sync.WaitGroup
		results, errs := make([]authsvc.Renewed, 8), make([]error, 8)
		for i := range results {
			wg.Go(func() {
				own := newCertificate() // each request is signed anew
				own.KeyHash = same.KeyHash
				results[i], errs[i] = s.Renew(t.Context(), authsvc.Renewal{
					CollectorID: r.CollectorID, Presented: r.Certificate, At: now, Certificate: own,
				})
			})
		}
		wg.Wait()
		for i := range results {
			require.NoError(t, errs[i])
			require.Equal(t, results[0].DER, results[i].DER)
			require.Equal(t, 2, results[i].Collector.Generation)
		}
	}
}
