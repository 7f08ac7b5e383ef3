package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/authsvc/pgstore"
	"pganalytics/pkg/service"
)

type usersCmd struct {
	List          usersListCmd    `cmd:"" help:"List users."`
	Show          usersShowCmd    `cmd:"" help:"Show one user."`
	Create        usersCreateCmd  `cmd:"" help:"Make a user. Without a password file a password is made, shown once, and must be changed at the first login."`
	Update        usersUpdateCmd  `cmd:"" help:"Change a user's role or particulars, or enable one again."`
	Disable       usersDisableCmd `cmd:"" help:"Let a user in no longer; sessions end at once."`
	Delete        usersDeleteCmd  `cmd:"" help:"Delete a user; the audit keeps what the user did."`
	ResetPassword usersResetCmd   `cmd:"" help:"Set another password; all sessions of the user end."`
	Recover       usersRecoverCmd `cmd:"" help:"Let an admin in who cannot log in any more: with access to the database, and no login."`
}

type remoteUser struct {
	ID        string     `json:"id"`
	Username  string     `json:"username"`
	Email     string     `json:"email"`
	FullName  string     `json:"full_name"`
	Role      string     `json:"role"`
	IsActive  bool       `json:"is_active"`
	LastLogin *time.Time `json:"last_login"`
	CreatedAt time.Time  `json:"created_at"`
	UpdatedAt time.Time  `json:"updated_at"`
}

func (u remoteUser) state() string {
	if u.IsActive {
		return "active"
	}
	return "disabled"
}

func (u remoteUser) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, line := range [][2]string{
		{"username", u.Username}, {"id", u.ID}, {"full name", u.FullName}, {"email", u.Email}, {"role", u.Role},
		{"state", u.state()}, {"last login", when(u.LastLogin)}, {"created", when(&u.CreatedAt)}, {"changed", when(&u.UpdatedAt)},
	} {
		fmt.Fprintf(w, "%s\t%s\n", line[0], line[1])
	}
	return w.Flush()
}

type usersListCmd struct {
	remote
	paging
	Role     string `enum:",viewer,operator,admin" default:"" help:"Only users of this role."`
	Disabled bool   `help:"Only users who are disabled."`
}

// Run lists.
func (c *usersListCmd) Run(con console) error {
	filters := map[string]string{"role": c.Role}
	if c.Disabled {
		filters["is_active"] = "false"
	}
	var p page[remoteUser]
	if err := c.call(con, http.MethodGet, c.query("users", filters), nil, &p); err != nil {
		return err
	}
	return c.show(con, p, func(out io.Writer) error {
		return table(out, "USERNAME ROLE STATE LAST-LOGIN FULL-NAME EMAIL", p, func(u remoteUser) []string {
			return []string{u.Username, u.Role, u.state(), when(u.LastLogin), u.FullName, u.Email}
		})
	})
}

// oneUser is the flags of commands on one user.
type oneUser struct {
	remote
	User string `arg:"" help:"Name or id of the user."`
}

// path returns the path of the user.
func (c *oneUser) path(con console) (string, error) {
	if id, err := uuid.Parse(c.User); err == nil {
		return "users/" + id.String(), nil
	}
	var p page[remoteUser]
	if err := c.call(con, http.MethodGet, "users?username="+url.QueryEscape(c.User), nil, &p); err != nil {
		return "", err
	}
	if len(p.Data) != 1 {
		return "", fmt.Errorf("there is no user %q", c.User)
	}
	return "users/" + p.Data[0].ID, nil
}

// act calls the user's path and shows the user that is answered.
func (c *oneUser) act(con console, method string, in any) error {
	path, err := c.path(con)
	if err != nil {
		return err
	}
	var u remoteUser
	if err := c.call(con, method, path, in, &u); err != nil {
		return err
	}
	return c.show(con, u, u.print)
}

type usersShowCmd struct{ oneUser }

// Run shows.
func (c *usersShowCmd) Run(con console) error { return c.act(con, http.MethodGet, nil) }

type usersCreateCmd struct {
	remote
	Username     string `arg:"" help:"Name: lower-case letters, digits, and . _ @ - after the first character."`
	Role         string `enum:"viewer,operator,admin" default:"viewer" help:"viewer, operator or admin."`
	Email        string `help:"Mail address."`
	FullName     string `help:"Full name."`
	PasswordFile string `type:"path" help:"File with the password."`
}

// Run makes the user.
func (c *usersCreateCmd) Run(con console) error {
	in := map[string]any{"username": c.Username, "role": c.Role, "email": c.Email, "full_name": c.FullName}
	if c.PasswordFile != "" {
		password, err := readSecret(c.PasswordFile, "")
		if err != nil {
			return err
		}
		in["password"] = password
	}
	var made struct {
		remoteUser
		TemporaryPassword string `json:"temporary_password,omitempty"`
	}
	if err := c.call(con, http.MethodPost, "users", in, &made); err != nil {
		return err
	}
	return c.show(con, made, func(out io.Writer) error {
		if err := made.print(out); err != nil || made.TemporaryPassword == "" {
			return err
		}
		return printTemporary(out, made.TemporaryPassword)
	})
}

func printTemporary(out io.Writer, password string) error {
	_, err := fmt.Fprintf(out, "\npassword for the first login, not shown again:\n\n  %s\n", password)
	return err
}

type usersUpdateCmd struct {
	oneUser
	Role     *string `enum:"viewer,operator,admin" help:"New role."`
	Email    *string `help:"New mail address."`
	FullName *string `help:"New full name."`
	Enable   bool    `help:"Let a disabled user in again."`
}

// Run changes what is given.
func (c *usersUpdateCmd) Run(con console) error {
	in := map[string]any{}
	for name, value := range map[string]*string{"role": c.Role, "email": c.Email, "full_name": c.FullName} {
		if value != nil {
			in[name] = *value
		}
	}
	if c.Enable {
		in["is_active"] = true
	}
	if len(in) == 0 {
		return errors.New("give at least one of --role, --email, --full-name and --enable")
	}
	return c.act(con, http.MethodPatch, in)
}

type usersDisableCmd struct{ oneUser }

// Run disables.
func (c *usersDisableCmd) Run(con console) error {
	return c.act(con, http.MethodPatch, map[string]any{"is_active": false})
}

type usersDeleteCmd struct{ oneUser }

// Run deletes.
func (c *usersDeleteCmd) Run(con console) error {
	path, err := c.path(con)
	if err != nil {
		return err
	}
	return c.call(con, http.MethodDelete, path, nil, nil)
}

type usersResetCmd struct {
	oneUser
	PasswordFile string `type:"path" help:"File with the new password. Without it one is made and shown once."`
}

// Run sets another password.
func (c *usersResetCmd) Run(con console) error {
	path, err := c.path(con)
	if err != nil {
		return err
	}
	in := map[string]any{}
	if c.PasswordFile != "" {
		if in["new_password"], err = readSecret(c.PasswordFile, ""); err != nil {
			return err
		}
	}
	var answer struct {
		TemporaryPassword string `json:"temporary_password,omitempty"`
	}
	if err := c.call(con, http.MethodPost, path+"/reset-password", in, &answer); err != nil {
		return err
	}
	return c.show(con, answer, func(out io.Writer) error {
		if answer.TemporaryPassword == "" {
			return nil
		}
		return printTemporary(out, answer.TemporaryPassword)
	})
}

type usersRecoverCmd struct {
	Database     service.DatabaseFlags `embed:"" prefix:"database-"`
	Username     string                `arg:"" help:"Name of the user."`
	PasswordFile string                `type:"path" required:"" help:"File to write the one-time password to, mode 0600; it must be changed at the next login."`
}

// Run sets a one-time password in the database: whoever has that may. Running
// services know of it within half a minute.
func (c *usersRecoverCmd) Run(con console) error {
	dbURL, err := c.Database.URL()
	if err != nil {
		return err
	}
	store, err := pgstore.Open(con.ctx, dbURL)
	if err != nil {
		return err
	}
	defer store.Close()
	user, _, err := store.Credentials(con.ctx, c.Username)
	if err != nil {
		return err
	}
	password := authsvc.OneTimePassword()
	hash, err := authsvc.HashPassword(password)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.PasswordFile, []byte(password+"\n"), 0o600); err != nil {
		return err
	}
	_, err = store.ChangePassword(con.ctx, authsvc.PasswordChange{UserID: user.ID, Hash: hash, MustChange: true, Revive: true},
		authsvc.Act{Actor: actor(), At: time.Now().UTC()})
	return err
}
