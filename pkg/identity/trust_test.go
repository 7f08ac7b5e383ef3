package identity_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/identity"
	"pganalytics/pkg/identity/ca"
)

// rotate does one step and reads the directory again.
func (b *bundle) rotate(t *testing.T, anchor ca.Anchor, step func(ca.Rotation) error) {
	t.Helper()
	require.NoError(t, step(ca.Rotation{Dir: b.authority.Dir(), Anchor: anchor, Now: time.Now(), Force: true}))
	require.NoError(t, b.authority.Reload())
}

func TestEndOfTrustInACollectorCAEndsOpenConnections(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.NoError(t, b.verify())
	b.rotate(t, ca.CollectorAnchor, ca.Rotation.Begin)
	b.rotate(t, ca.CollectorAnchor, ca.Rotation.Switch)
	require.NoError(t, b.verifier.TrustCollectorCAs(b.authority.CollectorCAs()))
	require.NoError(t, b.verify(), "both are trusted")
	fresh := issue(t, b.authority, b.id)
	token, _, err := b.signer.CollectorToken(b.id, "db1", fresh.Leaf)
	require.NoError(t, err)
	_, err = b.verifier.VerifyCollector(connect(t, fresh), "Bearer "+token)
	require.NoError(t, err)

	b.rotate(t, ca.CollectorAnchor, ca.Rotation.Finish)
	require.Error(t, b.verifier.TrustCollectorCAs(nil), "nobody is locked out by an empty file")
	require.NoError(t, b.verify())
	require.NoError(t, b.verifier.TrustCollectorCAs(b.authority.CollectorCAs()))
	requireFault(t, b.verify(), fault.Unauthenticated, "certificate_invalid")
	_, err = b.verifier.VerifyCollector(connect(t, fresh), "Bearer "+token)
	require.NoError(t, err)
}

// The bucket may bring a key before the file brings the root that vouches for it.
func TestKeyOfALaterRootIsBelievedOnceTheRootIs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.rotate(t, ca.RootAnchor, ca.Rotation.Begin)
	b.rotate(t, ca.RootAnchor, ca.Rotation.Switch)
	key, record := b.authority.SigningKey()
	k, value, err := identity.KeyRecord(record)
	require.NoError(t, err)
	require.Error(t, b.snapshot.Apply(k, value), "the new root is not trusted yet")
	require.NoError(t, b.signer.Use(key, record))
	old := b.token
	b.token, _, err = b.signer.CollectorToken(b.id, "db1", b.cert.Leaf)
	require.NoError(t, err)
	requireFault(t, b.verify(), fault.Unauthenticated, "token_invalid")

	require.NoError(t, b.snapshot.TrustRoots(b.authority.Roots()))
	require.NoError(t, b.verify())
	b.rotate(t, ca.RootAnchor, ca.Rotation.Finish)
	require.NoError(t, b.snapshot.TrustRoots(b.authority.Roots()))
	require.NoError(t, b.verify())
	b.token = old
	requireFault(t, b.verify(), fault.Unauthenticated, "token_invalid")
}

func TestTokenOfARevokedSigningKeyIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, record := b.authority.SigningKey()
	thumbprint, err := ca.KeyFingerprint(record.KID)
	require.NoError(t, err)
	b.put(t, identity.Revocation{Thumbprint: thumbprint, NotAfter: record.NotAfter, RevokedAt: b.clock.now()})
	requireFault(t, b.verify(), fault.Unauthenticated, "token_invalid")
	b.putKey(t, record)
	requireFault(t, b.verify(), fault.Unauthenticated, "token_invalid")
}

func TestObservedTellsWhatANewBucketForgot(t *testing.T) {
	t.Parallel()
	b := setup(t)
	revocation := identity.Revocation{Thumbprint: ca.Fingerprint(b.cert.Leaf), CollectorID: b.id}
	b.put(t, revocation)
	b.put(t, b.collector(identity.Disabled))
	b.snapshot.Begin()
	b.snapshot.Complete()
	o, ok := b.snapshot.Observed()
	require.True(t, ok)
	require.Len(t, o.Lost.Revoked, 1)
	require.Equal(t, identity.Disabled, o.Lost.Collectors[0].Status)
	b.put(t, revocation)
	b.put(t, b.collector(identity.Registered)) // newer
	o, _ = b.snapshot.Observed()
	require.Empty(t, o.Lost.Revoked)
	require.Empty(t, o.Lost.Collectors)
}
