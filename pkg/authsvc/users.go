package authsvc

import (
	"context"
	"regexp"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/identity"
)

// User is a user as the store keeps it, without the password.
type User struct {
	ID                 uuid.UUID
	Username           string // lower case
	Email, FullName    string
	Role               identity.Role
	IsActive           bool
	MustChangePassword bool
	Generation         int       // see identity.User
	LastLogin          time.Time // zero: never
	CreatedAt          time.Time
	UpdatedAt          time.Time
}

// Known returns what verifiers must know of the user.
func (u User) Known() identity.User {
	return identity.User{ID: u.ID, Active: u.IsActive, Generation: u.Generation, ChangedAt: u.UpdatedAt}
}

func (u User) session(id uuid.UUID) identity.Session {
	return identity.Session{
		ID: id, UserID: u.ID, Username: u.Username, Email: u.Email, Role: u.Role,
		Generation: u.Generation, MustChangePassword: u.MustChangePassword,
	}
}

// NewUser is a user to be stored.
type NewUser struct {
	User
	PasswordHash string
	// First says that the user is wanted only if there is none yet.
	First bool
}

// UserQuery asks for users. Zero members do not narrow it.
type UserQuery struct {
	Page
	Username string
	Role     identity.Role
	Active   *bool
}

// UserChange is what an admin changes of a user; nil leaves it.
type UserChange struct {
	Email, FullName *string
	Role            *identity.Role
	IsActive        *bool
}

// PasswordChange sets a new password, and ends all sessions.
type PasswordChange struct {
	UserID uuid.UUID
	// Hash of the new one.
	Hash string
	// Old is the hash that the new one replaces; empty: any.
	Old        string
	MustChange bool
	// Login is begun with the new password; nil: none.
	Login *Login
	// Revive activates a user who is disabled: for the command line, when no
	// admin is left.
	Revive bool
}

// ChangedUser is what verifiers must learn of a change.
type ChangedUser struct {
	User
	Ended []identity.SessionEnd
}

// Login is a session to be stored, with its first refresh token.
type Login struct {
	UserID    uuid.UUID
	SessionID uuid.UUID
	Hash      string // the user's, as it was compared
	Token     RefreshToken
}

// RefreshToken is one of a session.
type RefreshToken struct {
	ID                uuid.UUID
	IssuedAt, Expires time.Time // whole seconds
}

// Rotation asks for the next refresh token of a session.
type Rotation struct {
	Presented identity.Refresh
	Next      RefreshToken
	// Grace is how long after its use a token is answered with the same
	// successor, if that has not been used: the answer may have been lost.
	Grace time.Duration
	By    Act
}

// Rotated is what became of it.
type Rotated struct {
	User  User
	Token RefreshToken // Next, or the successor that was made before
	// Reused says that the token had been used before and somebody must have
	// copied it: the session has been ended, and there is no Token.
	Reused bool
	Ended  identity.SessionEnd
}

// UserStore keeps users and their sessions. Each method that changes something
// is one transaction, audit row included.
type UserStore interface {
	// Credentials returns a user by name and the hash of the password. It errs
	// with ErrNoUser.
	Credentials(ctx context.Context, username string) (User, string, error)
	// User errs with ErrNoUser.
	User(ctx context.Context, id uuid.UUID) (User, error)
	// ListUsers returns one page, by name, and how many there are in all.
	ListUsers(ctx context.Context, q UserQuery) ([]User, int, error)
	// CreateUser errs with ErrUsernameTaken, and for a first one with
	// ErrNotFirst.
	CreateUser(ctx context.Context, u NewUser, by Act) (User, error)
	// ChangeUser errs with ErrNoUser and ErrLastAdmin.
	ChangeUser(ctx context.Context, id uuid.UUID, c UserChange, by Act) (ChangedUser, error)
	// DeleteUser errs with ErrNoUser and ErrLastAdmin.
	DeleteUser(ctx context.Context, id uuid.UUID, by Act) (ChangedUser, error)
	// ChangePassword errs with ErrNoUser, and with ErrCredentials if the old
	// password is not the one any more.
	ChangePassword(ctx context.Context, c PasswordChange, by Act) (ChangedUser, error)

	// StartSession stores a login. It errs with ErrCredentials if the user is
	// not active, or the password another, by now.
	StartSession(ctx context.Context, l Login, by Act) (User, error)
	// Rotate errs with ErrRefreshRefused; see Rotation.
	Rotate(ctx context.Context, r Rotation) (Rotated, error)
	// EndSession ends a session; a second time is no error.
	EndSession(ctx context.Context, id uuid.UUID, by Act) (identity.SessionEnd, error)
	// PruneSessions forgets sessions that ended, or whose tokens expired,
	// before the time.
	PruneSessions(ctx context.Context, before time.Time) error

	// People returns all that verifiers must know: users, sessions that ended
	// after the given time, API tokens.
	People(ctx context.Context, endedAfter time.Time) (identity.People, error)
}

// Errors of the store, as the sender sees them.
var (
	ErrNoUser         = fault.New(fault.NotFound, "user_not_found", "There is no such user.")
	ErrUsernameTaken  = fault.New(fault.Conflict, "username_taken", "There is a user of this name.")
	ErrLastAdmin      = fault.New(fault.Conflict, "last_admin", "There would be no active admin left.")
	ErrNotFirst       = fault.New(fault.Conflict, "not_first", "There are users already.")
	ErrCredentials    = fault.New(fault.Unauthenticated, "credentials_invalid", "Username or password is wrong.")
	ErrRefreshRefused = fault.New(fault.Unauthenticated, "refresh_token_invalid", "The refresh token is not valid any more.")
)

// usernameForm is that of the database's check.
var usernameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._@-]{0,63}$`)
