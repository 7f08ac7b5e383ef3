package authsvc

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/httpserver/typed"
	"pganalytics/pkg/identity"
)

// refreshGrace is how long after its use a refresh token is answered with the
// successor that was made then: the answer may have got lost.
const refreshGrace = 10 * time.Second

type loginInput struct {
	Body struct {
		Username string `json:"username" minLength:"1" maxLength:"64"`
		Password string `json:"password" minLength:"1" maxLength:"1024"`
	}
}

type refreshInput struct {
	Body struct {
		RefreshToken string `json:"refresh_token" minLength:"1" maxLength:"4096"`
	}
}

type changePasswordInput struct {
	Body struct {
		CurrentPassword string `json:"current_password" minLength:"1" maxLength:"1024"`
		NewPassword     string `json:"new_password" minLength:"1" maxLength:"1024"`
	}
}

// loginView is the answer of a login. ExpiresAt is the end of Token.
type loginView struct {
	Token              string    `json:"token"`
	RefreshToken       string    `json:"refresh_token"`
	ExpiresAt          time.Time `json:"expires_at"`
	MustChangePassword bool      `json:"must_change_password,omitempty" doc:"Nothing else is allowed before."`
	User               userView  `json:"user"`
}

func (s *Service) sessionRoutes(api *typed.API) {
	op := func(id, method, path, summary string) typed.Operation {
		return typed.Operation{ID: id, Method: method, Path: "/api/v1/auth/" + path, Tag: "auth", Summary: summary}
	}
	typed.Route(api, op("login", http.MethodPost, "login", "Log in with name and password."), s.login)
	typed.Route(api, op("refresh", http.MethodPost, "refresh", "Exchange a refresh token, once, for new tokens."), s.refresh)
	typed.Route(api, op("logout", http.MethodPost, "logout", "End the session of the access token."), s.logout)
	typed.Route(api, op("me", http.MethodGet, "me", "Tell who the access token is of."), s.me)
	typed.Route(api, op("change_password", http.MethodPost, "change-password",
		"Change the own password; all sessions end, and the answer begins a new one."), s.changePassword)
}

func (s *Service) login(ctx context.Context, in *loginInput) (*body[loginView], error) {
	by := s.by(ctx)
	username := strings.ToLower(in.Body.Username)
	view, account, err := s.tryLogin(ctx, username, in.Body.Password, by)
	s.metrics.logins.WithLabelValues(outcome(err)).Inc()
	if class := fault.ClassOf(err); err != nil && (class == fault.Unauthenticated || class == fault.Throttled) {
		s.refused.add(by.At, "session.login", by.Source, account)
	}
	if err != nil {
		return nil, fmt.Errorf("log in: %w", err)
	}
	return answer(*view), nil
}

// unknownAccount stands in the audit for a name that nobody has: people type
// passwords there.
const unknownAccount = "unknown"

// tryLogin does the same work whether there is such a user or not. account is
// for the audit.
func (s *Service) tryLogin(ctx context.Context, username, password string, by Act) (view *loginView, account string, err error) {
	account = unknownAccount
	from := pair{username, sourceOf(by.Source)}
	known, leave, err := s.throttle.admit(ctx, from)
	if err != nil {
		return nil, account, err
	}
	defer leave()
	user, hash, err := s.Users.Credentials(ctx, username)
	switch {
	case errors.Is(err, ErrNoUser):
	case err != nil:
		return nil, account, err
	default:
		account = "user:" + user.ID.String()
	}
	right, err := s.hasher.compare(ctx, known, hash, password)
	if err != nil {
		return nil, account, err
	}
	if right && user.IsActive {
		by.Actor = account
		view, err = s.startSession(ctx, user, hash, by)
	} else {
		err = ErrCredentials
	}
	switch {
	case err == nil:
		s.throttle.succeeded(from)
	case fault.ClassOf(err) == fault.Unauthenticated:
		s.throttle.failed(from, known)
	}
	return view, account, err
}

func (s *Service) startSession(ctx context.Context, user User, hash string, by Act) (*loginView, error) {
	// The bucket may know better than a database that came back from a backup.
	if err := s.Verifier.LoginAllowed(user.ID, user.Generation); err != nil {
		if fault.ClassOf(err) == fault.Unavailable {
			return nil, err
		}
		return nil, ErrCredentials
	}
	login := s.newLogin(user.ID, hash, by.At)
	user, err := s.Users.StartSession(ctx, login, by)
	if err != nil {
		return nil, err
	}
	s.Log.Info("logged in", "user_id", user.ID, "session_id", login.SessionID)
	return s.tokens(user, login.SessionID, login.Token)
}

func (s *Service) newLogin(user uuid.UUID, hash string, at time.Time) Login {
	return Login{UserID: user, SessionID: uuid.New(), Hash: hash, Token: newRefreshToken(at)}
}

func newRefreshToken(at time.Time) RefreshToken {
	issued := at.UTC().Truncate(time.Second)
	return RefreshToken{ID: uuid.New(), IssuedAt: issued, Expires: issued.Add(identity.RefreshTokenLife)}
}

// tokens makes what a session is answered with.
func (s *Service) tokens(user User, session uuid.UUID, t RefreshToken) (*loginView, error) {
	if !s.Verifier.KnowsKey(s.Signer.Record().KID) {
		return nil, errKeyUnpublished
	}
	of := user.session(session)
	access, expires, err := s.Signer.UserToken(of)
	if err != nil {
		return nil, err
	}
	refresh, err := s.Signer.RefreshToken(of, t.ID, t.IssuedAt, t.Expires)
	if err != nil {
		return nil, err
	}
	return &loginView{
		Token: access, RefreshToken: refresh, ExpiresAt: expires,
		MustChangePassword: user.MustChangePassword, User: viewUser(user),
	}, nil
}

func (s *Service) refresh(ctx context.Context, in *refreshInput) (*body[loginView], error) {
	by := s.by(ctx)
	view, account, err := s.tryRefresh(ctx, in.Body.RefreshToken, by)
	s.metrics.refreshes.WithLabelValues(outcome(err)).Inc()
	if fault.ClassOf(err) == fault.Unauthenticated {
		s.refused.add(by.At, "session.refresh", by.Source, account)
	}
	if err != nil {
		return nil, fmt.Errorf("refresh: %w", err)
	}
	return answer(*view), nil
}

func (s *Service) tryRefresh(ctx context.Context, token string, by Act) (view *loginView, account string, err error) {
	presented, err := s.Verifier.VerifyRefresh(token)
	if err != nil {
		return nil, unknownAccount, err
	}
	account = "user:" + presented.UserID.String()
	by.Actor = account
	done, err := s.Users.Rotate(ctx, Rotation{
		Presented: presented, Next: newRefreshToken(by.At), Grace: refreshGrace, By: by,
	})
	if err != nil {
		return nil, account, err
	}
	if done.Reused {
		s.metrics.reuses.Inc()
		s.Log.Error("a refresh token was used twice, its session is ended", "session_id", presented.SessionID, "user_id", presented.UserID)
		s.publishPeople(ctx, identity.People{Sessions: map[uuid.UUID]identity.SessionEnd{done.Ended.ID: done.Ended}})
		return nil, account, ErrRefreshRefused
	}
	view, err = s.tokens(done.User, presented.SessionID, done.Token)
	return view, account, err
}

func (s *Service) logout(ctx context.Context, _ *struct{}) (*struct{}, error) {
	by, who := s.by(ctx), identity.From(ctx)
	ended, err := s.Users.EndSession(ctx, who.SessionID, by)
	if err != nil {
		return nil, err
	}
	s.publishPeople(ctx, identity.People{Sessions: map[uuid.UUID]identity.SessionEnd{ended.ID: ended}})
	return nil, nil
}

func (s *Service) me(ctx context.Context, _ *struct{}) (*body[userView], error) {
	user, err := s.Users.User(ctx, identity.From(ctx).UserID)
	if err != nil {
		return nil, err
	}
	return answer(viewUser(user)), nil
}

// changePassword asks for the current password, and is throttled like a login:
// a stolen access token must not do to find it out.
func (s *Service) changePassword(ctx context.Context, in *changePasswordInput) (*body[loginView], error) {
	by, who := s.by(ctx), identity.From(ctx)
	if err := checkPassword("/new_password", in.Body.NewPassword, who.Username); err != nil {
		return nil, err
	}
	if in.Body.NewPassword == in.Body.CurrentPassword {
		return nil, invalid("/new_password", "password_unchanged", "is the current password")
	}
	from := pair{who.Username, sourceOf(by.Source)}
	known, leave, err := s.throttle.admit(ctx, from)
	if err != nil {
		return nil, err
	}
	defer leave()
	_, hash, err := s.Users.Credentials(ctx, who.Username)
	if err != nil {
		return nil, err
	}
	right, err := s.hasher.compare(ctx, known, hash, in.Body.CurrentPassword)
	if err != nil {
		return nil, err
	}
	if !right {
		s.throttle.failed(from, known)
		s.refused.add(by.At, "user.change_password", by.Source, who.Actor())
		// Not 401: the credential of this request is the access token.
		return nil, fault.New(fault.Forbidden, "current_password_wrong", "The current password is wrong.")
	}
	newHash, err := s.hasher.make(ctx, known, in.Body.NewPassword)
	if err != nil {
		return nil, err
	}
	login := s.newLogin(who.UserID, newHash, by.At)
	done, err := s.Users.ChangePassword(ctx, PasswordChange{UserID: who.UserID, Hash: newHash, Old: hash, Login: &login}, by)
	if err != nil {
		return nil, err
	}
	s.publishUser(ctx, done)
	s.Log.Info("password changed", "user_id", who.UserID, "sessions_ended", len(done.Ended))
	view, err := s.tokens(done.User, login.SessionID, login.Token)
	if err != nil {
		return nil, err
	}
	return answer(*view), nil
}
