package identity

import (
	"errors"
	"maps"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
)

// More keys of the identity bucket: "user.<uuid>", "session.<uuid>" and
// "apitoken.<id>".
const (
	userPrefix    = "user."
	sessionPrefix = "session."
)

// User is what verifiers know of a user: whether tokens that say they are this
// user's are still good.
type User struct {
	ID     uuid.UUID `json:"id"`
	Active bool      `json:"active"` // false once disabled or deleted
	// Generation rises with everything that makes older access tokens wrong: a
	// new role, a new password. Tokens carry the one they were made under.
	Generation int       `json:"generation"`
	ChangedAt  time.Time `json:"changed_at"` // orders two versions of this record
}

// Supersedes reports whether the record is newer than the value that stands
// under its key, or that value is none.
func (u User) Supersedes(value []byte) bool {
	old, err := decodeUser(userPrefix+u.ID.String(), value)
	return err != nil || u.ChangedAt.After(old.ChangedAt)
}

// Record returns key and value for the bucket.
func (u User) Record() (string, []byte, error) { return record(userPrefix+u.ID.String(), u) }

// SessionEnd names a session whose tokens are refused before their time. It
// need not be listed for longer than SessionEndLife.
type SessionEnd struct {
	ID      uuid.UUID `json:"id"`
	EndedAt time.Time `json:"ended_at"`
}

// SessionEndLife is how long a token of an ended session may still be in time.
const SessionEndLife = RefreshTokenLife + time.Hour

// Record returns key and value for the bucket.
func (s SessionEnd) Record() (string, []byte, error) { return record(s.Key(), s) }

// Key returns the key in the bucket.
func (s SessionEnd) Key() string { return sessionPrefix + s.ID.String() }

// decodeUser errs unless the record is whole and stands under its own key.
func decodeUser(key string, value []byte) (User, error) {
	var u User
	if err := json.Unmarshal(value, &u); err != nil {
		return u, err
	}
	if u.ID == uuid.Nil || userPrefix+u.ID.String() != key {
		return u, errors.New("record does not belong under its key")
	}
	return u, nil
}

// decodeSessionEnd takes the id from the key: even a spoilt record ends what it
// stands for.
func decodeSessionEnd(key string, value []byte) (e SessionEnd, ok bool) {
	id, err := uuid.Parse(strings.TrimPrefix(key, sessionPrefix))
	if err != nil {
		return e, false
	}
	if err := json.Unmarshal(value, &e); err != nil {
		e = SessionEnd{}
	}
	e.ID = id
	return e, true
}

// People is what a bucket holds of users and of what acts for them.
type People struct {
	Users     map[uuid.UUID]User
	Sessions  map[uuid.UUID]SessionEnd // ended ones
	APITokens map[string]APIToken
}

// NewPeople makes an empty one.
func NewPeople() People {
	return People{Users: map[uuid.UUID]User{}, Sessions: map[uuid.UUID]SessionEnd{}, APITokens: map[string]APIToken{}}
}

func (u *People) clone() People {
	return People{Users: maps.Clone(u.Users), Sessions: maps.Clone(u.Sessions), APITokens: maps.Clone(u.APITokens)}
}

// holds reports whether there is as much as Meta says.
func (u *People) holds(m Meta) bool {
	return len(u.Users) >= m.Users && len(u.APITokens) >= m.APITokens
}

// missingIn returns what u refuses and next does not.
func (u *People) missingIn(next *People) People {
	lost := NewPeople()
	for id, r := range u.Users {
		if r.ChangedAt.After(next.Users[id].ChangedAt) {
			lost.Users[id] = r
		}
	}
	for id, r := range u.Sessions {
		if _, ok := next.Sessions[id]; !ok {
			lost.Sessions[id] = r
		}
	}
	for id, r := range u.APITokens {
		if r.Revoked && !next.APITokens[id].Revoked {
			lost.APITokens[id] = r
		}
	}
	return lost
}

// apply takes one record; mine is false for the key of another kind. kind is
// the label of a refusal.
func (u *People) apply(key string, value []byte) (kind string, mine bool, err error) {
	switch {
	case strings.HasPrefix(key, userPrefix):
		r, err := decodeUser(key, value)
		if err != nil {
			u.forget(key) // an unknown user is refused
			return "user", true, err
		}
		u.Users[r.ID] = r
	case strings.HasPrefix(key, sessionPrefix):
		r, ok := decodeSessionEnd(key, value)
		if !ok {
			return "session", true, errors.New("key is no session")
		}
		u.Sessions[r.ID] = r
	case strings.HasPrefix(key, apiTokenPrefix):
		r, err := decodeAPIToken(key, value)
		if err != nil {
			u.forget(key)
			return "apitoken", true, err
		}
		u.APITokens[r.ID] = r
	default:
		return "", false, nil
	}
	return "", true, nil
}

func (u *People) forget(key string) {
	if id, ok := strings.CutPrefix(key, apiTokenPrefix); ok {
		delete(u.APITokens, id)
	}
	if id, err := uuid.Parse(strings.TrimPrefix(key, userPrefix)); err == nil {
		delete(u.Users, id)
	}
	if id, err := uuid.Parse(strings.TrimPrefix(key, sessionPrefix)); err == nil {
		delete(u.Sessions, id)
	}
}

// refuseToo takes over from a bucket that is still being read what refuses
// someone.
func (u *People) refuseToo(next *People, key string) {
	if id, err := uuid.Parse(strings.TrimPrefix(key, userPrefix)); err == nil {
		if r, ok := next.Users[id]; ok && r.ChangedAt.After(u.Users[id].ChangedAt) {
			u.Users[id] = r
		}
	}
	if id, err := uuid.Parse(strings.TrimPrefix(key, sessionPrefix)); err == nil {
		if r, ok := next.Sessions[id]; ok {
			u.Sessions[id] = r
		}
	}
	if id, ok := strings.CutPrefix(key, apiTokenPrefix); ok {
		if r, ok := next.APITokens[id]; ok && r.Revoked {
			u.APITokens[id] = r
		}
	}
}

// user returns what the served contents say of a user and a session.
func (s *Snapshot) user(id, session uuid.UUID) (u User, known, ended bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.live == nil {
		return u, false, false
	}
	u, known = s.live.people.Users[id]
	_, ended = s.live.people.Sessions[session]
	return u, known, ended
}

// apiToken returns what the served contents say of an API token.
func (s *Snapshot) apiToken(id string) (t APIToken, known bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.live == nil {
		return t, false
	}
	t, known = s.live.people.APITokens[id]
	return t, known
}
