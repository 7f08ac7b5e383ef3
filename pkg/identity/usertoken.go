package identity

import (
	"crypto/ed25519"
	"errors"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"

	"pganalytics/pkg/fault"
)

const (
	// UserTokenLife is how long a user's access token is valid. A token that
	// claims a longer life is refused, whoever signed it.
	UserTokenLife = 15 * time.Minute
	// RefreshTokenLife is the same of a refresh token.
	RefreshTokenLife = 24 * time.Hour

	refreshTokenType  = "refresh+jwt"
	refreshType       = "refresh"
	refreshSuffix     = "-refresh" // behind the audience
	userSubjectPrefix = "user:"
)

// userClaims are the claims of a user's access token and refresh token.
type userClaims struct {
	registeredClaims
	UserID             string `json:"user_id"`
	Username           string `json:"username"`
	Email              string `json:"email"`
	Role               string `json:"role"`
	SessionID          string `json:"sid"`
	Generation         int    `json:"gen"` // see User
	MustChangePassword bool   `json:"must_change_password,omitempty"`

	refresh bool // what is expected
}

// UnmarshalJSON is strict; see collectorClaims.
func (c *userClaims) UnmarshalJSON(data []byte) error {
	type plain userClaims // without this method
	return json.Unmarshal(data, (*plain)(c))
}

// Validate is called by the jwt parser after its own checks of times, issuer
// and audience.
func (c *userClaims) Validate() error {
	kind, life := accessType, UserTokenLife
	if c.refresh {
		kind, life = refreshType, RefreshTokenLife
	}
	if err := c.check(kind, life); err != nil {
		return err
	}
	if c.Subject != userSubjectPrefix+c.UserID {
		return errors.New("sub and user_id differ")
	}
	return nil
}

// ids returns user, session and token, which are all UUIDs.
func (c *userClaims) ids() (user, session, token uuid.UUID, err error) {
	for _, id := range []struct {
		into *uuid.UUID
		text string
	}{{&user, c.UserID}, {&session, c.SessionID}, {&token, c.ID}} {
		if *id.into, err = uuid.Parse(id.text); err != nil {
			return user, session, token, errors.New("an id is no UUID")
		}
	}
	return user, session, token, nil
}

// Session is what a user's tokens say.
type Session struct {
	ID                 uuid.UUID
	UserID             uuid.UUID
	Username           string
	Email              string
	Role               Role
	Generation         int
	MustChangePassword bool
}

func (s Session) claims(tokens Tokens, kind string, id uuid.UUID, from, to time.Time) *userClaims {
	return &userClaims{
		registeredClaims: registeredClaims{
			Issuer: tokens.Issuer, Audience: tokens.Audience, Type: kind,
			Subject: userSubjectPrefix + s.UserID.String(), ID: id.String(),
			ExpiresAt: to.Unix(), NotBefore: from.Unix(), IssuedAt: from.Unix(),
		},
		UserID: s.UserID.String(), Username: s.Username, Email: s.Email, Role: s.Role.String(),
		SessionID: s.ID.String(), Generation: s.Generation, MustChangePassword: s.MustChangePassword,
	}
}

// UserToken returns an access token, and when it expires.
func (s *Signer) UserToken(of Session) (string, time.Time, error) {
	now := s.now().UTC().Truncate(time.Second)
	expires := now.Add(UserTokenLife)
	signed, err := s.sign(accessTokenType, now, expires, of.claims(s.tokens, accessType, uuid.New(), now, expires))
	return signed, expires, err
}

// RefreshToken returns the refresh token with the id. The same arguments give
// the same token for as long as the same key signs.
func (s *Signer) RefreshToken(of Session, id uuid.UUID, issued, expires time.Time) (string, error) {
	tokens := s.tokens
	tokens.Audience += refreshSuffix
	return s.sign(refreshTokenType, issued, expires, of.claims(tokens, refreshType, id, issued, expires))
}

// VerifyUser checks a user's access token. authorization is the value of that
// header. It errs with Unauthenticated, also for a user who has been disabled or
// a session that has ended since, and with Unavailable (see Ready).
func (v *Verifier) VerifyUser(authorization string) (Principal, error) {
	if err := v.snapshot.fresh(v.now(), v.maxAge); err != nil {
		return Principal{}, err
	}
	token, err := bearer(authorization)
	if err != nil {
		return Principal{}, err
	}
	var claims userClaims
	if _, err := v.parse(v.parser, accessTokenType, token, &claims); err != nil {
		return Principal{}, err
	}
	user, session, _, err := claims.ids()
	if err != nil {
		return Principal{}, refuseToken(err)
	}
	role, err := ParseRole(claims.Role)
	if err != nil {
		return Principal{}, refuseToken(err)
	}
	if err := v.stillGood(user, session, &claims); err != nil {
		return Principal{}, err
	}
	return Principal{
		UserID: user, Username: claims.Username, Role: role, SessionID: session,
		MustChangePassword: claims.MustChangePassword,
	}, nil
}

// Refresh is what a refresh token says.
type Refresh struct {
	ID, UserID, SessionID uuid.UUID
}

// VerifyRefresh checks a refresh token as far as that can be told from memory.
// Errors are as for VerifyUser.
func (v *Verifier) VerifyRefresh(token string) (Refresh, error) {
	if err := v.snapshot.fresh(v.now(), v.maxAge); err != nil {
		return Refresh{}, err
	}
	if err := checkForm(token); err != nil {
		return Refresh{}, err
	}
	claims := userClaims{refresh: true}
	if _, err := v.parse(v.refreshParser, refreshTokenType, token, &claims); err != nil {
		return Refresh{}, err
	}
	var r Refresh
	var err error
	if r.UserID, r.SessionID, r.ID, err = claims.ids(); err != nil {
		return Refresh{}, refuseToken(err)
	}
	// The generation does not matter: a new role changes it, and the session
	// goes on under the new one. What ends sessions ends them by name.
	claims.Generation = int(^uint(0) >> 1)
	return r, v.stillGood(r.UserID, r.SessionID, &claims)
}

// LoginAllowed errs unless the snapshot, which may be newer than a database
// that came back from a backup, lets the user of the generation in. A user who
// is not known yet is let in.
func (v *Verifier) LoginAllowed(user uuid.UUID, generation int) error {
	if err := v.snapshot.fresh(v.now(), v.maxAge); err != nil {
		return err
	}
	if u, known, _ := v.snapshot.user(user, uuid.Nil); known && (!u.Active || generation < u.Generation) {
		return errTokenRevoked
	}
	return nil
}

// stillGood errs unless the snapshot knows the user and holds nothing against
// the token.
func (v *Verifier) stillGood(user, session uuid.UUID, claims *userClaims) error {
	u, known, ended := v.snapshot.user(user, session)
	switch {
	case !known && v.now().Sub(time.Unix(claims.IssuedAt, 0)) < propagation:
		return &fault.Error{Class: fault.Unavailable, Code: "identity_propagating",
			Detail: "The user was made a moment ago and is not known here yet.", RetryAfter: time.Second}
	case !known || !u.Active || ended || claims.Generation < u.Generation:
		return errTokenRevoked
	}
	return nil
}

var errTokenRevoked = fault.New(fault.Unauthenticated, "token_revoked", "The token is revoked.")

// parse checks header, signature, times, issuer and audience, then the claims'
// own Validate. It returns the key that signed.
func (v *Verifier) parse(parser *jwt.Parser, kind, token string, claims jwt.Claims) (signingKey, error) {
	h, err := parseHeader(token, kind)
	if err != nil {
		return signingKey{}, refuseToken(err)
	}
	by := signingKey{id: h.KeyID}
	_, err = parser.ParseWithClaims(token, claims, func(*jwt.Token) (any, error) {
		by.key, err = v.key(by.id)
		return by.key, err
	})
	if errors.Is(err, jwt.ErrTokenExpired) {
		return by, fault.New(fault.Unauthenticated, "token_expired", "The token has expired.")
	}
	if err != nil {
		return by, refuseToken(cause(err))
	}
	return by, nil
}

// signingKey is a key that signs tokens, and its name.
type signingKey struct {
	id  string
	key ed25519.PublicKey
}
