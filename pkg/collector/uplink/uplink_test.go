package uplink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pganalytics/pkg/collector/internal/farend"
	"pganalytics/pkg/collector/spool"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func bodies(b *farend.Backend) []string {
	var s []string
	for _, p := range b.Seen().Pushes {
		s = append(s, p.Body)
	}
	return s
}

func enrollment(t *testing.T, b *farend.Backend) Enrollment {
	t.Helper()
	return Enrollment{
		URL: b.URL, CAFingerprint: b.Servers.Fingerprint(), Token: "pge_1_secret", Name: "c1", Hostname: "h1",
		Version: "v1", StateDir: filepath.Join(t.TempDir(), "state"),
	}
}

// collector is an enrolled one with a spool.
type collector struct {
	client *Client
	spool  *spool.Spool
	dir    string
	pusher *Pusher
}

func enrolled(t *testing.T, b *farend.Backend) *collector {
	t.Helper()
	e := enrollment(t, b)
	id, err := Enroll(t.Context(), e)
	require.NoError(t, err)
	c := &collector{dir: e.StateDir, client: NewClient(id, e.StateDir, prometheus.NewRegistry())}
	t.Cleanup(c.client.Close)
	log := slog.New(slog.DiscardHandler)
	c.spool, err = spool.Open(spool.Config{Dir: filepath.Join(e.StateDir, "spool")}, log, prometheus.NewRegistry())
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.spool.Close() })
	c.pusher = NewPusher(PusherConfig{MinBackoff: time.Millisecond, MaxBackoff: 20 * time.Millisecond, Grace: 10 * time.Second}, c.client, c.spool, log)
	return c
}

func (c *collector) put(t *testing.T, bodies ...string) {
	t.Helper()
	for _, body := range bodies {
		_, err := c.spool.Append(func(spool.Stamp) ([]byte, error) { return []byte(body), nil })
		require.NoError(t, err)
	}
}

// push runs the pusher until the spool is empty.
func (c *collector) push(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.pusher.Run(ctx) }()
	require.Eventually(t, func() bool { return c.spool.Stats().Unsent == 0 }, 10*time.Second, time.Millisecond)
	cancel()
	require.NoError(t, <-done)
}

func (c *collector) pushes(r result) float64 {
	return testutil.ToFloat64(c.client.metrics.pushes.WithLabelValues(string(r)))
}

func TestAcceptedBatchesAreSentOnceInOrderAndJournalled(t *testing.T) {
	t.Parallel()
	b := farend.New(t, nil, farend.OK)
	c := enrolled(t, b)
	c.put(t, "one", "two", "three")
	c.push(t)
	require.Equal(t, []string{"one", "two", "three"}, bodies(b))
	accepted, err := spool.ReadAccepted(filepath.Join(c.dir, "spool"))
	require.NoError(t, err)
	require.Len(t, accepted, 3)
	require.Equal(t, 3, accepted[0].Rows)
	require.Equal(t, 1, b.Seen().Tokens, "one token serves all")
}

func TestWhatIsNotABatchsFaultHoldsItUnchanged(t *testing.T) {
	t.Parallel()
	for name, held := range map[string]farend.Answer{
		"unavailable":       farend.Refusal(http.StatusServiceUnavailable, "unavailable"),
		"forbidden":         farend.Refusal(http.StatusForbidden, "forbidden"),
		"throttled":         farend.Refusal(http.StatusTooManyRequests, "throttled"),
		"clock_skew":        farend.Refusal(http.StatusUnprocessableEntity, "clock_skew"),
		"not_the_gateway":   {Status: http.StatusBadRequest, Body: "<html>proxy</html>"},
		"not_found":         farend.Refusal(http.StatusNotFound, "not_found"),
		"unsupported_media": farend.Refusal(http.StatusUnsupportedMediaType, "unsupported_media_type"),
		"internal":          {Status: http.StatusInternalServerError},
		"strange_success":   {Status: http.StatusOK, Body: farend.OK.Body},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := farend.New(t, nil, held, held, farend.OK)
			c := enrolled(t, b)
			c.put(t, "one", "two")
			c.push(t)
			require.Equal(t, []string{"one", "one", "one", "two"}, bodies(b))
			require.InDelta(t, 2, c.pushes(accepted), 0)
			require.Zero(t, c.spool.Stats().DeadBytes)
		})
	}
}

func TestAFinalRefusalGoesToTheDeadLettersAndTheRestGoesOn(t *testing.T) {
	t.Parallel()
	for status, code := range map[int]string{400: "invalid_json", 413: "batch_too_large", 422: "range_too_large"} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			b := farend.New(t, nil, farend.Refusal(status, code), farend.OK)
			c := enrolled(t, b)
			c.put(t, "one", "two")
			c.push(t)
			require.Equal(t, []string{"one", "two"}, bodies(b))
			require.InDelta(t, 1, c.pushes(refused), 0)
			require.Positive(t, c.spool.Stats().DeadBytes)
			stamp, err := c.spool.Append(func(spool.Stamp) ([]byte, error) { return []byte("three"), nil })
			require.NoError(t, err)
			require.Equal(t, []uint64{1}, stamp.Refused)
		})
	}
}

func TestAStaleTokenIsReplacedOnceAndAtOnce(t *testing.T) {
	t.Parallel()
	b := farend.New(t, nil, farend.Refusal(http.StatusUnauthorized, "token_expired"), farend.OK)
	c := enrolled(t, b)
	c.put(t, "one")
	c.push(t)
	pushes := b.Seen().Pushes
	require.Equal(t, []string{"token-1", "token-2"}, []string{pushes[0].Token, pushes[1].Token})
	require.InDelta(t, 0, c.pushes(unauthenticated), 0)

	b2 := farend.New(t, nil, farend.Refusal(http.StatusUnauthorized, "x"), farend.Refusal(http.StatusUnauthorized, "x"), farend.OK)
	c2 := enrolled(t, b2)
	c2.put(t, "one")
	c2.push(t)
	require.InDelta(t, 1, c2.pushes(unauthenticated), 0, "a second refusal in a row holds")
	require.Equal(t, []string{"one", "one", "one"}, bodies(b2))
}

func TestRetryAfterIsHonoured(t *testing.T) {
	t.Parallel()
	b := farend.New(t, nil, farend.Refusal(http.StatusTooManyRequests, "throttled", "Retry-After", "1"), farend.OK)
	c := enrolled(t, b)
	c.put(t, "one")
	began := time.Now()
	c.push(t)
	require.GreaterOrEqual(t, time.Since(began), time.Second)
}

func TestAnUnknownOutcomeIsSentAgainAndADuplicateIsASuccess(t *testing.T) {
	t.Parallel()
	dup := farend.OK
	dup.Body = `{"status":"accepted","rows_accepted":3,"duplicate":true,"rejected":[]}`
	b := farend.New(t, nil, dup)
	c := enrolled(t, b)
	c.put(t, "one")
	c.push(t)
	accepted, err := spool.ReadAccepted(filepath.Join(c.dir, "spool"))
	require.NoError(t, err)
	require.True(t, accepted[0].Duplicate)
	require.InDelta(t, 1, c.pushes(duplicate), 0)
}

func TestABackendThatIsAwayIsRiddenOut(t *testing.T) {
	t.Parallel()
	b := farend.New(t, nil, farend.OK)
	c := enrolled(t, b)
	id := c.client.id.clone()
	id.CollectorURL = "https://127.0.0.1:1"
	c.client.use(id)
	c.put(t, "one")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.pusher.Run(ctx) }()
	require.Eventually(t, func() bool { return c.pushes(network) > 3 }, 10*time.Second, time.Millisecond)
	back := id.clone()
	back.CollectorURL = b.URL
	c.client.mu.Lock()
	c.client.use(back)
	c.client.mu.Unlock()
	require.Eventually(t, func() bool { return c.spool.Stats().Unsent == 0 }, 10*time.Second, time.Millisecond)
	cancel()
	require.NoError(t, <-done)
}

func TestStoppingSendsWhatIsSpooledAndKeepsWhatItCannot(t *testing.T) {
	t.Parallel()
	b := farend.New(t, nil, farend.OK)
	c := enrolled(t, b)
	c.put(t, "one", "two")
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, c.pusher.Run(stopped))
	require.Zero(t, c.spool.Stats().Unsent)

	away := farend.New(t, nil, farend.Refusal(http.StatusServiceUnavailable, "unavailable"))
	c2 := enrolled(t, away)
	c2.pusher.cfg.Grace = 100 * time.Millisecond
	c2.put(t, "one", "two")
	require.NoError(t, c2.pusher.Run(stopped))
	require.Equal(t, 2, c2.spool.Stats().Unsent)
	require.NotEmpty(t, bodies(away))
}

func TestRenewalReplacesKeyAndCertificateAtOnce(t *testing.T) {
	t.Parallel()
	b := farend.New(t, nil, farend.OK)
	c := enrolled(t, b)
	c.put(t, "one")
	c.push(t)
	before := c.client.id
	require.NoError(t, c.client.Renew(t.Context()))
	after, err := LoadIdentity(c.dir)
	require.NoError(t, err)
	require.NotEqual(t, before.Certificate.Leaf.PublicKey, after.Certificate.Leaf.PublicKey)
	require.Equal(t, before.CollectorID, after.CollectorID)
	require.Empty(t, after.nextKey)
	c.put(t, "two")
	c.push(t)
	require.Equal(t, after.Certificate.Leaf.SerialNumber.String(), b.Seen().Pushes[1].Serial, "the new certificate is used")
	require.Equal(t, "token-2", b.Seen().Pushes[1].Token, "with a token of its own")
}

// The backend takes a third key for a copied identity and locks the collector.
func TestALostRenewalIsRepeatedWithTheSameKey(t *testing.T) {
	t.Parallel()
	b := farend.New(t, nil, farend.OK)
	b.LoseRenewals(3)
	c := enrolled(t, b)
	require.Error(t, c.client.Renew(t.Context()))
	require.Error(t, c.client.Renew(t.Context()))
	id, err := LoadIdentity(c.dir) // the process ended meanwhile
	require.NoError(t, err)
	again := NewClient(id, c.dir, prometheus.NewRegistry())
	defer again.Close()
	for again.Renew(t.Context()) != nil && t.Context().Err() == nil && len(b.Seen().Renewals) < 10 {
		continue
	}
	require.Len(t, keysOf(t, b.Seen().Renewals), 1)
	require.GreaterOrEqual(t, len(b.Seen().Renewals), 4)
}

// keysOf returns the different keys of the signing requests.
func keysOf(t *testing.T, csrs []string) map[string]bool {
	t.Helper()
	keys := map[string]bool{}
	for _, csr := range csrs {
		block, _ := pem.Decode([]byte(csr))
		request, err := x509.ParseCertificateRequest(block.Bytes)
		require.NoError(t, err)
		keys[string(request.RawSubjectPublicKeyInfo)] = true
	}
	return keys
}

func TestALostEnrolmentIsRepeatedWithTheSameKeyForThatTokenOnly(t *testing.T) {
	t.Parallel()
	b := farend.New(t, nil, farend.OK)
	b.LoseEnrolments(2)
	e := enrollment(t, b)
	_, err := Enroll(t.Context(), e)
	require.Error(t, err)
	info, err := os.Stat(filepath.Join(e.StateDir, enrollingName))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	kept, err := os.ReadFile(filepath.Join(e.StateDir, enrollingName))
	require.NoError(t, err)
	require.NotContains(t, string(kept), e.Token)
	for err = errors.New("not yet"); err != nil && len(b.Seen().Enrolments) < 10; {
		_, err = Enroll(t.Context(), e)
	}
	require.NoError(t, err)
	require.Len(t, keysOf(t, b.Seen().Enrolled), 1)
	require.GreaterOrEqual(t, len(b.Seen().Enrolled), 3)

	b.LoseEnrolments(1)
	e.StateDir = t.TempDir()
	_, _ = Enroll(t.Context(), e)
	e.Token = "pge_2_other"
	_, err = Enroll(t.Context(), e)
	require.NoError(t, err)
	require.Greater(t, len(keysOf(t, b.Seen().Enrolled)), 2, "another token, another key")
}

func TestRenewalIsDueFromAThirdOfLifeOn(t *testing.T) {
	t.Parallel()
	start := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	id := &Identity{Certificate: tls.Certificate{Leaf: &x509.Certificate{NotBefore: start, NotAfter: start.Add(12 * time.Hour)}}}
	require.Equal(t, start.Add(4*time.Hour), id.renewAt(0))
	require.Equal(t, start.Add(5*time.Hour), id.renewAt(1))
}

func TestEnrollWritesAPrivateIdentityOnce(t *testing.T) {
	t.Parallel()
	b := farend.New(t, nil, farend.OK)
	e := enrollment(t, b)
	id, err := Enroll(t.Context(), e)
	require.NoError(t, err)
	require.Equal(t, b.ID, id.CollectorID)
	require.Equal(t, "Bearer pge_1_secret", b.Seen().Enrolments[0])
	info, err := os.Stat(filepath.Join(e.StateDir, identityName))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	_, err = Enroll(t.Context(), e)
	require.ErrorIs(t, err, ErrEnrolled)
	require.Len(t, b.Seen().Enrolments, 1, "the token is not spent")
	e.Force = true
	var retired *Identity
	e.Retire = func(old *Identity) error { retired = old; return nil }
	_, err = Enroll(t.Context(), e)
	require.NoError(t, err)
	require.Nil(t, retired, "the same collector, enrolled again, goes on with its spool")
	elsewhere := farend.New(t, nil, farend.OK)
	e.URL, e.CAFingerprint = elsewhere.URL, elsewhere.Servers.Fingerprint()
	_, err = Enroll(t.Context(), e)
	require.NoError(t, err)
	require.Equal(t, b.ID, retired.CollectorID)
	entries, err := os.ReadDir(e.StateDir)
	require.NoError(t, err)
	require.Len(t, entries, 1, "nothing but the identity is left")
}

func TestTheTokenGoesOnlyToAServerOfThePinnedCA(t *testing.T) {
	t.Parallel()
	b := farend.New(t, nil, farend.OK)
	e := enrollment(t, b)
	e.CAFingerprint = farend.NewAuthority(t).Fingerprint()
	_, err := Enroll(t.Context(), e)
	require.ErrorContains(t, err, "fingerprint")
	require.NotContains(t, err.Error(), e.Token)
	require.Empty(t, b.Seen().Enrolments)

	// It shows the right CA but does not belong to it.
	impostor := farend.New(t, b.Servers, farend.OK)
	e = enrollment(t, impostor)
	_, err = Enroll(t.Context(), e)
	require.Error(t, err)
	require.Empty(t, impostor.Seen().Enrolments)
}

func TestWhatIsEnrolledBelongsTogether(t *testing.T) {
	t.Parallel()
	b := farend.New(t, nil, farend.OK)
	e := enrollment(t, b)
	id, err := Enroll(t.Context(), e)
	require.NoError(t, err)
	foreign := id.clone()
	foreign.CollectorID = uuid.New()
	require.NoError(t, foreign.save(e.StateDir))
	_, err = LoadIdentity(e.StateDir)
	require.ErrorContains(t, err, "not that of collector")
}

func TestEnrollmentReportsAllFaults(t *testing.T) {
	t.Parallel()
	err := (&Enrollment{URL: "http://x", CAFingerprint: "sha256:zz"}).Validate()
	for _, want := range []string{"url", "ca-fingerprint", "token", "name", "state-dir"} {
		require.ErrorContains(t, err, want)
	}
}

func TestRetryAfterHasTwoForms(t *testing.T) {
	t.Parallel()
	now := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"3": 3 * time.Second, "": 0, "-1": 0, "x": 0,
		"Mon, 01 Jan 2024 00:00:07 GMT": 7 * time.Second, "Mon, 01 Jan 2023 00:00:07 GMT": 0,
		"999999999": 24 * time.Hour,
	} {
		require.Equal(t, want, retryAfter(text, now), text)
	}
}

func textLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, nil))
}
