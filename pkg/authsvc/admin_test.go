package authsvc_test

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/identity"
	"pganalytics/pkg/identity/ca"
	"pganalytics/pkg/internal/testdb"
)

// as returns the Authorization of a user of that role, who needs no login.
func (s *stack) as(role identity.Role) string {
	s.t.Helper()
	id := uuid.New()
	key, value, err := identity.User{ID: id, Active: true, Generation: 1, ChangedAt: s.clock.now()}.Record()
	require.NoError(s.t, err)
	require.NoError(s.t, s.bus.IdentityBucket().Put(s.t.Context(), key, value))
	token, _, err := s.service.Signer.UserToken(identity.Session{
		ID: uuid.New(), UserID: id, Username: role.String(), Role: role, Generation: 1,
	})
	require.NoError(s.t, err)
	s.eventually(func() bool { _, err := s.verifier.VerifyUser("Bearer " + token); return err == nil }, "user is known")
	return "Bearer " + token
}

// ask calls a route of the user listener as JSON into v.
func (s *stack) ask(authorization, method, path, body string, v any) int {
	s.t.Helper()
	a := s.call(s.client(), method, s.users.URL()+"/api/v1/"+path, authorization, body)
	if v != nil {
		require.NoError(s.t, json.Unmarshal([]byte(a.raw), v), a.raw)
	}
	return a.status
}

type listAnswer struct {
	Data       []map[string]any `json:"data"`
	Total      int              `json:"total"`
	Page       int              `json:"page"`
	PageSize   int              `json:"page_size"`
	TotalPages int              `json:"total_pages"`
}

func TestLockedCollectorIsUnlockedAndEnrolsAgainWithAllItsHistory(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	operator := s.as(identity.Operator)
	c := s.enrol("db1")
	path := "collectors/" + c.id.String()
	require.Equal(t, http.StatusConflict, s.ask(operator, http.MethodPost, path+"/unlock", "", nil), "it is not locked")
	key := newKey(t)
	second := keyPair(t, s.renew(c.cert, key).Certificate, key)
	require.Equal(t, http.StatusOK, s.token(second).status)
	require.Equal(t, "collector_locked", s.renew(c.cert, newKey(t)).Code)
	s.known(func(k identity.Collector) bool { return k.Status == identity.Locked }, c.id)
	var shown map[string]any
	require.Equal(t, http.StatusOK, s.ask(operator, http.MethodGet, path, "", &shown))
	require.Equal(t, "locked", shown["status"])
	require.Equal(t, http.StatusConflict, s.ask(operator, http.MethodPost, path+"/enable", "", nil), "only an unlock ends a lock")

	var unlocked struct {
		Collector       map[string]any `json:"collector"`
		EnrollmentToken struct {
			Token         string    `json:"token"`
			ExpiresAt     time.Time `json:"expires_at"`
			CAFingerprint string    `json:"ca_fingerprint"`
		} `json:"enrollment_token"`
	}
	require.Equal(t, http.StatusOK, s.ask(operator, http.MethodPost, path+"/unlock", `{"ttl_seconds":600}`, &unlocked))
	require.Equal(t, "registered", unlocked.Collector["status"])
	require.WithinDuration(t, s.clock.now().Add(10*time.Minute), unlocked.EnrollmentToken.ExpiresAt, time.Minute)
	require.Equal(t, ca.Fingerprint(s.authority.ServerCAs()[0]), unlocked.EnrollmentToken.CAFingerprint)
	s.eventually(func() bool { return s.token(second).Code == "certificate_revoked" }, "what it had is worth nothing")

	key = newKey(t)
	csr := newCSR(t, &x509.CertificateRequest{}, key)
	require.Equal(t, http.StatusForbidden, s.register(unlocked.EnrollmentToken.Token, registerBody("db2", csr)).status)
	a := s.register(unlocked.EnrollmentToken.Token, registerBody("db1", csr))
	require.Equal(t, http.StatusCreated, a.status, a.raw)
	require.Equal(t, c.id, a.CollectorID)
	third := keyPair(t, a.Certificate, key)
	s.eventually(func() bool { return s.token(third).status == http.StatusOK }, "enrolled again")
	require.Equal(t, http.StatusOK, s.renew(third, newKey(t)).status)
	require.NotContains(t, s.logs.String(), unlocked.EnrollmentToken.Token)
}

func TestDeletedCollectorIsGoneAndItsNameFree(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	operator := s.as(identity.Operator)
	c := s.enrol("db1")
	path := "collectors/" + c.id.String()
	require.Equal(t, http.StatusNoContent, s.ask(operator, http.MethodDelete, path, "", nil))
	for _, again := range []struct{ method, path string }{
		{http.MethodDelete, path}, {http.MethodGet, path}, {http.MethodPost, path + "/enable"}, {http.MethodPost, path + "/unlock"},
	} {
		require.Equal(t, http.StatusNotFound, s.ask(operator, again.method, again.path, "", nil), again)
	}
	s.eventually(func() bool { return s.token(c.cert).Code == "certificate_revoked" }, "revoked")
	require.NotEqual(t, c.id, s.enrol("db1").id)
	require.Equal(t, 2, query[int](s, `select count(*) from identity.collector`), "history stays")
}

func TestCollectorsAreListedInPagesAndByStatus(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	viewer, operator := s.as(identity.Viewer), s.as(identity.Operator)
	for i := range 5 {
		c := s.enrol(fmt.Sprintf("db%d", i))
		if i == 3 {
			require.Equal(t, http.StatusOK, s.ask(operator, http.MethodPost, "collectors/"+c.id.String()+"/disable", "", nil))
		}
	}
	var l listAnswer
	require.Equal(t, http.StatusOK, s.ask(viewer, http.MethodGet, "collectors?page=2&page_size=2", "", &l))
	require.Equal(t, []int{5, 2, 2, 3}, []int{l.Total, l.Page, l.PageSize, l.TotalPages})
	require.Equal(t, "db2", l.Data[0]["name"])
	require.Nil(t, l.Data[0]["last_seen"])
	require.Equal(t, http.StatusOK, s.ask(viewer, http.MethodGet, "collectors?status=disabled", "", &l))
	require.Equal(t, 1, l.Total)
	require.Equal(t, "db3", l.Data[0]["name"])
	require.Equal(t, http.StatusOK, s.ask(viewer, http.MethodGet, "collectors?name=db4", "", &l))
	require.Equal(t, 1, l.Total)
	for _, bad := range []string{"page=0", "page_size=201", "status=gone", "colour=red", "page=x"} {
		require.Equal(t, http.StatusBadRequest, s.ask(viewer, http.MethodGet, "collectors?"+bad, "", nil), bad)
	}
	require.Equal(t, http.StatusBadRequest, s.ask(viewer, http.MethodGet, "collectors/not-a-uuid", "", nil))
}

func TestEnrolmentTokensAreMadeShownWithoutTheirSecretAndRevoked(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	operator := s.as(identity.Operator)
	var made struct{ ID, Token string }
	require.Equal(t, http.StatusCreated, s.ask(operator, http.MethodPost, "enrollment-tokens", `{"names":["a","b"],"cidr":"127.0.0.0/8","ttl_seconds":600}`, &made))
	csr := newCSR(t, &x509.CertificateRequest{}, newKey(t))
	require.Equal(t, http.StatusForbidden, s.register(made.Token, registerBody("c", csr)).status, "not on the list")
	require.Equal(t, http.StatusCreated, s.register(made.Token, registerBody("a", csr)).status)
	require.Equal(t, http.StatusUnauthorized, s.register(made.Token, registerBody("a", newCSR(t, &x509.CertificateRequest{}, newKey(t)))).status)

	var l listAnswer
	require.Equal(t, http.StatusOK, s.ask(operator, http.MethodGet, "enrollment-tokens", "", &l))
	require.Equal(t, 1, l.Total)
	require.Equal(t, "usable", l.Data[0]["status"])
	require.Equal(t, "127.0.0.0/8", l.Data[0]["cidr"])
	require.Equal(t, []any{"a"}, l.Data[0]["used_names"])
	raw, err := json.Marshal(l)
	require.NoError(t, err)
	require.NotContains(t, string(raw), made.Token[len(made.Token)-64:])

	require.Equal(t, http.StatusNoContent, s.ask(operator, http.MethodDelete, "enrollment-tokens/"+made.ID, "", nil))
	require.Equal(t, http.StatusNotFound, s.ask(operator, http.MethodDelete, "enrollment-tokens/nobody", "", nil))
	require.Equal(t, http.StatusUnauthorized, s.register(made.Token, registerBody("b", csr)).status)

	require.Equal(t, http.StatusCreated, s.ask(operator, http.MethodPost, "enrollment-tokens", `{"cidr":"10.0.0.0/8"}`, &made))
	require.Equal(t, "enrollment_token_invalid", s.register(made.Token, registerBody("x", csr)).Code, "from elsewhere")

	for _, bad := range []string{
		`{"name":"a","names":["b"]}`, `{"names":["b","b"]}`, `{"names":[""]}`, `{"name":"a\n"}`, `{"cidr":"10.0.0.1/8"}`, `{"cidr":"all"}`,
		`{"ttl_seconds":0}`, `{"ttl_seconds":604801}`, `{"role":"admin"}`, `{"name":"a","name":"b"}`, `[]`, `{"names":"a"}`, ``,
		fmt.Sprintf(`{"names":["a"],"collector_id":%q}`, uuid.New()),
	} {
		require.Equal(t, http.StatusBadRequest, s.ask(operator, http.MethodPost, "enrollment-tokens", bad, nil), bad)
	}
	require.Equal(t, http.StatusNotFound, s.ask(operator, http.MethodPost, "enrollment-tokens", fmt.Sprintf(`{"collector_id":%q}`, uuid.New()), nil))
}

// The collector sent the request, the answer got lost, and all it has is token and key.
func TestLostEnrolmentAnswerIsRepeatedToTheHolderOfTheKey(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	token, key := s.enrolmentToken(authsvc.EnrollmentRequest{}), newKey(t)
	first := s.register(token, registerBody("db1", newCSR(t, &x509.CertificateRequest{}, key)))
	require.Equal(t, http.StatusCreated, first.status)
	again := s.register(token, registerBody("db1", newCSR(t, &x509.CertificateRequest{}, key)))
	require.Equal(t, http.StatusCreated, again.status, again.raw)
	require.Equal(t, first.CollectorID, again.CollectorID)
	require.Equal(t, first.Certificate, again.Certificate)
	require.Equal(t, 1, query[int](s, `select count(*) from identity.certificate`))

	a := s.register(token, registerBody("db1", newCSR(t, &x509.CertificateRequest{}, newKey(t))))
	require.Equal(t, "enrollment_token_invalid", a.Code, "another key: the token is used")
	cert := keyPair(t, again.Certificate, key)
	s.eventually(func() bool { return s.token(cert).status == http.StatusOK }, "the certificate is good")
	s.eventually(func() bool {
		return query[int](s, `select count(*) from identity.certificate where first_used_at is not null`) == 1
	}, "seen in use")
	a = s.register(token, registerBody("db1", newCSR(t, &x509.CertificateRequest{}, key)))
	require.Equal(t, "enrollment_token_invalid", a.Code, "it arrived; the token has done its work")
}

func TestCommittedChangeIsPublishedAfterACrashBetweenTheTwo(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	g := s.gateway()
	c := s.enrol("db1")
	token := s.token(c.cert).Token
	client := s.client(c.cert)
	s.eventually(func() bool {
		a, _, err := s.push(client, g, c.id, token)
		return err == nil && a.status == http.StatusAccepted
	}, "pushes")
	// What a process that died after the commit leaves behind.
	_, err := s.store.ChangeCollector(t.Context(), authsvc.Change{
		CollectorID: c.id, Operation: authsvc.Delete, By: authsvc.Act{Actor: "user:x", At: s.clock.now().UTC()},
	})
	require.NoError(t, err)
	require.NoError(t, s.service.Reconcile(t.Context()), "as at every start")
	s.eventually(func() bool {
		a, _, err := s.push(client, g, c.id, token)
		return err == nil && a.Code == "certificate_revoked"
	}, "published")
}

func TestRevocationWhileNATSIsAwayIsPublishedAsSoonAsItIsBack(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	g := s.gateway()
	operator := s.as(identity.Operator)
	c := s.enrol("db1")
	token := s.token(c.cert).Token
	client := s.client(c.cert)
	s.nats.Stop()
	require.Equal(t, http.StatusOK, s.ask(operator, http.MethodPost, "collectors/"+c.id.String()+"/disable", "", nil), "the database has it")
	s.nats.Restart()
	require.Eventually(t, func() bool {
		a, _, err := s.push(client, g, c.id, token)
		return err == nil && a.Code == "collector_disabled"
	}, 10*time.Second, 10*time.Millisecond)
}

// Two changes are published in the wrong order: the older must not stay.
func TestLatePublicationOfAnOlderRecordChangesNothing(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	c := s.enrol("db1")
	o, _ := s.snapshot.Observed()
	older := o.Collectors[c.id]
	require.Equal(t, http.StatusOK, s.ask(s.as(identity.Operator), http.MethodPost, "collectors/"+c.id.String()+"/disable", "", nil))
	key, _, err := older.Record()
	require.NoError(t, err)
	authsvc.Publish(s.service, t.Context(), older)
	stored, err := s.bus.IdentityBucket().Get(t.Context(), key)
	require.NoError(t, err)
	require.Contains(t, string(stored), `"disabled"`)
}
