package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"

	"pganalytics/pkg/client"
	"pganalytics/pkg/identity/ca"
	"pganalytics/pkg/service"
)

type loginCmd struct {
	Username        string `arg:"" help:"Name of the user."`
	Server          string `help:"URL of the listener for users, https://host[:port]. Defaults to that of serve in data-dir."`
	CAFile          string `type:"path" help:"File with the CA of the server's certificate. Defaults to that of serve in data-dir, if the server is that one, else to the system's."`
	CAFingerprint   string `help:"Fingerprint of that CA, sha256:…, instead of the file."`
	DataDir         string `type:"path" default:"/var/lib/pganalytics" help:"Data directory of serve on this host."`
	PasswordFile    string `type:"path" help:"File with the password, instead of asking at the terminal."`
	NewPasswordFile string `type:"path" help:"File with the new password, where the first login must change it."`
	SessionFile     string `type:"path" help:"File to keep the session in. Defaults to one in the user's configuration directory."`
}

// Run logs in, and changes the password where that must be done first.
func (c *loginCmd) Run(con console) error {
	file, err := sessionFile(c.SessionFile)
	if err != nil {
		return err
	}
	server, err := c.server()
	if err != nil {
		return err
	}
	to, err := client.Connect(con.ctx, server)
	if err != nil {
		return err
	}
	defer to.Close()
	password, err := readSecret(c.PasswordFile, "Password of "+c.Username+": ")
	if err != nil {
		return err
	}
	t, err := to.Login(con.ctx, file, c.Username, password)
	if err != nil {
		return err
	}
	if t.MustChangePassword {
		fmt.Fprintln(con.stderr, "The password must be changed.")
		next, err := newSecret(c.NewPasswordFile)
		if err != nil {
			return err
		}
		if err := to.ChangePassword(con.ctx, password, next); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(con.stdout, "logged in to %s as %s, %s\n", server.URL, t.User.Username, t.User.Role)
	return err
}

func (c *loginCmd) server() (client.Server, error) {
	s := client.Server{URL: c.Server, CAFile: c.CAFile, CAFingerprint: c.CAFingerprint}
	if s.CAFile != "" && s.CAFingerprint != "" {
		return s, errors.New("--ca-file and --ca-fingerprint: give one of them")
	}
	if s.URL != "" {
		return s, nil
	}
	local := service.Installation{DataDir: c.DataDir}
	e, err := local.Endpoints()
	if err != nil {
		return s, fmt.Errorf("address of the server (or give --server): %w", err)
	}
	s.URL = e.Users
	if s.CAFile == "" && s.CAFingerprint == "" {
		s.CAFile = filepath.Join(local.PKIDir(), ca.ServerCAFile)
	}
	return s, nil
}

type logoutCmd struct{ remote }

// Run ends the session.
func (c *logoutCmd) Run(con console) error {
	to, err := c.client()
	if err != nil {
		return err
	}
	defer to.Close()
	return to.Logout(con.ctx)
}

type whoamiCmd struct{ remote }

// Run tells whose session it is.
func (c *whoamiCmd) Run(con console) error {
	var u remoteUser
	if err := c.call(con, http.MethodGet, "auth/me", nil, &u); err != nil {
		return err
	}
	return c.show(con, u, func(out io.Writer) error {
		_, err := fmt.Fprintf(out, "%s, %s\n", u.Username, u.Role)
		return err
	})
}

type passwordCmd struct {
	remote
	PasswordFile    string `type:"path" help:"File with the current password, instead of asking at the terminal."`
	NewPasswordFile string `type:"path" help:"File with the new one."`
}

// Run changes the own password. All other sessions of the user end.
func (c *passwordCmd) Run(con console) error {
	to, err := c.client()
	if err != nil {
		return err
	}
	defer to.Close()
	current, err := readSecret(c.PasswordFile, "Current password: ")
	if err != nil {
		return err
	}
	next, err := newSecret(c.NewPasswordFile)
	if err != nil {
		return err
	}
	return to.ChangePassword(con.ctx, current, next)
}
