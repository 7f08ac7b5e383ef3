package identity_test

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/identity"
)

// person adds a user to the snapshot, and returns what a session of hers says.
func (b *bundle) person(tb testing.TB) identity.Session {
	tb.Helper()
	s := identity.Session{ID: uuid.New(), UserID: uuid.New(), Username: "anna", Email: "anna@example.com", Role: identity.Operator, Generation: 3}
	b.put(tb, identity.User{ID: s.UserID, Active: true, Generation: 3, ChangedAt: b.clock.now()})
	return s
}

func TestUserTokenSaysWhoAndRefreshTokenIsTheSameAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	s := b.person(t)
	token, expires, err := b.signer.UserToken(s)
	require.NoError(t, err)
	p, err := b.verifier.VerifyUser("Bearer " + token)
	require.NoError(t, err)
	require.Equal(t, identity.Principal{UserID: s.UserID, Username: "anna", Role: identity.Operator, SessionID: s.ID}, p)
	require.Equal(t, "user:"+s.UserID.String(), p.Actor())
	header, payload := parts(t, token)
	require.Equal(t, "at+jwt", header["typ"])
	require.InDelta(t, 15*60, payload["exp"].(float64)-payload["iat"].(float64), 0)
	require.Equal(t, payload["exp"], float64(expires.Unix()))
	for name, want := range map[string]string{
		"sub": "user:" + s.UserID.String(), "user_id": s.UserID.String(), "username": "anna", "email": "anna@example.com",
		"role": "operator", "type": "access", "aud": "pganalytics",
	} {
		require.Equal(t, want, payload[name])
	}

	id, issued := uuid.New(), b.clock.now().Truncate(time.Second)
	refresh, err := b.signer.RefreshToken(s, id, issued, issued.Add(identity.RefreshTokenLife))
	require.NoError(t, err)
	again, err := b.signer.RefreshToken(s, id, issued, issued.Add(identity.RefreshTokenLife))
	require.NoError(t, err)
	require.Equal(t, refresh, again)
	r, err := b.verifier.VerifyRefresh(refresh)
	require.NoError(t, err)
	require.Equal(t, identity.Refresh{ID: id, UserID: s.UserID, SessionID: s.ID}, r)
	header, payload = parts(t, refresh)
	require.Equal(t, "refresh+jwt", header["typ"])
	require.Equal(t, "refresh", payload["type"])
	require.NotEqual(t, "pganalytics", payload["aud"])
	require.Equal(t, id.String(), payload["jti"])
}

// Each case takes a good token of a user and spoils one thing; signatures are good but where they are the matter.
func TestBadTokensOfUsersAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	s := b.person(t)
	key, record := b.authority.SigningKey()
	sign := func(text []byte) []byte { return ed25519.Sign(key, text) }
	now := b.clock.now().Truncate(time.Second)
	access, _, err := b.signer.UserToken(s)
	require.NoError(t, err)
	refresh, err := b.signer.RefreshToken(s, uuid.New(), now, now.Add(identity.RefreshTokenLife))
	require.NoError(t, err)
	encode := func(v map[string]any) string {
		raw, err := json.Marshal(v)
		require.NoError(t, err)
		return string(raw)
	}
	for kind, good := range map[string]string{"access": access, "refresh": refresh} {
		verify := func(token string) error {
			if kind == "access" {
				_, err := b.verifier.VerifyUser("Bearer " + token)
				return err
			}
			_, err := b.verifier.VerifyRefresh(token)
			return err
		}
		header, payload := parts(t, good)
		require.NoError(t, verify(forge(encode(header), encode(payload), sign)), "the unspoilt token must pass, or the table proves nothing")
		with := func(m map[string]any, name string, value any) string {
			changed := maps.Clone(m)
			if changed[name] = value; value == nil {
				delete(changed, name)
			}
			return encode(changed)
		}
		cases := map[string]string{
			"HS256 with the public key": forge(with(header, "alg", "HS256"), encode(payload), func(text []byte) []byte {
				mac := hmac.New(sha256.New, record.PublicKey)
				mac.Write(text)
				return mac.Sum(nil)
			}),
			"alg none":     forge(with(header, "alg", "none"), encode(payload), func([]byte) []byte { return nil }),
			"a name twice": forge(encode(header), `{"role":"admin",`+encode(payload)[1:], sign),
			"megabyte":     strings.Repeat("a", 1<<20),
			"last bits":    spoilLastBits(good),
			"padded":       good + "=",
			"collector's":  b.token,
		}
		if kind == "access" {
			cases["the other kind"] = refresh
		} else {
			cases["the other kind"] = access
		}
		for _, c := range []struct {
			part  map[string]any
			name  string
			value any
		}{
			{header, "crit", []string{"exp"}}, {header, "jwk", map[string]any{"kty": "OKP"}}, {header, "jku", "https://example.com"},
			{header, "x5u", "https://example.com"}, {header, "kid", "nobody"}, {header, "typ", "JWT"}, {header, "kid", nil},
			{payload, "exp", nil}, {payload, "exp", now.Unix() + 48*3600}, {payload, "nbf", now.Unix() + 120}, {payload, "nbf", nil},
			{payload, "iat", nil}, {payload, "iss", "someone"}, {payload, "aud", "someone"}, {payload, "aud", []string{"pganalytics"}},
			{payload, "type", "other"}, {payload, "jti", nil}, {payload, "sub", "collector:" + s.UserID.String()},
			{payload, "sub", "user:" + uuid.NewString()}, {payload, "user_id", uuid.NewString()}, {payload, "user_id", nil},
			{payload, "sid", nil}, {payload, "sid", "x"}, {payload, "gen", "3"},
		} {
			text := forge(with(header, c.name, c.value), encode(payload), sign)
			if _, ours := payload[c.name]; ours || c.name == "user_id" {
				text = forge(encode(header), with(payload, c.name, c.value), sign)
			}
			cases[c.name+" "+encode(map[string]any{"is": c.value})] = text
		}
		for name, token := range cases {
			requireFault(t, verify(token), fault.Unauthenticated, "token_invalid")
			require.NotContains(t, verify(token).Error(), s.UserID.String(), name)
		}
	}
	for _, role := range []any{"root", "", "Admin", nil} {
		header, payload := parts(t, access)
		payload["role"] = role
		_, err := b.verifier.VerifyUser("Bearer " + forge(encode(header), encode(payload), sign))
		requireFault(t, err, fault.Unauthenticated, "token_invalid")
	}
	_, err = b.verifier.VerifyCollector(b.state, "Bearer "+access)
	requireFault(t, err, fault.Unauthenticated, "token_invalid")
	_, err = b.verifier.VerifyUser("Bearer " + b.token)
	requireFault(t, err, fault.Unauthenticated, "token_invalid")
}

func TestRecordsOfUsersAndSessionsDecideAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	s := b.person(t)
	token, _, err := b.signer.UserToken(s)
	require.NoError(t, err)
	check := func() error { _, err := b.verifier.VerifyUser("Bearer " + token); return err }
	user := func(active bool, generation int) identity.User {
		return identity.User{ID: s.UserID, Active: active, Generation: generation, ChangedAt: b.clock.now()}
	}
	require.NoError(t, check())
	b.put(t, user(false, 3))
	requireFault(t, check(), fault.Unauthenticated, "token_revoked")
	b.put(t, user(true, 4))
	requireFault(t, check(), fault.Unauthenticated, "token_revoked")
	b.put(t, user(true, 2)) // of a verifier that is behind: the token knows better
	require.NoError(t, check())
	b.put(t, identity.SessionEnd{ID: s.ID, EndedAt: b.clock.now()})
	requireFault(t, check(), fault.Unauthenticated, "token_revoked")
	b.snapshot.Remove("session." + s.ID.String())
	require.NoError(t, check())

	// A spoilt record may have been meant to refuse.
	require.Error(t, b.snapshot.Apply("user."+s.UserID.String(), []byte(`{`)))
	requireFault(t, check(), fault.Unavailable, "identity_propagating")
	b.clock.advance(3 * time.Minute)
	b.snapshot.Confirm(b.clock.now())
	requireFault(t, check(), fault.Unauthenticated, "token_revoked")
	b.put(t, user(true, 3))
	require.NoError(t, check())
	require.NoError(t, b.snapshot.Apply("session."+s.ID.String(), []byte(`{`)))
	requireFault(t, check(), fault.Unauthenticated, "token_revoked")
}

func TestUsersAreRefusedWith503WhileNothingIsConfirmed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	s := b.person(t)
	id, apiToken := identity.NewAPIToken()
	b.put(t, identity.APIToken{ID: id, Hash: identity.HashAPIToken(apiToken), Scopes: identity.Scopes{"read"}, ExpiresAt: b.clock.now().Add(time.Hour)})
	b.clock.advance(16 * time.Minute)
	token, _, err := b.signer.UserToken(s)
	require.NoError(t, err)
	_, err = b.verifier.VerifyUser("Bearer " + token)
	requireFault(t, err, fault.Unavailable, "identity_stale")
	_, err = b.verifier.VerifyUser("Bearer nonsense")
	requireFault(t, err, fault.Unavailable, "identity_stale")
	_, err = b.verifier.VerifyRefresh("nonsense")
	requireFault(t, err, fault.Unavailable, "identity_stale")
	_, err = b.verifier.VerifyAPIToken("Bearer " + apiToken)
	requireFault(t, err, fault.Unavailable, "identity_stale")
}

func TestBucketWithoutItsUsersOrTokensIsNotServed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	s := b.person(t)
	token, _, err := b.signer.UserToken(s)
	require.NoError(t, err)
	_, record := b.authority.SigningKey()
	b.put(t, identity.User{ID: s.UserID, Active: false, Generation: 4, ChangedAt: b.clock.now().Add(time.Second)})
	b.put(t, identity.SessionEnd{ID: s.ID})
	b.put(t, identity.Meta{Generation: 2, Collectors: 1, Keys: 1, Users: 1})

	b.snapshot.Begin() // the bucket is made anew, and cut
	b.put(t, b.collector(identity.Registered))
	b.putKey(t, record)
	b.put(t, identity.Meta{Generation: 3, Collectors: 1, Keys: 1, Users: 1, APITokens: 1})
	b.snapshot.Complete()
	served := func() int64 { o, _ := b.snapshot.Observed(); return o.Served }
	require.Equal(t, int64(2), served())
	_, err = b.verifier.VerifyUser("Bearer " + token)
	requireFault(t, err, fault.Unauthenticated, "token_revoked")
	o, ok := b.snapshot.Observed()
	require.True(t, ok)
	require.Contains(t, o.Lost.People.Users, s.UserID)
	require.Contains(t, o.Lost.People.Sessions, s.ID)

	id, apiToken := identity.NewAPIToken()
	whole := []interface {
		Record() (string, []byte, error)
	}{
		identity.User{ID: s.UserID, Active: true, Generation: 4, ChangedAt: b.clock.now()},
		identity.APIToken{ID: id, Hash: identity.HashAPIToken(apiToken), Scopes: identity.Scopes{"read"}},
	}
	for _, missing := range []int{0, 1} {
		b.snapshot.Begin()
		b.put(t, b.collector(identity.Registered))
		b.putKey(t, record)
		b.put(t, identity.Meta{Generation: int64(3 + missing), Collectors: 1, Keys: 1, Users: 1, APITokens: 1})
		b.snapshot.Complete()
		b.put(t, whole[1-missing])
		require.Equal(t, int64(2+missing), served())
		b.put(t, whole[missing])
		require.Equal(t, int64(3+missing), served())
	}
}

func TestApiTokenIsCheckedFromMemory(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id, token := identity.NewAPIToken()
	record := identity.APIToken{ID: id, Hash: identity.HashAPIToken(token),
		Scopes: identity.Scopes{"read", "push:" + b.id.String()}, ExpiresAt: b.clock.now().Add(time.Hour)}
	check := func(token string) error { _, err := b.verifier.VerifyAPIToken("Bearer " + token); return err }
	requireFault(t, check(token), fault.Unauthenticated, "token_invalid")
	b.put(t, record)
	p, err := b.verifier.VerifyAPIToken("Bearer " + token)
	require.NoError(t, err)
	require.Equal(t, identity.Principal{TokenID: id, Scopes: record.Scopes, CollectorID: b.id, Hostname: "db1"}, p)
	require.Equal(t, "api_token:"+id, p.Actor())

	for i := range len(token) { // off by one bit
		spoilt := []byte(token)
		spoilt[i] ^= 1
		requireFault(t, check(string(spoilt)), fault.Unauthenticated, "token_invalid")
	}
	requireFault(t, check(strings.ToUpper(token)), fault.Unauthenticated, "token_invalid")
	_, other := identity.NewAPIToken()
	requireFault(t, check("pga_"+id+other[20:]), fault.Unauthenticated, "token_invalid")
	b.put(t, b.collector(identity.Disabled))
	requireFault(t, check(token), fault.Forbidden, "collector_disabled")
	b.put(t, b.collector(identity.Active))
	record.Revoked = true
	b.put(t, record)
	requireFault(t, check(token), fault.Unauthenticated, "token_revoked")
	record.Revoked = false
	b.put(t, record)
	b.clock.advance(time.Hour)
	b.snapshot.Confirm(b.clock.now())
	requireFault(t, check(token), fault.Unauthenticated, "token_expired")
}

func FuzzVerifyUser(f *testing.F) {
	b := setup(f)
	s := b.person(f)
	key, _ := b.authority.SigningKey()
	access, _, err := b.signer.UserToken(s)
	require.NoError(f, err)
	header, payload := parts(f, access)
	head, _ := json.Marshal(header)
	claims, _ := json.Marshal(payload)
	f.Add(string(head), string(claims))
	f.Add(string(head), `{"user_id":null}`)
	f.Add(strings.Replace(string(head), "at+jwt", "refresh+jwt", 1), string(claims))
	f.Fuzz(func(t *testing.T, head, claims string) {
		// The fuzzer is let past the signature.
		token := forge(head, claims, func(text []byte) []byte { return ed25519.Sign(key, text) })
		if p, err := b.verifier.VerifyUser("Bearer " + token); err == nil {
			require.Equal(t, s.UserID, p.UserID)
			require.Contains(t, []identity.Role{identity.Viewer, identity.Operator, identity.Admin}, p.Role)
		} else {
			require.Contains(t, []fault.Class{fault.Unauthenticated, fault.Unavailable}, fault.ClassOf(err))
		}
		if r, err := b.verifier.VerifyRefresh(token); err == nil {
			require.Equal(t, s.UserID, r.UserID)
		}
		_, err := b.verifier.VerifyAPIToken("Bearer " + head)
		require.Error(t, err)
	})
}
