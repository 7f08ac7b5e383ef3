package identity_test

import (
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/identity"
	"pganalytics/pkg/identity/ca"
)

func TestStaleSnapshotIsUnavailableAlsoForBadCredentials(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.clock.advance(14 * time.Minute)
	require.NoError(t, b.verify())
	require.NoError(t, b.verifier.Ready())
	b.clock.advance(2 * time.Minute)
	requireFault(t, b.verify(), fault.Unavailable, "identity_stale")
	requireFault(t, b.verifier.Ready(), fault.Unavailable, "identity_stale")
	_, err := b.verifier.VerifyCollector(b.state, "Bearer nonsense")
	requireFault(t, err, fault.Unavailable, "identity_stale")
	b.snapshot.Confirm(b.clock.now())
	require.NoError(t, b.verify())
}

func TestNothingIsDecidedBeforeTheFirstCompleteSnapshot(t *testing.T) {
	t.Parallel()
	b := setup(t)
	s, err := identity.NewSnapshot(b.authority.Roots(), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(t, err)
	b.snapshot = s
	b.verifier, err = identity.NewVerifier(identity.VerifierConfig{
		CollectorCAs: b.authority.CollectorCAs(), TrustDomain: trustDomain, Now: b.clock.now,
	}, s)
	require.NoError(t, err)
	notReady := func(step string) {
		t.Helper()
		s.Confirm(b.clock.now())
		require.ErrorContains(t, b.verify(), "identity_not_ready", step)
		_, err := b.verifier.VerifyCollector(b.state, "Bearer nonsense")
		requireFault(t, err, fault.Unavailable, "identity_not_ready")
	}
	notReady("nothing")
	s.Begin()
	notReady("begun")
	s.Complete()
	notReady("an empty bucket is not a complete one")
	_, record := b.authority.SigningKey()
	b.putKey(t, record)
	b.put(t, identity.Meta{Generation: 1, Collectors: 1, Keys: 1})
	notReady("a collector is missing")
	b.put(t, b.collector(identity.Registered))
	requireFault(t, b.verify(), fault.Unavailable, "identity_not_ready") // complete, never confirmed
	s.Confirm(b.clock.now())
	require.NoError(t, b.verify())
}

func TestEmptiedBucketTurnsNobodyAwayAndGrowsStale(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.put(t, identity.Meta{Generation: 5, Collectors: 1, Keys: 1})
	b.snapshot.Begin()
	b.snapshot.Complete()
	b.snapshot.Confirm(b.clock.now())
	require.NoError(t, b.verify())

	// An older backup of the bucket is not taken either: it may lack revocations.
	_, record := b.authority.SigningKey()
	b.putKey(t, record)
	b.put(t, b.collector(identity.Registered))
	b.put(t, identity.Meta{Generation: 4, Collectors: 1, Keys: 1})
	b.clock.advance(16 * time.Minute)
	b.snapshot.Confirm(b.clock.now())
	requireFault(t, b.verify(), fault.Unavailable, "identity_stale")

	b.put(t, identity.Meta{Generation: 6, Collectors: 1, Keys: 1})
	b.snapshot.Confirm(b.clock.now())
	fresh, _, err := b.signer.CollectorToken(b.id, "db1", b.cert.Leaf)
	require.NoError(t, err)
	_, err = b.verifier.VerifyCollector(b.state, "Bearer "+fresh)
	require.NoError(t, err)
}

func TestRefusalsDoNotWaitForANewBucketToBeComplete(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.snapshot.Begin()
	b.put(t, b.collector(identity.Disabled))
	requireFault(t, b.verify(), fault.Forbidden, "collector_disabled")
	b.put(t, identity.Revocation{Thumbprint: ca.Fingerprint(b.cert.Leaf), CollectorID: b.id})
	requireFault(t, b.verify(), fault.Unauthenticated, "certificate_revoked")
}

func TestOlderRecordInANewBucketDoesNotLetInWhomTheServedOneRefuses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	old := b.collector(identity.Registered)
	b.clock.advance(time.Second)
	b.put(t, b.collector(identity.Disabled))
	b.snapshot.Begin()
	b.put(t, old)
	requireFault(t, b.verify(), fault.Forbidden, "collector_disabled")
}

func TestSpoiltRecordsRefuseRatherThanLetIn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	key, _, err := b.collector(identity.Registered).Record()
	require.NoError(t, err)
	b.clock.advance(2 * time.Minute)
	for _, value := range []string{"", "null", "{}", "{", `{"id":"` + b.id.String() + `","status":"superuser"}`,
		`{"id":"00000000-0000-0000-0000-000000000001","status":"active"}`} {
		require.Error(t, b.snapshot.Apply(key, []byte(value)), value)
		requireFault(t, b.verify(), fault.Unauthenticated, "collector_unknown")
	}
	b.put(t, b.collector(identity.Registered))
	require.NoError(t, b.verify())

	// Of a revocation the key alone counts.
	key, _, err = identity.Revocation{Thumbprint: ca.Fingerprint(b.cert.Leaf)}.Record()
	require.NoError(t, err)
	require.NoError(t, b.snapshot.Apply(key, []byte("{")))
	requireFault(t, b.verify(), fault.Unauthenticated, "certificate_revoked")

	for key, value := range map[string]string{"revoked.xyz": "{}", "meta": "{}", "key.a": "{}", "key.b": "null"} {
		require.Error(t, b.snapshot.Apply(key, []byte(value)), key)
	}
	require.NoError(t, b.snapshot.Apply("unheard-of", []byte("x")), "left to newer versions")
}

func TestRemovedSigningKeyIsNoLongerBelieved(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, record := b.authority.SigningKey()
	b.snapshot.Remove("key." + record.KID)
	requireFault(t, b.verify(), fault.Unauthenticated, "token_invalid")
}

func TestObservedIsTheBucketAndNotWhatIsServed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	o, ok := b.snapshot.Observed()
	require.True(t, ok)
	require.Len(t, o.Collectors, 1)
	b.snapshot.Begin()
	_, ok = b.snapshot.Observed()
	require.False(t, ok, "what is not delivered yet must not count as missing")
	b.snapshot.Complete()
	o, ok = b.snapshot.Observed()
	require.True(t, ok)
	require.Empty(t, o.Collectors)
	require.Equal(t, int64(1), o.Served)
}

func FuzzSnapshotApply(f *testing.F) {
	b := setup(f)
	key, value, err := b.collector(identity.Registered).Record()
	require.NoError(f, err)
	f.Add(key, value)
	_, record := b.authority.SigningKey()
	key, value, err = identity.KeyRecord(record)
	require.NoError(f, err)
	f.Add(key, value)
	f.Add("meta", []byte(`{"generation":2,"collectors":0,"revoked":0,"keys":1}`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		err := b.snapshot.Apply(key, value)
		if err == nil && len(key) > 4 && key[:4] == "key." {
			require.Equal(t, "key."+record.KID, key, "took a signing key that the root never signed")
		}
		b.snapshot.Remove(key)
		b.putKey(t, record)
	})
}
