package ca

import (
	"fmt"
	"os"
	"path/filepath"
)

// CopyForVerifiers copies to another directory what a process needs that
// checks identities but issues none: what it trusts, and certificate and key
// of its listener. No authority's key is among it.
func CopyForVerifiers(dir, to string) error {
	if err := makeDir(to); err != nil {
		return err
	}
	for _, name := range []string{CollectorCAFile, ServerCAFile, RootFile, ServerCertFile, ServerKeyFile} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return fmt.Errorf("copy for verifiers: %w", err)
		}
		mode := os.FileMode(0o644)
		if name == ServerKeyFile {
			mode = 0o600
		}
		if err := writeFile(filepath.Join(to, name), data, mode, replace); err != nil {
			return err
		}
	}
	return nil
}
