package collector

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
)

// Conninfo is the way to a server's connection settings. One of the fields is
// set.
type Conninfo struct {
	Plain string // URL or DSN without a password
	File  string // holds one, may have a password; private
	Env   string // name of the variable that holds one, may have a password
}

// Resolve returns the settings. An error never shows them.
func (c Conninfo) Resolve() (string, error) {
	given := 0
	for _, s := range []string{c.Plain, c.File, c.Env} {
		if s != "" {
			given++
		}
	}
	switch {
	case given != 1:
		return "", errors.New("exactly one of conninfo, conninfo_file and conninfo_env must be set")
	case c.Plain != "":
		if hasPassword(c.Plain) {
			return "", errors.New("conninfo must not hold a password: use conninfo_file, conninfo_env or a password file")
		}
		return c.Plain, nil
	case c.File != "":
		return readPrivate(c.File)
	}
	value := os.Getenv(c.Env)
	if value == "" {
		return "", fmt.Errorf("conninfo_env: variable %s is not set", c.Env)
	}
	return value, nil
}

// readPrivate reads a file that nobody else may read.
func readPrivate(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("conninfo_file: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("conninfo_file: %w", err)
	}
	if othersMay(info) != 0 && !mountedSecret(file) {
		return "", fmt.Errorf("conninfo_file %s has mode %04o, so others may read it: make it 0600, or 0640 if it belongs to root",
			file, info.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return "", fmt.Errorf("conninfo_file: %w", err)
	}
	conninfo := strings.TrimSpace(string(text))
	if conninfo == "" {
		return "", fmt.Errorf("conninfo_file %s is empty", file)
	}
	return conninfo, nil
}

// othersMay returns what others may do with a file beyond what libpq lets them
// do with its key files: one that belongs to root may be read by its group.
func othersMay(info fs.FileInfo) fs.FileMode {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Uid == 0 {
		return info.Mode().Perm() & 0o037
	}
	return info.Mode().Perm() & 0o077
}

// mountedSecret reports whether a container's runtime put the file there. It
// chooses modes that nobody in the container can change.
func mountedSecret(file string) bool {
	full, err := filepath.Abs(file)
	return err == nil && strings.HasPrefix(full, "/run/secrets/")
}

var (
	urlPassword = regexp.MustCompile(`^[a-z]+://[^/@]*:[^/@]+@`)
	keyPassword = regexp.MustCompile(`(?i)(^|[\s?&])(password|sslpassword)\s*=`)
)

func hasPassword(conninfo string) bool {
	return urlPassword.MatchString(conninfo) || keyPassword.MatchString(conninfo)
}
