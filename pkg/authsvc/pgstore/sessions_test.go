package pgstore_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/authsvc/pgstore"
	"pganalytics/pkg/identity"
	"pganalytics/pkg/internal/testdb"
)

// family is a model of one session: its tokens in the order in which they were made, each used by the next one.
type family struct {
	id     uuid.UUID
	user   *person
	tokens []authsvc.RefreshToken
	usedAt []time.Time // of tokens; the last one is unused
	ended  bool
}

type person struct {
	id         uuid.UUID
	active     bool
	hash       string
	generation int
}

const grace = 10 * time.Second

// families is the machine: the model, the store, and a clock.
type families struct {
	store    *pgstore.Store
	now      time.Time
	people   []*person
	sessions []*family
}

func (m *families) by() authsvc.Act { return authsvc.Act{Actor: "user:test", At: m.now} }

func (m *families) login(t *rapid.T) {
	p := rapid.SampledFrom(m.people).Draw(t, "person")
	hash := p.hash
	if rapid.IntRange(0, 9).Draw(t, "stale") == 0 {
		hash += "x"
	}
	f := &family{id: uuid.New(), user: p, tokens: []authsvc.RefreshToken{m.token()}, usedAt: []time.Time{{}}}
	_, err := m.store.StartSession(t.Context(), authsvc.Login{UserID: p.id, SessionID: f.id, Hash: hash, Token: f.tokens[0]}, m.by())
	if !p.active || hash != p.hash {
		require.ErrorIs(t, err, authsvc.ErrCredentials)
		return
	}
	require.NoError(t, err)
	m.sessions = append(m.sessions, f)
}

func (m *families) token() authsvc.RefreshToken {
	at := m.now.Truncate(time.Second)
	return authsvc.RefreshToken{ID: uuid.New(), IssuedAt: at, Expires: at.Add(identity.RefreshTokenLife)}
}

func (m *families) rotate(t *rapid.T) {
	f := m.some(t)
	// Mostly one of the last: older ones are always a copy.
	i := max(0, len(f.tokens)-1-rapid.SampledFrom([]int{0, 0, 0, 1, 1, 2, 5}).Draw(t, "age"))
	next := m.token()
	got, err := m.store.Rotate(t.Context(), authsvc.Rotation{
		Presented: identity.Refresh{ID: f.tokens[i].ID, UserID: f.user.id, SessionID: f.id}, Next: next, Grace: grace, By: m.by(),
	})
	last := len(f.tokens) - 1
	switch {
	case f.ended || !f.user.active || !m.now.Before(f.tokens[i].Expires):
		require.ErrorIs(t, err, authsvc.ErrRefreshRefused)
		require.False(t, got.Reused)
	case i == last:
		require.NoError(t, err)
		require.Equal(t, next, got.Token)
		require.Equal(t, f.user.generation, got.User.Generation)
		f.usedAt[i] = m.now
		f.tokens, f.usedAt = append(f.tokens, next), append(f.usedAt, time.Time{})
	case i == last-1 && m.now.Sub(f.usedAt[i]) <= grace:
		require.NoError(t, err)
		require.Equal(t, f.tokens[last], got.Token, "the same successor")
	default:
		require.NoError(t, err)
		require.True(t, got.Reused)
		require.Equal(t, f.id, got.Ended.ID)
		f.ended = true
	}
}

// lost is a rotation whose answer may have got lost, and another attempt some time later.
func (m *families) lost(t *rapid.T) {
	f := m.some(t)
	if f.ended || !f.user.active || !m.now.Before(f.tokens[len(f.tokens)-1].Expires) {
		t.Skip("not live")
	}
	first := f.tokens[len(f.tokens)-1]
	use := func() authsvc.Rotated {
		got, err := m.store.Rotate(t.Context(), authsvc.Rotation{
			Presented: identity.Refresh{ID: first.ID, UserID: f.user.id, SessionID: f.id}, Next: m.token(), Grace: grace, By: m.by(),
		})
		require.NoError(t, err)
		return got
	}
	at, got := m.now, use()
	f.usedAt[len(f.usedAt)-1] = at
	f.tokens, f.usedAt = append(f.tokens, got.Token), append(f.usedAt, time.Time{})
	m.wait(t)
	if !m.now.Before(first.Expires) {
		return
	}
	again := use()
	f.ended = m.now.Sub(at) > grace
	require.Equal(t, f.ended, again.Reused)
	if !f.ended {
		require.Equal(t, got.Token, again.Token)
	}
}

func (m *families) some(t *rapid.T) *family {
	if len(m.sessions) == 0 {
		t.Skip("no session")
	}
	return rapid.SampledFrom(m.sessions).Draw(t, "session")
}

// foreign presents a token that we signed and the database does not know.
func (m *families) foreign(t *rapid.T) {
	f := m.some(t)
	got, err := m.store.Rotate(t.Context(), authsvc.Rotation{
		Presented: identity.Refresh{ID: uuid.New(), UserID: f.user.id, SessionID: f.id}, Next: m.token(), Grace: grace, By: m.by(),
	})
	if f.ended || !f.user.active {
		require.ErrorIs(t, err, authsvc.ErrRefreshRefused)
		return
	}
	require.NoError(t, err)
	require.True(t, got.Reused)
	f.ended = true
}

// stranger presents a token as another user's.
func (m *families) stranger(t *rapid.T) {
	f := m.some(t)
	other := m.people[0]
	if f.user == other {
		other = m.people[1]
	}
	_, err := m.store.Rotate(t.Context(), authsvc.Rotation{
		Presented: identity.Refresh{ID: f.tokens[len(f.tokens)-1].ID, UserID: other.id, SessionID: f.id}, Next: m.token(), Grace: grace, By: m.by(),
	})
	require.ErrorIs(t, err, authsvc.ErrRefreshRefused)
}

func (m *families) logout(t *rapid.T) {
	f := m.some(t)
	ended, err := m.store.EndSession(t.Context(), f.id, m.by())
	require.NoError(t, err)
	require.Equal(t, f.id, ended.ID)
	f.ended = true
}

func (m *families) endAll(p *person) (ended int) {
	for _, f := range m.sessions {
		if f.user == p && !f.ended {
			f.ended = true
			ended++
		}
	}
	return ended
}

func (m *families) activate(t *rapid.T) {
	p := rapid.SampledFrom(m.people).Draw(t, "person")
	active := rapid.Bool().Draw(t, "active")
	done, err := m.store.ChangeUser(t.Context(), p.id, authsvc.UserChange{IsActive: &active}, m.by())
	require.NoError(t, err)
	if active != p.active {
		p.generation++
	}
	p.active = active
	require.Equal(t, p.generation, done.Generation)
	if !active {
		require.Len(t, done.Ended, m.endAll(p))
	}
}

func (m *families) password(t *rapid.T) {
	p := rapid.SampledFrom(m.people).Draw(t, "person")
	p.hash = uuid.NewString()
	p.generation++
	done, err := m.store.ChangePassword(t.Context(), authsvc.PasswordChange{UserID: p.id, Hash: p.hash}, m.by())
	require.NoError(t, err)
	require.Len(t, done.Ended, m.endAll(p))
	require.Equal(t, p.generation, done.Generation)
}

func (m *families) wait(t *rapid.T) {
	m.now = m.now.Add(time.Duration(rapid.SampledFrom([]int{1, 5_000, 9_999, 10_000, 10_001, 60_000, 25 * 3600_000}).Draw(t, "ms")) * time.Millisecond)
}

func TestRefreshFamiliesFollowTheirModel(t *testing.T) {
	t.Parallel()
	store, err := pgstore.Open(t.Context(), testdb.New(t))
	require.NoError(t, err)
	t.Cleanup(store.Close)
	rapid.Check(t, func(t *rapid.T) {
		m := &families{store: store, now: time.Now().UTC().Truncate(time.Millisecond)}
		for range 2 {
			p := &person{id: uuid.New(), active: true, hash: uuid.NewString(), generation: 1}
			_, err := store.CreateUser(t.Context(), authsvc.NewUser{PasswordHash: p.hash, User: authsvc.User{
				ID: p.id, Username: "u" + p.id.String(), Role: identity.Viewer,
			}}, m.by())
			require.NoError(t, err)
			m.people = append(m.people, p)
		}
		t.Repeat(map[string]func(*rapid.T){
			"login": m.login, "rotate": m.rotate, "rotate again": m.rotate, "rotate still": m.rotate,
			"lost": m.lost, "foreign": m.foreign, "stranger": m.stranger, "logout": m.logout,
			"activate": m.activate, "password": m.password, "wait": m.wait, "wait again": m.wait,
			"": func(t *rapid.T) {
				p, err := store.People(t.Context(), m.now.Add(-365*24*time.Hour))
				require.NoError(t, err)
				for _, who := range m.people {
					require.Equal(t, who.active, p.Users[who.id].Active)
					require.Equal(t, who.generation, p.Users[who.id].Generation)
				}
				for _, f := range m.sessions {
					require.Equal(t, f.ended, p.Sessions[f.id].ID == f.id)
				}
			},
		})
	})
}

func TestConcurrentUsesOfARefreshTokenGetOneSuccessor(t *testing.T) {
	t.Parallel()
	store, err := pgstore.Open(t.Context(), testdb.New(t))
	require.NoError(t, err)
	t.Cleanup(store.Close)
	m := &families{store: store, now: time.Now().UTC()}
	u, err := store.CreateUser(t.Context(), authsvc.NewUser{PasswordHash: "h", User: authsvc.User{ID: uuid.New(), Username: "anna", Role: identity.Viewer}}, m.by())
	require.NoError(t, err)
	first, session := m.token(), uuid.New()
	_, err = store.StartSession(t.Context(), authsvc.Login{UserID: u.ID, SessionID: session, Hash: "h", Token: first}, m.by())
	require.NoError(t, err)
	const uses = 8
	// Several rounds: in the first, the connections are only being made.
	for range 10 {
		got := make(chan authsvc.Rotated, uses)
		for range uses {
			go func() {
				done, err := store.Rotate(t.Context(), authsvc.Rotation{
					Presented: identity.Refresh{ID: first.ID, UserID: u.ID, SessionID: session}, Next: m.token(), Grace: grace, By: m.by(),
				})
				if err != nil {
					t.Error(err)
				}
				got <- done
			}()
		}
		successor := (<-got).Token
		for range uses - 1 {
			done := <-got
			require.False(t, done.Reused)
			require.Equal(t, successor, done.Token)
		}
		first = successor
	}
}

// Whatever two admins do to each other at once.
func TestAnAdminIsLeftWhateverHappensAtOnce(t *testing.T) {
	t.Parallel()
	store, err := pgstore.Open(t.Context(), testdb.New(t))
	require.NoError(t, err)
	t.Cleanup(store.Close)
	by := authsvc.Act{Actor: "user:test", At: time.Now().UTC()}
	var ids [2]uuid.UUID
	for i := range ids {
		u, err := store.CreateUser(t.Context(), authsvc.NewUser{PasswordHash: "h", User: authsvc.User{
			ID: uuid.New(), Username: fmt.Sprintf("admin%d", i), Role: identity.Admin}}, by)
		require.NoError(t, err)
		ids[i] = u.ID
	}
	viewer, admin, off, on := identity.Viewer, identity.Admin, false, true
	for round := range 20 {
		change := authsvc.UserChange{Role: &viewer}
		if round%2 == 1 {
			change = authsvc.UserChange{IsActive: &off}
		}
		errs := make(chan error, 2)
		for _, id := range ids {
			go func() { _, err := store.ChangeUser(t.Context(), id, change, by); errs <- err }()
		}
		first, second := <-errs, <-errs
		if first != nil {
			first, second = second, first
		}
		require.NoError(t, first)
		require.ErrorIs(t, second, authsvc.ErrLastAdmin)
		for _, id := range ids {
			_, err := store.ChangeUser(t.Context(), id, authsvc.UserChange{Role: &admin, IsActive: &on}, by)
			require.NoError(t, err)
		}
	}
}

func TestPruningForgetsOnlyWhatIsOver(t *testing.T) {
	t.Parallel()
	store, err := pgstore.Open(t.Context(), testdb.New(t))
	require.NoError(t, err)
	t.Cleanup(store.Close)
	m := &families{store: store, now: time.Now().UTC()}
	u, err := store.CreateUser(t.Context(), authsvc.NewUser{PasswordHash: "h", User: authsvc.User{ID: uuid.New(), Username: "anna", Role: identity.Viewer}}, m.by())
	require.NoError(t, err)
	login := func() (uuid.UUID, authsvc.RefreshToken) {
		token, session := m.token(), uuid.New()
		_, err = store.StartSession(t.Context(), authsvc.Login{UserID: u.ID, SessionID: session, Hash: "h", Token: token}, m.by())
		require.NoError(t, err)
		return session, token
	}
	rotate := func(session uuid.UUID, token authsvc.RefreshToken) (authsvc.Rotated, error) {
		return store.Rotate(t.Context(), authsvc.Rotation{
			Presented: identity.Refresh{ID: token.ID, UserID: u.ID, SessionID: session}, Next: m.token(), Grace: grace, By: m.by(),
		})
	}
	login() // expires unused
	live, token := login()
	for range 3 {
		m.now = m.now.Add(20 * time.Hour)
		done, err := rotate(live, token)
		require.NoError(t, err)
		token = done.Token
	}
	require.NoError(t, store.PruneSessions(t.Context(), m.now.Add(-identity.SessionEndLife)))
	_, err = rotate(live, token)
	require.NoError(t, err, "the live session is not touched")
	p, err := store.People(t.Context(), time.Time{})
	require.NoError(t, err)
	require.Empty(t, p.Sessions)
}
