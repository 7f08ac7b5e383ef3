package authsvc_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/identity"
	"pganalytics/pkg/internal/testdb"
)

const goodPassword = "a quiet lake 47 herons"

// session is what a login answered.
type session struct {
	status             int
	raw                string
	Token              string    `json:"token"`
	RefreshToken       string    `json:"refresh_token"`
	ExpiresAt          time.Time `json:"expires_at"`
	MustChangePassword bool      `json:"must_change_password"`
	Code               string    `json:"code"`
	User               userAnswer
}

type userAnswer struct {
	ID       string `json:"id"`
	Username string `json:"username"`
	Role     string `json:"role"`
	IsActive bool   `json:"is_active"`
}

func bodyOf(v any) string {
	raw, _ := json.Marshal(v)
	return string(raw)
}

// api calls a user route with an access token, or with none.
func (s *stack) api(method, path, token string, in any) answer {
	s.t.Helper()
	authorization, text := "", ""
	if token != "" {
		authorization = "Bearer " + token
	}
	if raw, ok := in.(string); ok {
		text = raw
	} else if in != nil {
		text = bodyOf(in)
	}
	return s.call(s.person(), method, s.users.URL()+"/api/v1/"+path, authorization, text)
}

// person is one client for all calls, so that a test has few connections.
func (s *stack) person() *http.Client {
	s.once.Do(func() { s.one = s.client() })
	return s.one
}

func sessionOf(t *testing.T, a answer) session {
	t.Helper()
	out := session{status: a.status, raw: a.raw}
	require.NoError(t, json.Unmarshal([]byte(a.raw), &out))
	return out
}

func (s *stack) login(username, password string) session {
	s.t.Helper()
	return sessionOf(s.t, s.api(http.MethodPost, "auth/login", "", map[string]string{"username": username, "password": password}))
}

func (s *stack) refresh(token string) session {
	s.t.Helper()
	return sessionOf(s.t, s.api(http.MethodPost, "auth/refresh", "", map[string]string{"refresh_token": token}))
}

func (s *stack) me(token string) answer {
	s.t.Helper()
	return s.api(http.MethodGet, "auth/me", token, nil)
}

// admin makes the first admin, with a password of its own, and logs in.
func (s *stack) admin() session {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "first")
	pending, err := s.service.FirstAdmin(s.t.Context(), file)
	require.NoError(s.t, err)
	require.True(s.t, pending)
	secret, err := os.ReadFile(file)
	require.NoError(s.t, err)
	var first session
	s.eventually(func() bool {
		first = s.login("admin", strings.TrimSpace(string(secret)))
		return first.status == http.StatusOK && s.me(first.Token).status == http.StatusOK
	}, "the first admin logs in")
	a := s.api(http.MethodPost, "auth/change-password", first.Token,
		map[string]string{"current_password": strings.TrimSpace(string(secret)), "new_password": goodPassword})
	require.Equal(s.t, http.StatusOK, a.status, a.raw)
	return sessionOf(s.t, a)
}

// user makes one with goodPassword and logs in.
func (s *stack) user(admin session, name, role string) session {
	s.t.Helper()
	a := s.api(http.MethodPost, "users", admin.Token, map[string]string{"username": name, "role": role, "password": goodPassword})
	require.Equal(s.t, http.StatusCreated, a.status, a.raw)
	in := s.login(name, goodPassword)
	require.Equal(s.t, http.StatusOK, in.status, in.raw)
	return in
}

func TestFirstAdminMustChangeThePasswordBeforeAnythingElse(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	file := filepath.Join(t.TempDir(), "first")
	pending, err := s.service.FirstAdmin(t.Context(), file)
	require.NoError(t, err)
	require.True(t, pending)
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	raw, err := os.ReadFile(file)
	require.NoError(t, err)
	secret := strings.TrimSpace(string(raw))
	again, err := s.service.FirstAdmin(t.Context(), file)
	require.NoError(t, err)
	require.True(t, again, "a second start changes nothing")

	in := s.login("admin", secret)
	require.Equal(t, http.StatusOK, in.status, in.raw)
	require.True(t, in.MustChangePassword)
	s.eventually(func() bool { return s.me(in.Token).status == http.StatusOK }, "known to verifiers")
	require.Equal(t, "password_change_required", s.api(http.MethodGet, "users", in.Token, nil).Code)
	refreshed := s.refresh(in.RefreshToken)
	require.Equal(t, http.StatusOK, refreshed.status)
	require.Equal(t, "password_change_required", s.api(http.MethodGet, "users", refreshed.Token, nil).Code)

	a := s.api(http.MethodPost, "auth/change-password", in.Token, map[string]string{"current_password": secret, "new_password": goodPassword})
	require.Equal(t, http.StatusOK, a.status, a.raw)
	changed := sessionOf(t, a)
	require.False(t, changed.MustChangePassword)
	require.Equal(t, http.StatusOK, s.api(http.MethodGet, "users", changed.Token, nil).status)
	// The old secret, session and refresh token are worth nothing.
	require.Equal(t, http.StatusUnauthorized, s.login("admin", secret).status)
	require.Equal(t, http.StatusUnauthorized, s.refresh(refreshed.RefreshToken).status)
	require.Equal(t, "token_revoked", s.me(in.Token).Code)
	pending, err = s.service.FirstAdmin(t.Context(), file)
	require.NoError(t, err)
	require.False(t, pending)
	require.NoFileExists(t, file)
	require.NotContains(t, s.logs.String(), secret)
}

func TestUserLifeFromCreationToDeletion(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	admin := s.admin()
	a := s.api(http.MethodPost, "users", admin.Token, map[string]any{
		"username": "anna", "email": "anna@example.com", "full_name": "Anna Å", "role": "viewer"})
	require.Equal(t, http.StatusCreated, a.status, a.raw)
	var made struct {
		ID                string `json:"id"`
		TemporaryPassword string `json:"temporary_password"`
	}
	require.NoError(t, json.Unmarshal([]byte(a.raw), &made))
	require.NotEmpty(t, made.TemporaryPassword)
	require.NotContains(t, a.raw, "password_hash")
	path := "users/" + made.ID

	in := s.login("Anna", made.TemporaryPassword) // names have no case
	require.True(t, in.MustChangePassword)
	a = s.api(http.MethodPost, "auth/change-password", in.Token, map[string]string{"current_password": made.TemporaryPassword, "new_password": goodPassword})
	in = sessionOf(t, a)
	require.Equal(t, http.StatusForbidden, s.api(http.MethodGet, "users", in.Token, nil).status)

	require.Equal(t, "username_taken", s.api(http.MethodPost, "users", admin.Token, map[string]any{"username": "anna", "role": "admin"}).Code)
	require.Equal(t, http.StatusOK, s.api(http.MethodGet, path, admin.Token, nil).status)
	require.Equal(t, http.StatusNotFound, s.api(http.MethodGet, "users/0b4fd81e-2f58-4dc5-8b0f-5b0a3f0e7a11", admin.Token, nil).status)

	// A new role ends access tokens, not the session.
	require.Equal(t, http.StatusOK, s.api(http.MethodPatch, path, admin.Token, map[string]any{"role": "admin"}).status)
	s.eventually(func() bool { return s.me(in.Token).Code == "token_revoked" }, "old role ended")
	in = s.refresh(in.RefreshToken)
	require.Equal(t, http.StatusOK, s.api(http.MethodGet, "users", in.Token, nil).status, in.raw)

	// Disabled: both end, and the right password is as good as a wrong one.
	require.Equal(t, http.StatusOK, s.api(http.MethodPatch, path, admin.Token, map[string]any{"is_active": false}).status)
	began := time.Now()
	s.eventually(func() bool { return s.me(in.Token).Code == "token_revoked" }, "disabled")
	require.Less(t, time.Since(began), 2*time.Second)
	require.Equal(t, http.StatusUnauthorized, s.refresh(in.RefreshToken).status)
	refused, wrong := s.login("anna", goodPassword), s.login("anna", "something else altogether")
	require.Equal(t, http.StatusUnauthorized, refused.status)
	require.Equal(t, wrong.Code, refused.Code)

	require.Equal(t, http.StatusOK, s.api(http.MethodPatch, path, admin.Token, map[string]any{"is_active": true}).status)
	in = s.login("anna", goodPassword)
	require.Equal(t, http.StatusOK, in.status)
	require.Equal(t, http.StatusOK, s.me(in.Token).status)

	a = s.api(http.MethodPost, path+"/reset-password", admin.Token, nil)
	require.Equal(t, http.StatusOK, a.status, a.raw)
	s.eventually(func() bool { return s.me(in.Token).Code == "token_revoked" }, "password reset")
	require.Equal(t, http.StatusUnauthorized, s.refresh(in.RefreshToken).status)
	require.NoError(t, json.Unmarshal([]byte(a.raw), &made))
	in = s.login("anna", made.TemporaryPassword)
	require.True(t, in.MustChangePassword)

	require.Equal(t, http.StatusNoContent, s.api(http.MethodDelete, path, admin.Token, nil).status)
	s.eventually(func() bool { return s.me(in.Token).Code == "token_revoked" }, "deleted")
	require.Equal(t, http.StatusNotFound, s.api(http.MethodGet, path, admin.Token, nil).status)
	require.Equal(t, http.StatusUnauthorized, s.login("anna", made.TemporaryPassword).status)
	// The name is free again, and it is another user.
	require.Equal(t, http.StatusOK, s.user(admin, "anna", "viewer").status)

	require.Equal(t, 1, query[int](s, `select count(*) from identity.audit where action = 'user.delete' and resource_id = $1
		and actor = $2 and source_ip is not null`, made.ID, "user:"+admin.User.ID))
	for _, secret := range []string{made.TemporaryPassword, goodPassword} {
		require.NotContains(t, s.logs.String(), secret)
		require.Zero(t, query[int](s, `select count(*) from identity.audit where changes::text like '%' || $1 || '%'`, secret))
	}
}

func TestLastAdminStays(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	admin := s.admin()
	me := "users/" + admin.User.ID
	require.Equal(t, "last_admin", s.api(http.MethodPatch, me, admin.Token, map[string]any{"is_active": false}).Code)
	require.Equal(t, "last_admin", s.api(http.MethodPatch, me, admin.Token, map[string]any{"role": "operator"}).Code)
	require.Equal(t, "last_admin", s.api(http.MethodDelete, me, admin.Token, nil).Code)
	other := s.user(admin, "bert", "admin")

	// Both at once take each other's role: one of them stays.
	var wg sync.WaitGroup
	for _, act := range [][2]string{{admin.Token, other.User.ID}, {other.Token, admin.User.ID}} {
		wg.Go(func() {
			_, err := s.tryCall(s.person(), http.MethodPatch, s.users.URL()+"/api/v1/users/"+act[1], "Bearer "+act[0], `{"role":"viewer"}`)
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.Equal(t, 1, query[int](s, `select count(*) from identity.app_user where role = 'admin' and is_active`))
}

func TestListsHavePagesAndFilters(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	admin := s.admin()
	for i := range 5 {
		a := s.api(http.MethodPost, "users", admin.Token, map[string]string{"username": fmt.Sprintf("u%d", i), "role": "viewer", "password": goodPassword})
		require.Equal(t, http.StatusCreated, a.status, a.raw)
	}
	var page struct {
		Data       []userAnswer `json:"data"`
		Total      int          `json:"total"`
		Page       int          `json:"page"`
		PageSize   int          `json:"page_size"`
		TotalPages int          `json:"total_pages"`
	}
	a := s.api(http.MethodGet, "users?role=viewer&page=2&page_size=2", admin.Token, nil)
	require.Equal(t, http.StatusOK, a.status, a.raw)
	require.NoError(t, json.Unmarshal([]byte(a.raw), &page))
	require.Equal(t, []string{"u2", "u3"}, []string{page.Data[0].Username, page.Data[1].Username})
	require.Equal(t, []int{5, 2, 2, 3}, []int{page.Total, page.Page, page.PageSize, page.TotalPages})
	a = s.api(http.MethodGet, "users?page=9", admin.Token, nil)
	require.Contains(t, a.raw, `"data":[]`)
	for _, bad := range []string{"page=0", "page_size=201", "page=x", "role=root", "unknown=1", "username=%00", "username=%ff"} {
		require.Equal(t, http.StatusBadRequest, s.api(http.MethodGet, "users?"+bad, admin.Token, nil).status, bad)
	}
	a = s.api(http.MethodGet, "audit?action=user.create&page_size=1&actor=user:"+admin.User.ID, admin.Token, nil)
	require.Equal(t, http.StatusOK, a.status, a.raw)
	require.Contains(t, a.raw, `"total":5,"page":1,"page_size":1,"total_pages":5`)
	require.Contains(t, a.raw, `"source_ip":"127.0.0.1"`)
	a = s.api(http.MethodGet, "audit?since=2100-01-01T00:00:00Z", admin.Token, nil)
	require.Contains(t, a.raw, `"total":0`)
}

func TestFaultyBodiesAreRefusedAndPasswordsNeverRepeated(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	admin := s.admin()
	viewer := s.user(admin, "vera", "viewer")
	const secret = "hunter2hunter2"
	for name, c := range map[string]struct{ method, path, token, body string }{
		"common":           {http.MethodPost, "users", admin.Token, `{"username":"x","role":"viewer","password":"Password1234!"}`},
		"short":            {http.MethodPost, "users", admin.Token, `{"username":"x","role":"viewer","password":"hunter2hunt"}`},
		"long":             {http.MethodPost, "users", admin.Token, `{"username":"x","role":"viewer","password":"` + strings.Repeat(secret, 6) + `"}`},
		"own name":         {http.MethodPost, "users", admin.Token, `{"username":"hunter2hunter","role":"viewer","password":"` + secret + `"}`},
		"role on password": {http.MethodPost, "auth/change-password", viewer.Token, `{"current_password":"` + goodPassword + `","new_password":"` + secret + `","role":"admin"}`},
		"role at login":    {http.MethodPost, "auth/login", "", `{"username":"vera","password":"` + secret + `","role":"admin"}`},
		"twice":            {http.MethodPost, "auth/login", "", `{"username":"vera","password":"` + secret + `","password":"` + secret + `"}`},
		"other type":       {http.MethodPost, "auth/login", "", `{"username":"vera","password":["` + secret + `"]}`},
		"id in patch":      {http.MethodPatch, "users/" + viewer.User.ID, admin.Token, `{"id":"` + admin.User.ID + `"}`},
		"username in patch": {http.MethodPatch, "users/" + viewer.User.ID, admin.Token,
			`{"username":"` + secret + `"}`},
		"hash in patch": {http.MethodPatch, "users/" + viewer.User.ID, admin.Token, `{"password_hash":"` + secret + `"}`},
		"unknown role":  {http.MethodPatch, "users/" + viewer.User.ID, admin.Token, `{"role":"root"}`},
		"SQL":           {http.MethodPost, "users", admin.Token, `{"username":"x'; drop table identity.app_user; --","role":"viewer"}`},
		"control":       {http.MethodPatch, "users/" + viewer.User.ID, admin.Token, `{"full_name":"a\u0000b"}`},
		"newline":       {http.MethodPatch, "users/" + viewer.User.ID, admin.Token, `{"email":"a@b.c\r\nBcc: d@e.f"}`},
		"bad id":        {http.MethodGet, "users/1%20or%201=1", admin.Token, ``},
		"unchanged":     {http.MethodPost, "auth/change-password", viewer.Token, `{"current_password":"` + goodPassword + `","new_password":"` + goodPassword + `"}`},
		"reset to common": {http.MethodPost, "users/" + viewer.User.ID + "/reset-password", admin.Token,
			`{"new_password":"qwertyuiop123"}`},
	} {
		t.Run(name, func(t *testing.T) {
			a := s.call(s.person(), c.method, s.users.URL()+"/api/v1/"+c.path, "Bearer "+c.token, c.body)
			require.Equal(t, http.StatusBadRequest, a.status, a.raw)
			require.NotContains(t, a.raw, "hunter2")
		})
	}
	require.NoError(t, s.service.FlushRefusals(t.Context()))
	require.NotContains(t, s.logs.String(), "hunter2")
	require.Zero(t, query[int](s, `select count(*) from identity.audit where (audit.*)::text like '%hunter2%'`))
	require.Equal(t, http.StatusOK, s.me(viewer.Token).status)
}

// People type passwords into the field of the name.
func TestRefusedLoginsAreFoldedAndTellNoUnknownName(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	admin := s.admin()
	before := time.Now()
	for range 3 {
		require.Equal(t, http.StatusUnauthorized, s.login("admin", "wrong wrong wrong wrong").status)
		require.Equal(t, http.StatusUnauthorized, s.login("hunter2hunter2", "wrong wrong wrong wrong").status)
	}
	require.Equal(t, http.StatusUnauthorized, s.refresh(admin.RefreshToken+"x").status)
	require.NoError(t, s.service.FlushRefusals(t.Context()))
	const folded = `select coalesce(sum((changes->>'count')::int), 0), count(*) from identity.audit
		where action = 'session.login' and result = 'refused' and resource_id = $1 and source_ip = '127.0.0.1'`
	for _, account := range []string{"user:" + admin.User.ID, "unknown"} {
		require.Equal(t, 3, query[int](s, `select n from (`+folded+`) as f (n, rows)`, account))
		rows := query[int](s, `select rows from (`+folded+`) as f (n, rows)`, account)
		require.LessOrEqual(t, rows, 1+int(time.Since(before)/time.Minute)+1)
	}
	require.Equal(t, 1, query[int](s, `select count(*) from identity.audit where action = 'session.refresh'`))
	require.Zero(t, query[int](s, `select count(*) from identity.audit where (audit.*)::text like '%hunter2%'`))
	require.NotContains(t, s.logs.String(), "hunter2")
}

func TestLogoutEndsAccessAndRefreshToken(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	admin := s.admin()
	other := s.login("admin", goodPassword)
	require.Equal(t, http.StatusNoContent, s.api(http.MethodPost, "auth/logout", admin.Token, nil).status)
	s.eventually(func() bool { return s.me(admin.Token).Code == "token_revoked" }, "ended")
	require.Equal(t, http.StatusUnauthorized, s.refresh(admin.RefreshToken).status)
	require.Equal(t, http.StatusOK, s.me(other.Token).status, "the other session goes on")
}

func TestApiTokenIsShownOnceScopedAndRevoked(t *testing.T) {
	t.Parallel()
	s := newStack(t, testdb.New(t))
	admin := s.admin()
	c := s.enrol("db1")
	a := s.api(http.MethodPost, "tokens", admin.Token, map[string]any{"name": "alloy", "scopes": []string{"read", "push:" + c.id.String()}})
	require.Equal(t, http.StatusCreated, a.status, a.raw)
	var made struct{ ID, Token string }
	require.NoError(t, json.Unmarshal([]byte(a.raw), &made))
	require.Contains(t, made.Token, "pga_"+made.ID+"_")
	require.NotContains(t, s.api(http.MethodGet, "tokens", admin.Token, nil).raw, made.Token)
	require.Zero(t, query[int](s, `select count(*) from identity.api_token where (api_token.*)::text like '%' || $1 || '%'`, made.Token))

	var who identity.Principal
	s.eventually(func() (ok bool) {
		var err error
		who, err = s.verifier.VerifyAPIToken("Bearer " + made.Token)
		return err == nil
	}, "known")
	require.Equal(t, c.id, who.CollectorID)
	require.True(t, who.Scopes.Read())
	s.service.APITokenUsed(made.ID, time.Now())
	s.eventually(func() bool {
		return query[int](s, `select count(*) from identity.api_token where last_used_at is not null`) == 1
	}, "last use recorded")

	last := "0"
	if strings.HasSuffix(made.Token, "0") {
		last = "1"
	}
	_, err := s.verifier.VerifyAPIToken("Bearer " + made.Token[:len(made.Token)-1] + last)
	require.Error(t, err)
	// Not a user: the routes of users are closed to it.
	require.Equal(t, http.StatusForbidden, s.api(http.MethodGet, "users", made.Token, nil).status)

	require.Equal(t, http.StatusNoContent, s.api(http.MethodDelete, "tokens/"+made.ID, admin.Token, nil).status)
	began := time.Now()
	s.eventually(func() bool { _, err := s.verifier.VerifyAPIToken("Bearer " + made.Token); return err != nil }, "revoked")
	require.Less(t, time.Since(began), 2*time.Second)
	require.Equal(t, http.StatusNotFound, s.api(http.MethodDelete, "tokens/0000", admin.Token, nil).status)
	for _, bad := range []string{`["read","read"]`, `["write"]`, `["push:x"]`, `[]`, `["push:*"]`} {
		require.Equal(t, http.StatusBadRequest, s.api(http.MethodPost, "tokens", admin.Token, `{"name":"x","scopes":`+bad+`}`).status, bad)
	}
	require.Equal(t, http.StatusNotFound, s.api(http.MethodPost, "tokens", admin.Token,
		`{"name":"x","scopes":["push:0b4fd81e-2f58-4dc5-8b0f-5b0a3f0e7a11"]}`).status)
}

// field returns a text member of an answer.
func field(t *testing.T, raw, name string) string {
	t.Helper()
	var members map[string]any
	require.NoError(t, json.Unmarshal([]byte(raw), &members))
	text, _ := members[name].(string)
	require.NotEmpty(t, text)
	return text
}
