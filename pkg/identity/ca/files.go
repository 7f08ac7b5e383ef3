package ca

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const maxFileBytes = 1 << 20

// create or replace: a key is never overwritten, for a lost CA key can't be
// had back; a certificate over the same key may be.
type writeMode uint8

const (
	createOnly writeMode = iota
	replace
)

// writeFile puts the whole file on disk under its name, or nothing. With
// createOnly a file that is already there stays and fs.ErrExist is returned.
func writeFile(path string, data []byte, perm fs.FileMode, mode writeMode) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // 0600
	if err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone already after a rename
	if _, err = f.Write(data); err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if mode == replace {
		err = os.Rename(f.Name(), path)
	} else {
		err = os.Link(f.Name(), path) // unlike rename, it fails if path exists
	}
	if err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

// makeDir makes the directory, 0700, or errs if others may write to the one
// that is there: they could replace a file whatever its own mode.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create %s: %w", dir, err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("read %s: %w", dir, err)
	}
	if perm := info.Mode().Perm(); perm&0o022 != 0 {
		return fmt.Errorf("%s holds keys and may be written by others (mode %04o): run chmod go-w on it", dir, perm)
	}
	return nil
}

// readSecret reads a file that only its owner may read. The mode is that of
// the opened file, so that it can't be exchanged in between.
func readSecret(path string) ([]byte, error) {
	return readFile(path, func(info fs.FileInfo) error {
		if perm := info.Mode().Perm(); perm&0o077 != 0 {
			return fmt.Errorf("%s is a private key and open to others (mode %04o): run chmod 600 on it", path, perm)
		}
		return nil
	})
}

// readTrusted reads a file that only its owner may write: what it says is
// believed.
func readTrusted(path string) ([]byte, error) {
	return readFile(path, func(info fs.FileInfo) error {
		if perm := info.Mode().Perm(); perm&0o022 != 0 {
			return fmt.Errorf("%s is trusted and may be written by others (mode %04o): run chmod go-w on it", path, perm)
		}
		return nil
	})
}

func readFile(path string, check func(fs.FileInfo) error) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err // names operation and path itself
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if err := check(info); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxFileBytes)
	}
	return data, nil
}

func readCertificates(path string) ([]*x509.Certificate, error) {
	data, err := readTrusted(path)
	if err != nil {
		return nil, err
	}
	certs, err := parseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return certs, nil
}

func readKey(path string) (crypto.Signer, error) {
	data, err := readSecret(path)
	if err != nil {
		return nil, err
	}
	block, rest := nextBlock(bytes.TrimSpace(data))
	if block == nil || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%s is not exactly one PEM block", path)
	}
	return parseKey(path, block)
}

func parseKey(path string, block *pem.Block) (crypto.Signer, error) {
	if block.Type != blockPrivateKey {
		return nil, fmt.Errorf("%s does not hold a PEM block of type %s", path, blockPrivateKey)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s is not a PKCS #8 key", path) // the cause might quote key material
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s holds a key that can't sign", path)
	}
	return key, nil
}

func readEd25519Key(path string) (ed25519.PrivateKey, error) {
	signer, err := readKey(path)
	if err != nil {
		return nil, err
	}
	key, ok := signer.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s is not an Ed25519 key", path)
	}
	return key, nil
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: blockPrivateKey, Bytes: der}), nil
}

// LoadCertificates reads a PEM bundle of CA certificates that its owner alone
// may write. Two CAs may be trusted at once while one replaces the other.
func LoadCertificates(path string) ([]*x509.Certificate, error) {
	certs, err := readCertificates(path)
	if err != nil {
		return nil, fmt.Errorf("load CA certificates: %w", err)
	}
	for _, c := range certs {
		if !c.IsCA {
			return nil, fmt.Errorf("load CA certificates: %s holds a certificate that is no CA", path)
		}
	}
	return certs, nil
}

// LoadRoots reads the root public keys that a verifier trusts to vouch for
// signing keys.
func LoadRoots(path string) ([]ed25519.PublicKey, error) {
	data, err := readTrusted(path)
	if err != nil {
		return nil, fmt.Errorf("load root keys: %w", err)
	}
	var roots []ed25519.PublicKey
	for rest := bytes.TrimSpace(data); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var block *pem.Block
		if block, rest = nextBlock(rest); block == nil || block.Type != blockPublicKey {
			return nil, fmt.Errorf("load root keys: %s holds more than PEM blocks of type %s", path, blockPublicKey)
		}
		parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("load root keys: %s: %w", path, err)
		}
		key, ok := parsed.(ed25519.PublicKey)
		if !ok {
			return nil, fmt.Errorf("load root keys: %s holds a key that is not Ed25519", path)
		}
		roots = append(roots, key)
	}
	if len(roots) == 0 {
		return nil, fmt.Errorf("load root keys: %s holds no key", path)
	}
	return roots, nil
}
