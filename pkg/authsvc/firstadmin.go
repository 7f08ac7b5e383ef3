package authsvc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/google/uuid"

	"pganalytics/pkg/identity"
)

// FirstAdminName is the name of the user that an empty installation gets.
const FirstAdminName = "admin"

// FirstAdmin makes the first user of an installation that never had one, with a
// password that must be changed, and leaves that in the file, mode 0600. It
// reports whether the password there is still to be used; once it has been
// changed, the file is removed. Call it at each start.
func (s *Service) FirstAdmin(ctx context.Context, file string) (pending bool, err error) {
	admin, _, err := s.Users.Credentials(ctx, FirstAdminName)
	if err == nil {
		return s.firstAdminPending(admin, file)
	}
	if !errors.Is(err, ErrNoUser) {
		return false, fmt.Errorf("first admin: %w", err)
	}
	_, total, err := s.Users.ListUsers(ctx, UserQuery{Page: Page{Number: 1, Size: 1}})
	if err != nil || total > 0 {
		return false, err
	}
	// The file before the user: a stop in between leaves a password that is
	// taken at the next start, and never a user whose password nobody has.
	password, err := oneTimePasswordIn(file)
	if err != nil {
		return false, fmt.Errorf("first admin: %w", err)
	}
	hash, err := s.hasher.make(ctx, true, password)
	if err != nil {
		return false, fmt.Errorf("first admin: %w", err)
	}
	user, err := s.Users.CreateUser(ctx, NewUser{First: true, PasswordHash: hash, User: User{
		ID: uuid.New(), Username: FirstAdminName, Role: identity.Admin, MustChangePassword: true,
	}}, Act{Actor: "system", At: s.cfg.Now().UTC()})
	if errors.Is(err, ErrNotFirst) {
		return false, os.Remove(file) // another process was faster, or all users were deleted
	}
	if err != nil {
		return false, fmt.Errorf("first admin: %w", err)
	}
	s.publishUser(ctx, ChangedUser{User: user})
	s.Log.Info("first admin made", "username", FirstAdminName, "password_file", file)
	return true, nil
}

func (s *Service) firstAdminPending(admin User, file string) (bool, error) {
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if admin.MustChangePassword && admin.Generation == 1 {
		return true, nil
	}
	return false, os.Remove(file)
}

// oneTimePasswordIn returns the password in the file, which it makes if
// missing.
func oneTimePasswordIn(file string) (string, error) {
	data, err := os.ReadFile(file)
	if password := strings.TrimSpace(string(data)); err == nil && len(password) >= minPasswordBytes {
		return password, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	password := OneTimePassword()
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return "", err
	}
	_, err = f.WriteString(password + "\n")
	return password, errors.Join(err, f.Chmod(0o600), f.Sync(), f.Close())
}
