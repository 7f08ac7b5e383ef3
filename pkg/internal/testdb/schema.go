package testdb

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/store"
)

// applySchema makes what the product itself makes at its first start.
func applySchema(ctx context.Context, databaseURL string) error {
	families, err := catalogue.Default()
	if err != nil {
		return err
	}
	if err := store.Migrate(ctx, databaseURL); err != nil {
		return err
	}
	return store.EnsureSchema(ctx, databaseURL, families)
}

// schemaVersion is a hash over all that applySchema depends on: definitions, and the code that turns them into tables.
func schemaVersion() (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	for _, dir := range []string{"schemas/sql", "schemas/metrics", "pkg/catalogue", "pkg/store"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(hash, "%s %d\n%s", strings.TrimPrefix(path, root), len(text), text)
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(hash.Sum(nil)[:8]), nil
}

// moduleRoot is the folder of go.mod; tests run in the folder of their package.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("no go.mod above the working folder")
		}
		dir = parent
	}
}
