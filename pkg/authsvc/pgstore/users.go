package pgstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/identity"
)

const userColumns = `
id, username, email, full_name, role, is_active, must_change_password, generation, last_login, created_at, updated_at`

func scanUser(row pgx.CollectableRow) (authsvc.User, error) {
	var (
		u         authsvc.User
		role      string
		lastLogin *time.Time
	)
	err := row.Scan(&u.ID, &u.Username, &u.Email, &u.FullName, &role, &u.IsActive, &u.MustChangePassword,
		&u.Generation, &lastLogin, &u.CreatedAt, &u.UpdatedAt)
	if err != nil {
		return u, err
	}
	u.LastLogin = value(lastLogin)
	u.Role, err = identity.ParseRole(role)
	return u, err
}

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// oneUser errs with missing if there is none.
func oneUser(ctx context.Context, q querier, missing error, sql string, args ...any) (authsvc.User, error) {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return authsvc.User{}, err
	}
	u, err := pgx.CollectExactlyOneRow(rows, scanUser)
	if errors.Is(err, pgx.ErrNoRows) {
		return u, missing
	}
	return u, err
}

const selectHash = `
select id, password_hash
from identity.app_user
where username = $1 and deleted_at is null`

const selectUser = `
select` + userColumns + `
from identity.app_user
where id = $1 and deleted_at is null`

// Credentials returns a user by name and the hash of the password.
func (s *Store) Credentials(ctx context.Context, username string) (authsvc.User, string, error) {
	var (
		id   uuid.UUID
		hash string
	)
	err := s.pool.QueryRow(ctx, selectHash, username).Scan(&id, &hash)
	if errors.Is(err, pgx.ErrNoRows) {
		return authsvc.User{}, "", authsvc.ErrNoUser
	}
	if err != nil {
		return authsvc.User{}, "", classify("read credentials", err)
	}
	u, err := s.User(ctx, id)
	return u, hash, err
}

// User returns a user who is not deleted.
func (s *Store) User(ctx context.Context, id uuid.UUID) (authsvc.User, error) {
	u, err := oneUser(ctx, s.pool, authsvc.ErrNoUser, selectUser, id)
	return u, classify("read user", err)
}

const usersWhere = `
from identity.app_user
where deleted_at is null and ($1 = '' or username = $1) and ($2 = '' or role = $2) and ($3::boolean is null or is_active = $3)`

// ListUsers returns one page, by name.
func (s *Store) ListUsers(ctx context.Context, q authsvc.UserQuery) ([]authsvc.User, int, error) {
	role := ""
	if q.Role != 0 {
		role = q.Role.String()
	}
	args := []any{q.Username, role, q.Active}
	var total int
	if err := s.pool.QueryRow(ctx, `select count(*)`+usersWhere, args...).Scan(&total); err != nil {
		return nil, 0, classify("count users", err)
	}
	rows, err := s.pool.Query(ctx, `select`+userColumns+usersWhere+` order by username limit $4 offset $5`,
		append(args, q.Size, q.Offset())...)
	if err != nil {
		return nil, 0, classify("list users", err)
	}
	found, err := pgx.CollectRows(rows, scanUser)
	return found, total, classify("list users", err)
}

const insertUser = `
insert into identity.app_user
    (id, username, email, full_name, role, is_active, password_hash, must_change_password, generation, created_at, updated_at)
values ($1, $2, $3, $4, $5, true, $6, $7, 1, $8, $8)
returning` + userColumns

// CreateUser stores an active user.
func (s *Store) CreateUser(ctx context.Context, n authsvc.NewUser, by authsvc.Act) (authsvc.User, error) {
	var u authsvc.User
	err := s.inTx(ctx, "store user", func(tx pgx.Tx) (err error) {
		if n.First {
			if err := onlyFirst(ctx, tx); err != nil {
				return err
			}
		}
		u, err = oneUser(ctx, tx, nil, insertUser, n.ID, n.Username, n.Email, n.FullName, n.Role.String(),
			n.PasswordHash, n.MustChangePassword, by.At)
		if violates(err, "app_user_username_key") {
			return authsvc.ErrUsernameTaken
		}
		if err != nil {
			return err
		}
		return auditUser(ctx, tx, "user.create", u, by, map[string]any{
			"email": u.Email, "full_name": u.FullName, "role": u.Role, "must_change_password": u.MustChangePassword,
		})
	})
	return u, err
}

// onlyFirst errs with ErrNotFirst if there has ever been a user, and lets one
// transaction after the other find out.
func onlyFirst(ctx context.Context, tx pgx.Tx) error {
	if _, err := tx.Exec(ctx, `lock table identity.app_user in share row exclusive mode`); err != nil {
		return err
	}
	var already bool
	if err := tx.QueryRow(ctx, `select exists (select from identity.app_user)`).Scan(&already); err != nil {
		return err
	}
	if already {
		return authsvc.ErrNotFirst
	}
	return nil
}

func auditUser(ctx context.Context, tx pgx.Tx, action string, u authsvc.User, by authsvc.Act, changes map[string]any) error {
	if changes == nil {
		changes = map[string]any{}
	}
	changes["username"] = u.Username
	return audit(ctx, tx, act{
		at: by.At, actor: by.Actor, action: action, result: "success",
		resourceType: "user", resourceID: u.ID.String(), source: by.Source, changes: changes,
	})
}

// Locked in one order, so that two admins who take each other's role away do
// not wait for each other.
const lockAdmins = `
select id
from identity.app_user
where role = 'admin' and is_active
order by id
for update`

const lockUser = selectUser + `
for update`

// keepAnAdmin errs with ErrLastAdmin if nobody but the user is an active
// admin. It locks all admins until the transaction ends.
func keepAnAdmin(ctx context.Context, tx pgx.Tx, id uuid.UUID) error {
	rows, err := tx.Query(ctx, lockAdmins)
	if err != nil {
		return fmt.Errorf("lock admins: %w", err)
	}
	admins, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return fmt.Errorf("lock admins: %w", err)
	}
	for _, admin := range admins {
		if admin != id {
			return nil
		}
	}
	if len(admins) == 0 {
		return nil // the user is none either
	}
	return authsvc.ErrLastAdmin
}

// updated_at rises even if this clock is behind the one that set it before:
// verifiers take the record with the later time.
const updateUser = `
update identity.app_user
set email = coalesce($2, email), full_name = coalesce($3, full_name), role = coalesce($4, role),
    is_active = coalesce($5, is_active),
    generation = generation + case when coalesce($4, role) <> role or coalesce($5, is_active) <> is_active then 1 else 0 end,
    updated_at = greatest($6, updated_at + interval '1 microsecond')
where id = $1
returning` + userColumns

// ChangeUser changes what is not nil.
func (s *Store) ChangeUser(ctx context.Context, id uuid.UUID, c authsvc.UserChange, by authsvc.Act) (authsvc.ChangedUser, error) {
	var done authsvc.ChangedUser
	err := s.inTx(ctx, "change user", func(tx pgx.Tx) error {
		disables := c.IsActive != nil && !*c.IsActive
		if disables || c.Role != nil && *c.Role != identity.Admin {
			if err := keepAnAdmin(ctx, tx, id); err != nil {
				return err
			}
		}
		former, err := oneUser(ctx, tx, authsvc.ErrNoUser, lockUser, id)
		if err != nil {
			return err
		}
		var role *string
		if c.Role != nil {
			name := c.Role.String()
			role = &name
		}
		if done.User, err = oneUser(ctx, tx, nil, updateUser, id, c.Email, c.FullName, role, c.IsActive, by.At); err != nil {
			return err
		}
		if disables {
			if done.Ended, err = endSessions(ctx, tx, id, "disabled", by.At); err != nil {
				return err
			}
		}
		return auditUser(ctx, tx, "user.update", done.User, by, differences(former, done.User))
	})
	return done, err
}

// differences returns {from, to} of each member that changed.
func differences(from, to authsvc.User) map[string]any {
	changes := map[string]any{}
	note := func(name string, from, to any) {
		if from != to {
			changes[name] = map[string]any{"from": from, "to": to}
		}
	}
	note("email", from.Email, to.Email)
	note("full_name", from.FullName, to.FullName)
	note("role", from.Role, to.Role)
	note("is_active", from.IsActive, to.IsActive)
	return changes
}

const deleteUser = `
update identity.app_user
set is_active = false, deleted_at = $2, generation = generation + 1, password_hash = '!',
    updated_at = greatest($2, updated_at + interval '1 microsecond')
where id = $1
returning` + userColumns

// DeleteUser frees the user's name and lets nobody in as that user any more.
func (s *Store) DeleteUser(ctx context.Context, id uuid.UUID, by authsvc.Act) (authsvc.ChangedUser, error) {
	var done authsvc.ChangedUser
	err := s.inTx(ctx, "delete user", func(tx pgx.Tx) error {
		if err := keepAnAdmin(ctx, tx, id); err != nil {
			return err
		}
		_, err := oneUser(ctx, tx, authsvc.ErrNoUser, lockUser, id)
		if err != nil {
			return err
		}
		if done.User, err = oneUser(ctx, tx, nil, deleteUser, id, by.At); err != nil {
			return err
		}
		if done.Ended, err = endSessions(ctx, tx, id, "deleted", by.At); err != nil {
			return err
		}
		return auditUser(ctx, tx, "user.delete", done.User, by, nil)
	})
	return done, err
}

const setPassword = `
update identity.app_user
set password_hash = $2, must_change_password = $3, generation = generation + 1, is_active = is_active or $5,
    updated_at = greatest($4, updated_at + interval '1 microsecond')
where id = $1 and deleted_at is null and ($6 = '' or password_hash = $6 and is_active)
returning` + userColumns

// ChangePassword sets the hash and ends all sessions but the one that it begins.
func (s *Store) ChangePassword(ctx context.Context, c authsvc.PasswordChange, by authsvc.Act) (authsvc.ChangedUser, error) {
	missing, action := error(authsvc.ErrNoUser), "user.reset_password"
	if c.Old != "" {
		missing, action = authsvc.ErrCredentials, "user.change_password"
	}
	var done authsvc.ChangedUser
	err := s.inTx(ctx, "change password", func(tx pgx.Tx) (err error) {
		done.User, err = oneUser(ctx, tx, missing, setPassword, c.UserID, c.Hash, c.MustChange, by.At, c.Revive, c.Old)
		if err != nil {
			return err
		}
		if done.Ended, err = endSessions(ctx, tx, c.UserID, "password", by.At); err != nil {
			return err
		}
		if c.Login != nil {
			if err := addSession(ctx, tx, *c.Login, by); err != nil {
				return err
			}
		}
		return auditUser(ctx, tx, action, done.User, by, map[string]any{"must_change_password": c.MustChange, "sessions_ended": len(done.Ended)})
	})
	return done, err
}
