package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	httpclient "pganalytics/pkg/client"
	"pganalytics/pkg/identity/ca"
)

// operator works at the command line of a running system.
type operator struct {
	*system
	session string
}

func newOperator(t *testing.T) *operator {
	t.Helper()
	i := &operator{system: newSystem(t, ""), session: filepath.Join(t.TempDir(), "config", "session.json")}
	i.startServe()
	i.eventually("there is a first admin", func() bool {
		data, err := os.ReadFile(filepath.Join(i.data(), "first-admin-password"))
		return err == nil && len(data) > 0
	})
	return i
}

// try runs a command and returns what it prints; the error has what it complains of.
func (i *operator) try(args ...string) (string, error) {
	cmd := exec.CommandContext(i.t.Context(), filepath.Join(programs, "pganalytics"), args...)
	cmd.Env = append(os.Environ(), "PGANALYTICS_DATABASE_URL="+i.db)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		err = errors.New(complaints.String())
	}
	return string(out), err
}

func (i *operator) do(args ...string) string {
	i.t.Helper()
	out, err := i.try(append(args, "--session-file", i.session)...)
	require.NoError(i.t, err, strings.Join(args, " "))
	return out
}

func (i *operator) file(text string) string {
	i.t.Helper()
	name := filepath.Join(i.t.TempDir(), "secret")
	require.NoError(i.t, os.WriteFile(name, []byte(text+"\n"), 0o600))
	return name
}

func TestUsersAndTokensAreManagedFromTheCommandLine(t *testing.T) {
	t.Parallel()
	i := newOperator(t)
	mine := i.file("a quiet lake 47 herons")
	first := filepath.Join(i.data(), "first-admin-password")
	require.Eventually(t, func() bool {
		_, err := i.try("login", "admin", "--data-dir", i.data(), "--password-file", first, "--new-password-file", mine, "--session-file", i.session)
		return err == nil
	}, 30*time.Second, 100*time.Millisecond, "the first admin logs in and changes the password")
	info, err := os.Stat(i.session)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	require.Equal(t, "admin, admin\n", i.do("whoami"))

	made := i.do("users", "create", "anna", "--role", "operator", "--full-name", "Anna", "--output", "json")
	var anna struct {
		ID                string `json:"id"`
		TemporaryPassword string `json:"temporary_password"`
	}
	require.NoError(t, json.Unmarshal([]byte(made), &anna))
	require.NotEmpty(t, anna.TemporaryPassword)
	require.Contains(t, i.do("users", "list"), "anna")
	require.Contains(t, i.do("users", "show", anna.ID), "Anna")
	require.Contains(t, i.do("users", "update", "anna", "--role", "viewer"), "viewer")
	require.Contains(t, i.do("users", "disable", "anna"), "disabled")
	require.Contains(t, i.do("users", "list", "--disabled"), "anna")
	require.Contains(t, i.do("users", "update", "anna", "--enable"), "active")
	require.Contains(t, i.do("users", "reset-password", "anna"), "password for the first login")

	token := filepath.Join(t.TempDir(), "token")
	i.do("tokens", "create", "grafana", "--scope", "read", "--token-file", token)
	secret, err := os.ReadFile(token)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(string(secret), "pga_"))
	id := strings.Split(string(secret), "_")[1]
	i.do("tokens", "revoke", id)
	require.Contains(t, i.do("tokens", "list"), "revoked")
	audit := i.do("audit")
	for _, action := range []string{"user.create", "user.update", "user.reset_password", "api_token.create", "api_token.revoke", "session.login"} {
		require.Contains(t, audit, action)
	}
	i.do("users", "delete", "anna")
	_, err = i.try("users", "show", "anna", "--session-file", i.session)
	require.ErrorContains(t, err, "no user")

	// A server pinned by the fingerprint of its CA, and by a wrong one.
	certs, err := ca.LoadCertificates(filepath.Join(i.data(), "pki", ca.ServerCAFile))
	require.NoError(t, err)
	pinned := filepath.Join(t.TempDir(), "pinned.json")
	login := func(fingerprint string) error {
		_, err := i.try("login", "admin", "--server", i.endpoints.Users, "--ca-fingerprint", fingerprint, "--password-file", mine, "--session-file", pinned)
		return err
	}
	require.NoError(t, login(ca.Fingerprint(certs[0])))
	require.ErrorContains(t, login("sha256:"+strings.Repeat("ab", 32)), "not the one that is meant")

	// Once logged out there is no session any more, here or there.
	i.do("logout")
	require.NoFileExists(t, i.session)
	_, err = i.try("whoami", "--session-file", i.session)
	require.ErrorContains(t, err, "not logged in")

	// Whoever has the database can let an admin in again.
	oneTime := filepath.Join(t.TempDir(), "recovered")
	_, err = i.try("users", "recover", "admin", "--password-file", oneTime)
	require.NoError(t, err)
	i.do("login", "admin", "--data-dir", i.data(), "--password-file", oneTime, "--new-password-file", i.file("another quiet lake 48"))
	require.Equal(t, "admin, admin\n", i.do("whoami"))
}

func TestSessionIsRefreshedByItself(t *testing.T) {
	t.Parallel()
	i := newOperator(t)
	mine := i.file("a quiet lake 47 herons")
	require.Eventually(t, func() bool {
		_, err := i.try("login", "admin", "--data-dir", i.data(), "--password-file", filepath.Join(i.data(), "first-admin-password"),
			"--new-password-file", mine, "--session-file", i.session)
		return err == nil
	}, 30*time.Second, 100*time.Millisecond, "logged in")
	var before, after httpclient.Session
	read := func(s *httpclient.Session) {
		data, err := os.ReadFile(i.session)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(data, s))
	}
	read(&before)
	before.ExpiresAt = time.Now().Add(time.Second) // as if it were
	data, err := json.Marshal(before)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(i.session, data, 0o600))
	require.Equal(t, "admin, admin\n", i.do("whoami"))
	read(&after)
	require.NotEqual(t, before.RefreshToken, after.RefreshToken)
	require.Greater(t, time.Until(after.ExpiresAt), 10*time.Minute)

	require.NoError(t, os.Chmod(i.session, 0o644))
	_, err = i.try("whoami", "--session-file", i.session)
	require.ErrorContains(t, err, "others may read it")
}
