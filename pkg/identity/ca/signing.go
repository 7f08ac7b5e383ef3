package ca

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// signingLife bounds what a stolen signing key is worth. A key is replaced at
// the first start in the second half of its life.
const signingLife = 2 * 365 * 24 * time.Hour

// SigningKey is the public half of a key that signs access tokens, with the
// root's word for it: what stands in the identity bucket. Whoever can write
// there but does not hold the root key can't add one.
type SigningKey struct {
	KID       string    `json:"kid"` // RFC 7638 thumbprint of the public key
	PublicKey []byte    `json:"public_key"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Signature []byte    `json:"signature"` // by the root, over statement()
}

// newSigningKey makes a key and has the root vouch for it.
func newSigningKey(root ed25519.PrivateKey, now time.Time) (ed25519.PrivateKey, SigningKey, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, SigningKey{}, fmt.Errorf("make signing key: %w", err)
	}
	return private, vouch(root, public, now), nil
}

func vouch(root ed25519.PrivateKey, public ed25519.PublicKey, now time.Time) SigningKey {
	k := SigningKey{
		KID: keyID(public), PublicKey: public,
		NotBefore: now.Add(-backdate).UTC().Truncate(time.Second),
		NotAfter:  now.Add(signingLife).UTC().Truncate(time.Second),
	}
	k.Signature = ed25519.Sign(root, k.statement())
	return k
}

// Verify errs unless the id is the key's own and one of the roots vouches for
// key and dates. It does not look at the clock.
func (k SigningKey) Verify(roots []ed25519.PublicKey) error {
	if len(k.PublicKey) != ed25519.PublicKeySize {
		return errors.New("signing key is not an Ed25519 key")
	}
	if k.KID != keyID(k.PublicKey) {
		return errors.New("signing key is not the one that its id names")
	}
	for _, root := range roots {
		if ed25519.Verify(root, k.statement(), k.Signature) {
			return nil
		}
	}
	return errors.New("signing key lacks the root's signature")
}

// Covers reports whether the key may be used at the time.
func (k SigningKey) Covers(at time.Time) bool {
	return !at.Before(k.NotBefore) && at.Before(k.NotAfter)
}

// statement is what the root signs. The prefix keeps the signature from
// meaning anything elsewhere; fixed lengths keep it from being read two ways.
func (k SigningKey) statement() []byte {
	b := []byte("pganalytics token signing key v1\x00")
	b = append(b, k.PublicKey...)
	b = binary.BigEndian.AppendUint64(b, uint64(k.NotBefore.Unix()))
	return binary.BigEndian.AppendUint64(b, uint64(k.NotAfter.Unix()))
}

// keyID is the JWK thumbprint of RFC 7638 (for OKP keys RFC 8037, A.3).
func keyID(public ed25519.PublicKey) string {
	x := base64.RawURLEncoding.EncodeToString(public)
	sum := sha256.Sum256([]byte(`{"crv":"Ed25519","kty":"OKP","x":"` + x + `"}`))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// initSigningKey makes the signing key, and another one once half of its life
// is over and the root key is at hand. Tokens live for minutes, so nothing
// waits on the old key longer than that.
func initSigningKey(dir string, now time.Time) error {
	path, rootPath := filepath.Join(dir, signingKeyFile), filepath.Join(dir, rootKeyFile)
	_, record, err := readSigningKey(path)
	haveRoot := exists(rootPath)
	switch {
	case err == nil && (record.Covers(now.Add(signingLife/2)) || !haveRoot && record.Covers(now)):
		return nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	case !haveRoot:
		return fmt.Errorf("%s must be made anew, and %s is not there to vouch for it", path, rootPath)
	}
	root, err := readEd25519Key(rootPath)
	if err != nil {
		return err
	}
	_, err = replaceSigningKey(path, root, now)
	return err
}

// RenewSigningKey replaces the signing key once half of its life is over and
// the root key is at hand. Call it daily; whoever signs reads it again.
func RenewSigningKey(dir string, now time.Time) error {
	if err := initSigningKey(dir, now); err != nil {
		return fmt.Errorf("renew signing key: %w", err)
	}
	return nil
}

func replaceSigningKey(path string, root ed25519.PrivateKey, now time.Time) (SigningKey, error) {
	key, record, err := newSigningKey(root, now)
	if err != nil {
		return record, err
	}
	encoded, err := encodeSigningKey(key, record)
	if err != nil {
		return record, err
	}
	return record, writeFile(path, encoded, 0o600, replace)
}

// RevokedKey names a signing key that must not be believed any more, because
// somebody else may have it.
type RevokedKey struct {
	KID       string    `json:"kid"`
	NotAfter  time.Time `json:"not_after"` // of the key
	RevokedAt time.Time `json:"revoked_at"`
}

// Fingerprint returns the key's id in the form in which certificates are
// named: both are SHA-256 sums. It errs if the id is none.
func (k RevokedKey) Fingerprint() (string, error) { return KeyFingerprint(k.KID) }

// KeyFingerprint returns a signing key's id in the form in which certificates
// are named, so that one list of revocations does for both. It errs if the id
// is no SHA-256 sum.
func KeyFingerprint(kid string) (string, error) {
	sum, err := base64.RawURLEncoding.Strict().DecodeString(kid)
	if err != nil || len(sum) != sha256.Size {
		return "", errors.New("key id is not a thumbprint")
	}
	return "sha256:" + hex.EncodeToString(sum), nil
}

// RotateSigningKey replaces the signing key now; the root key must be at hand.
// With revokeOld, tokens that the old one signed are refused as soon as
// authsvc has read the directory again; without, they stay good until their
// end. It returns the new key's public half.
func RotateSigningKey(dir string, revokeOld bool, now time.Time) (SigningKey, error) {
	path := filepath.Join(dir, signingKeyFile)
	_, old, err := readSigningKey(path)
	if err != nil {
		return SigningKey{}, fmt.Errorf("rotate signing key: %w", err)
	}
	root, err := readEd25519Key(filepath.Join(dir, rootKeyFile))
	if err != nil {
		return SigningKey{}, fmt.Errorf("rotate signing key: %w", err)
	}
	record, err := replaceSigningKey(path, root, now)
	if err == nil && revokeOld {
		// After the new key is there: a revoked one must never be all there is.
		err = revokeKey(filepath.Join(dir, revokedKeysFile), RevokedKey{KID: old.KID, NotAfter: old.NotAfter, RevokedAt: now.UTC()})
	}
	if err != nil {
		return SigningKey{}, fmt.Errorf("rotate signing key: %w", err)
	}
	return record, nil
}

func revokeKey(path string, k RevokedKey) error {
	revoked, err := readRevokedKeys(path)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(append(revoked, k), jsontext.WithIndent("  "))
	if err != nil {
		return fmt.Errorf("encode revoked keys: %w", err)
	}
	return writeFile(path, append(raw, '\n'), 0o644, replace)
}

// readRevokedKeys returns none if there is no such file.
func readRevokedKeys(path string) ([]RevokedKey, error) {
	raw, err := readTrusted(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var revoked []RevokedKey
	if err := json.Unmarshal(raw, &revoked, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, k := range revoked {
		if _, err := k.Fingerprint(); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return revoked, nil
}

// Key and record stand in one file, so that no stop and no second process can
// leave the one without the other.
func encodeSigningKey(key ed25519.PrivateKey, record SigningKey) ([]byte, error) {
	pemKey, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(record)
	if err != nil {
		return nil, fmt.Errorf("encode signing key record: %w", err)
	}
	return append(pemKey, pem.EncodeToMemory(&pem.Block{Type: blockSigningRecord, Bytes: raw})...), nil
}

func readSigningKey(path string) (ed25519.PrivateKey, SigningKey, error) {
	var record SigningKey
	data, err := readSecret(path)
	if err != nil {
		return nil, record, err
	}
	first, rest := nextBlock(bytes.TrimSpace(data))
	second, rest := nextBlock(bytes.TrimSpace(rest))
	if first == nil || second == nil || second.Type != blockSigningRecord || len(bytes.TrimSpace(rest)) > 0 {
		return nil, record, fmt.Errorf("%s is not a private key followed by its %s", path, blockSigningRecord)
	}
	key, err := parseKey(path, first)
	if err != nil {
		return nil, record, err
	}
	signer, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, record, fmt.Errorf("%s is not an Ed25519 key", path)
	}
	if err := json.Unmarshal(second.Bytes, &record); err != nil {
		return nil, record, fmt.Errorf("%s: %s: %w", path, blockSigningRecord, err)
	}
	if !signer.Public().(ed25519.PublicKey).Equal(ed25519.PublicKey(record.PublicKey)) {
		return nil, record, fmt.Errorf("%s: the %s describes another key", path, blockSigningRecord)
	}
	return signer, record, nil
}
