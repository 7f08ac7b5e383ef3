package ca_test

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/identity/ca"
)

func issued(t *testing.T, a *ca.Authority) *x509.Certificate {
	t.Helper()
	request, err := ca.ParseRequest(newCSR(t, &x509.CertificateRequest{}, edKey(t)))
	require.NoError(t, err)
	cert, err := a.IssueCollector(uuid.New(), request)
	require.NoError(t, err)
	return cert
}

func TestReplacedCollectorCATrustsBothUntilItIsFinished(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, err := ca.Init(options(dir))
	require.NoError(t, err)
	old := a.CollectorCAs()[0]
	r := ca.Rotation{Dir: dir, Anchor: ca.CollectorAnchor, Now: time.Now()}

	require.ErrorContains(t, r.Switch(), "begin it first")
	require.NoError(t, r.Begin())
	require.NoError(t, r.Begin(), "may be repeated")
	require.NoError(t, a.Reload())
	require.Len(t, a.CollectorCAs(), 2)
	require.NoError(t, issued(t, a).CheckSignatureFrom(old), "the old one signs until the switch")
	require.ErrorContains(t, r.Finish(), "switch first")

	require.NoError(t, r.Switch())
	require.NoError(t, r.Switch(), "may be repeated")
	require.NoError(t, a.Reload())
	require.Len(t, a.CollectorCAs(), 2)
	next := a.CollectorCAs()[0]
	require.False(t, next.Equal(old))
	require.Equal(t, old.URIs, next.URIs)
	require.NoError(t, issued(t, a).CheckSignatureFrom(next))
	require.ErrorContains(t, r.Begin(), "not finished")

	require.ErrorIs(t, r.Finish(), ca.ErrTooEarly, "certificates of the old one are in use")
	r.Now = time.Now().Add(38 * 24 * time.Hour)
	require.NoError(t, r.Finish())
	require.NoError(t, r.Finish(), "may be repeated")
	require.NoError(t, a.Reload())
	require.Equal(t, []*x509.Certificate{next}, a.CollectorCAs())
	_, err = ca.Init(options(dir))
	require.NoError(t, err, "the directory is whole")
}

// Each step is stopped right after its first file; the authority must open, and the step go on.
func TestReplacementStoppedHalfWayGoesOn(t *testing.T) {
	t.Parallel()
	for _, anchor := range []ca.Anchor{ca.CollectorAnchor, ca.ServerAnchor, ca.RootAnchor} {
		key := map[ca.Anchor]string{ca.CollectorAnchor: "collector-ca", ca.ServerAnchor: "server-ca", ca.RootAnchor: "root"}[anchor]
		t.Run(anchor.String(), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			a, err := ca.Init(options(dir))
			require.NoError(t, err)
			r := ca.Rotation{Dir: dir, Anchor: anchor, Now: time.Now(), Force: true}
			require.NoError(t, r.Begin())
			require.NoError(t, os.Rename(filepath.Join(dir, key+"-next.key"), filepath.Join(dir, key+".key")))
			require.NoError(t, a.Reload(), "half-way")
			require.NoError(t, r.Switch())
			require.NoError(t, r.Finish())
			require.NoError(t, a.Reload())
		})
	}
}

func TestReplacedServerCAIssuesTheListenersCertificateAnew(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, err := ca.Init(options(dir))
	require.NoError(t, err)
	r := ca.Rotation{Dir: dir, Anchor: ca.ServerAnchor, Now: time.Now()}
	require.NoError(t, r.Begin())
	require.ErrorIs(t, r.Switch(), ca.ErrTooEarly, "collectors have not learnt of it")
	r.Force = true
	require.NoError(t, r.Switch())
	require.NoError(t, a.Reload())
	certs, err := os.ReadFile(filepath.Join(dir, ca.ServerCertFile))
	require.NoError(t, err)
	block, _ := pem.Decode(certs)
	leaf, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	require.NoError(t, leaf.CheckSignatureFrom(a.ServerCAs()[0]))
	require.Error(t, leaf.CheckSignatureFrom(a.ServerCAs()[1]))
}

func TestReplacedRootVouchesForANewSigningKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, err := ca.Init(options(dir))
	require.NoError(t, err)
	old := a.Roots()
	r := ca.Rotation{Dir: dir, Anchor: ca.RootAnchor, Now: time.Now()}
	require.NoError(t, r.Begin())
	require.NoError(t, r.Switch())
	require.NoError(t, a.Reload())
	_, record := a.SigningKey()
	require.NoError(t, record.Verify(a.Roots()))
	require.Error(t, record.Verify(old))
	require.ErrorIs(t, r.Finish(), ca.ErrTooEarly, "tokens of the old key are in use")
	r.Now = r.Now.Add(26 * time.Hour)
	require.NoError(t, r.Finish())
	require.NoError(t, a.Reload())
	require.Len(t, a.Roots(), 1)
	require.NoError(t, record.Verify([]ed25519.PublicKey{a.Roots()[0]}))
}

func TestSigningKeyIsReplacedOnDemandAndTheOldOneRevokedOnlyThen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, err := ca.Init(options(dir))
	require.NoError(t, err)
	_, first := a.SigningKey()
	second, err := ca.RotateSigningKey(dir, false, time.Now())
	require.NoError(t, err)
	require.NoError(t, a.Reload())
	_, record := a.SigningKey()
	require.Equal(t, second.KID, record.KID)
	require.NotEqual(t, first.KID, record.KID)
	require.Empty(t, a.RevokedKeys())

	_, err = ca.RotateSigningKey(dir, true, time.Now())
	require.NoError(t, err)
	require.NoError(t, a.Reload())
	require.Len(t, a.RevokedKeys(), 1)
	require.Equal(t, second.KID, a.RevokedKeys()[0].KID)

	require.NoError(t, os.Remove(filepath.Join(dir, "root.key")))
	_, err = ca.RotateSigningKey(dir, false, time.Now())
	require.ErrorIs(t, err, fs.ErrNotExist, "without the root key nobody vouches")
}

func TestReloadKeepsWhatWasThereWhenTheFilesDoNotFit(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, err := ca.Init(options(dir))
	require.NoError(t, err)
	before := a.CollectorCAs()
	require.NoError(t, os.WriteFile(filepath.Join(dir, ca.CollectorCAFile), []byte("half a fi"), 0o600))
	require.Error(t, a.Reload())
	require.Equal(t, before, a.CollectorCAs())
	issued(t, a)
}

func TestInspectShowsEveryAnchorAndNoKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, err := ca.Init(options(dir))
	require.NoError(t, err)
	require.NoError(t, ca.Rotation{Dir: dir, Anchor: ca.CollectorAnchor, Now: time.Now()}.Begin())
	o, err := ca.Inspect(dir)
	require.NoError(t, err)
	var states []string
	for _, s := range o.Anchors {
		states = append(states, s.Anchor+" "+s.State)
	}
	require.Equal(t, []string{"collector signs", "collector next", "server signs", "root signs"}, states)
	require.Equal(t, ca.Fingerprint(a.CollectorCAs()[0]), o.Anchors[0].Fingerprint)
}
