package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// Session is what stays of a login.
type Session struct {
	Server       string    `json:"server"`
	CA           string    `json:"ca,omitempty"` // PEM; empty: the system's
	Username     string    `json:"username"`
	Token        string    `json:"token"`
	RefreshToken string    `json:"refresh_token"`
	ExpiresAt    time.Time `json:"expires_at"` // of Token
}

// ErrNoSession says that there was no login, or that it is over.
var ErrNoSession = errors.New("not logged in: run pganalytics login")

const refreshPath = "auth/refresh"

// SessionFile returns where this user's session is kept.
func SessionFile() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("--session-file: %w", err)
	}
	return filepath.Join(dir, "pganalytics", "session.json"), nil
}

// Resume makes a client with the session in the file. It errs with
// ErrNoSession.
func Resume(file string) (*Client, error) {
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoSession
	}
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: others may read it; log in again after removing it", file)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var s Session
	if err := json.Unmarshal(data, &s); err != nil || s.Server == "" {
		return nil, fmt.Errorf("%s: not a session; log in again", file)
	}
	return with(s, file)
}

// Tokens is the answer of a login.
type Tokens struct {
	Token              string    `json:"token"`
	RefreshToken       string    `json:"refresh_token"`
	ExpiresAt          time.Time `json:"expires_at"`
	MustChangePassword bool      `json:"must_change_password"`
	User               struct {
		Username string `json:"username"`
		Role     string `json:"role"`
	} `json:"user"`
}

// Login logs in and keeps the session in the file.
func (c *Client) Login(ctx context.Context, file, username, password string) (Tokens, error) {
	var t Tokens
	c.session.Token, c.session.RefreshToken = "", ""
	err := c.call(ctx, http.MethodPost, "auth/login", map[string]string{"username": username, "password": password}, &t)
	if err != nil {
		return t, err
	}
	c.file = file
	return t, c.keep(t)
}

// ChangePassword changes the password of the session's user.
func (c *Client) ChangePassword(ctx context.Context, current, next string) error {
	var t Tokens
	err := c.Call(ctx, http.MethodPost, "auth/change-password",
		map[string]string{"current_password": current, "new_password": next}, &t)
	if err != nil {
		return err
	}
	return c.keep(t)
}

// Logout ends the session, also here if the server cannot be told.
func (c *Client) Logout(ctx context.Context) error {
	err := c.Call(ctx, http.MethodPost, "auth/logout", nil, nil)
	if removeErr := os.Remove(c.file); !errors.Is(removeErr, fs.ErrNotExist) {
		err = errors.Join(err, removeErr)
	}
	return err
}

func (c *Client) refresh(ctx context.Context) error {
	// Another command that does so at the same time gets the same refresh token.
	var t Tokens
	err := c.call(ctx, http.MethodPost, refreshPath, map[string]string{"refresh_token": c.session.RefreshToken}, &t)
	if p, ok := errors.AsType[*ProblemError](err); ok && p.Status == http.StatusUnauthorized {
		return fmt.Errorf("%w: the session is over", ErrNoSession)
	}
	if err != nil {
		return fmt.Errorf("refresh the session: %w", err)
	}
	return c.keep(t)
}

// keep writes the session: the old refresh token is no good any more.
func (c *Client) keep(t Tokens) error {
	c.session.Token, c.session.RefreshToken, c.session.ExpiresAt = t.Token, t.RefreshToken, t.ExpiresAt
	c.session.Username = t.User.Username
	data, err := json.MarshalIndent(c.session, "", "  ") //nolint:gosec // the file is there to hold the tokens
	if err != nil {
		return errors.New("keep the session: encode it")
	}
	dir := filepath.Dir(c.file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("keep the session: %w", err)
	}
	f, err := os.CreateTemp(dir, ".session-*") // mode 0600
	if err != nil {
		return fmt.Errorf("keep the session: %w", err)
	}
	_, err = f.Write(append(data, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), c.file)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("keep the session: %w", err)
	}
	return nil
}
