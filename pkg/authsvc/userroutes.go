package authsvc

import (
	"context"
	"net/http"
	"net/mail"
	"strings"
	"time"
	"unicode"

	"github.com/google/uuid"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/httpserver/typed"
	"pganalytics/pkg/identity"
)

// userView is a user in answers.
type userView struct {
	ID        uuid.UUID  `json:"id" format:"uuid"`
	Username  string     `json:"username"`
	Email     string     `json:"email"`
	FullName  string     `json:"full_name"`
	Role      string     `json:"role" enum:"viewer,operator,admin"`
	IsActive  bool       `json:"is_active"`
	LastLogin *time.Time `json:"last_login"`
	CreatedAt time.Time  `json:"created_at"`
	UpdatedAt time.Time  `json:"updated_at"`
}

func viewUser(u User) userView {
	return userView{
		ID: u.ID, Username: u.Username, Email: u.Email, FullName: u.FullName, Role: u.Role.String(), IsActive: u.IsActive,
		LastLogin: optional(u.LastLogin), CreatedAt: u.CreatedAt.UTC(), UpdatedAt: u.UpdatedAt.UTC(),
	}
}

// madeUserView also has the password that was made, once.
type madeUserView struct {
	userView
	TemporaryPassword string `json:"temporary_password,omitempty" doc:"It must be changed at the first login."`
}

type temporaryPasswordView struct {
	TemporaryPassword string `json:"temporary_password,omitempty" doc:"It must be changed at the first login."`
}

// UserID is the parameter of routes of one user. It is exported for huma, which
// sees no other embedded fields.
type UserID struct {
	ID uuid.UUID `path:"id" format:"uuid"`
}

type usersInput struct {
	PageQuery
	Username string `query:"username" maxLength:"64"`
	Role     string `query:"role" enum:"viewer,operator,admin"`
	IsActive string `query:"is_active" enum:"true,false"`
}

type newUserInput struct {
	Body struct {
		Username           string `json:"username" minLength:"1" maxLength:"64" doc:"Lower-case letters, digits and . _ @ - after the first character."`
		Email              string `json:"email,omitempty" maxLength:"254"`
		FullName           string `json:"full_name,omitempty" maxLength:"200"`
		Role               string `json:"role" enum:"viewer,operator,admin"`
		Password           string `json:"password,omitempty" maxLength:"1024" doc:"Without it one is made, is in the answer, and must be changed at the first login."`
		MustChangePassword bool   `json:"must_change_password,omitempty"`
	}
}

type changeUserInput struct {
	UserID
	Body struct {
		Email    *string `json:"email,omitempty" maxLength:"254"`
		FullName *string `json:"full_name,omitempty" maxLength:"200"`
		Role     *string `json:"role,omitempty" enum:"viewer,operator,admin"`
		IsActive *bool   `json:"is_active,omitempty"`
	}
}

type resetPasswordInput struct {
	UserID
	Body *struct {
		NewPassword        string `json:"new_password,omitempty" maxLength:"1024" doc:"Without it one is made, and is in the answer."`
		MustChangePassword *bool  `json:"must_change_password,omitempty" doc:"Defaults to true."`
	}
}

func (s *Service) userRoutes(api *typed.API) {
	op := func(id, method, path, summary string) typed.Operation {
		return typed.Operation{ID: id, Method: method, Path: "/api/v1/users" + path, Tag: "users", Summary: summary}
	}
	create := op("create_user", http.MethodPost, "", "Make a user.")
	create.Status = http.StatusCreated
	typed.Route(api, op("list_users", http.MethodGet, "", "List users, by name."), s.listUsers)
	typed.Route(api, create, s.createUser)
	typed.Route(api, op("get_user", http.MethodGet, "/{id}", "Show a user."), s.showUser)
	typed.Route(api, op("update_user", http.MethodPatch, "/{id}", "Change what is given of a user."), s.updateUser)
	typed.Route(api, op("delete_user", http.MethodDelete, "/{id}", "Delete a user; the audit keeps what the user did."), s.deleteUser)
	typed.Route(api, op("reset_password", http.MethodPost, "/{id}/reset-password", "Set another password; all sessions of the user end."), s.resetPassword)
}

func (s *Service) listUsers(ctx context.Context, in *usersInput) (*body[list[userView]], error) {
	q := UserQuery{Page: in.page(), Username: strings.ToLower(in.Username)}
	if in.Role != "" {
		q.Role, _ = identity.ParseRole(in.Role) // the enum has been checked
	}
	if in.IsActive != "" {
		active := in.IsActive == "true"
		q.Active = &active
	}
	found, total, err := s.Users.ListUsers(ctx, q)
	if err != nil {
		return nil, err
	}
	return listed(found, total, q.Page, viewUser), nil
}

func (s *Service) showUser(ctx context.Context, in *UserID) (*body[userView], error) {
	user, err := s.Users.User(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return answer(viewUser(user)), nil
}

func (s *Service) createUser(ctx context.Context, in *newUserInput) (*body[madeUserView], error) {
	b := &in.Body
	var fields []fault.Field
	if !usernameForm.MatchString(b.Username) {
		fields = append(fields, fault.Field{Pointer: "/username", Code: "username_invalid",
			Detail: "must begin with a lower-case letter or digit; . _ @ - may follow"})
	}
	fields = append(fields, checkPerson(&b.Email, &b.FullName)...)
	if len(fields) > 0 {
		return nil, &fault.Error{Class: fault.Invalid, Code: "body_invalid", Detail: "Some members are not acceptable.", Fields: fields}
	}
	role, err := identity.ParseRole(b.Role)
	if err != nil {
		return nil, invalid("/role", "value_invalid", "is no role")
	}
	password, made, err := givenOrMade("/password", b.Password, b.Username)
	if err != nil {
		return nil, err
	}
	hash, err := s.hasher.make(ctx, true, password)
	if err != nil {
		return nil, err
	}
	by := s.by(ctx)
	user, err := s.Users.CreateUser(ctx, NewUser{PasswordHash: hash, User: User{
		ID: uuid.New(), Username: b.Username, Email: b.Email, FullName: b.FullName, Role: role,
		MustChangePassword: b.MustChangePassword || made != "",
	}}, by)
	if err != nil {
		return nil, err
	}
	s.publishUser(ctx, ChangedUser{User: user})
	s.Log.Info("user made", "user_id", user.ID, "role", role.String(), "actor", by.Actor)
	return answer(madeUserView{viewUser(user), made}), nil
}

// givenOrMade returns the password to set, and it again if it was made here.
func givenOrMade(pointer, given, username string) (password, made string, err error) {
	if given == "" {
		made = OneTimePassword()
		return made, made, nil
	}
	return given, "", checkPassword(pointer, given, username)
}

// checkPerson returns what is wrong with what people are told of a user; nil
// is nothing.
func checkPerson(email, fullName *string) []fault.Field {
	var fields []fault.Field
	if email != nil && *email != "" {
		if parsed, err := mail.ParseAddress(*email); err != nil || parsed.Address != *email || !printable(*email) {
			fields = append(fields, fault.Field{Pointer: "/email", Code: "value_invalid", Detail: "is no mail address"})
		}
	}
	if fullName != nil && !printable(*fullName) {
		fields = append(fields, fault.Field{Pointer: "/full_name", Code: "not_printable", Detail: "has characters that do not print, or space around it"})
	}
	return fields
}

func printable(s string) bool {
	return strings.TrimSpace(s) == s && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

func (s *Service) updateUser(ctx context.Context, in *changeUserInput) (*body[userView], error) {
	if fields := checkPerson(in.Body.Email, in.Body.FullName); len(fields) > 0 {
		return nil, &fault.Error{Class: fault.Invalid, Code: "body_invalid", Detail: "Some members are not acceptable.", Fields: fields}
	}
	change := UserChange{Email: in.Body.Email, FullName: in.Body.FullName, IsActive: in.Body.IsActive}
	if in.Body.Role != nil {
		role, err := identity.ParseRole(*in.Body.Role)
		if err != nil {
			return nil, invalid("/role", "value_invalid", "is no role")
		}
		change.Role = &role
	}
	by := s.by(ctx)
	done, err := s.Users.ChangeUser(ctx, in.ID, change, by)
	if err != nil {
		return nil, err
	}
	s.publishUser(ctx, done)
	s.Log.Info("user changed", "user_id", in.ID, "actor", by.Actor, "sessions_ended", len(done.Ended))
	return answer(viewUser(done.User)), nil
}

func (s *Service) deleteUser(ctx context.Context, in *UserID) (*struct{}, error) {
	by := s.by(ctx)
	done, err := s.Users.DeleteUser(ctx, in.ID, by)
	if err != nil {
		return nil, err
	}
	s.publishUser(ctx, done)
	s.Log.Info("user deleted", "user_id", in.ID, "actor", by.Actor)
	return nil, nil
}

func (s *Service) resetPassword(ctx context.Context, in *resetPasswordInput) (*body[temporaryPasswordView], error) {
	user, err := s.Users.User(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	given, mustChange := "", true
	if in.Body != nil {
		given = in.Body.NewPassword
		if in.Body.MustChangePassword != nil && given != "" {
			mustChange = *in.Body.MustChangePassword
		}
	}
	password, made, err := givenOrMade("/new_password", given, user.Username)
	if err != nil {
		return nil, err
	}
	hash, err := s.hasher.make(ctx, true, password)
	if err != nil {
		return nil, err
	}
	by := s.by(ctx)
	done, err := s.Users.ChangePassword(ctx, PasswordChange{UserID: in.ID, Hash: hash, MustChange: mustChange}, by)
	if err != nil {
		return nil, err
	}
	s.publishUser(ctx, done)
	s.Log.Info("password reset", "user_id", in.ID, "actor", by.Actor, "sessions_ended", len(done.Ended))
	return answer(temporaryPasswordView{made}), nil
}
