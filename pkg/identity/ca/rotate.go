package ca

import (
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Anchor is something that others trust and that can be replaced.
type Anchor uint8

// The anchors.
const (
	CollectorAnchor Anchor = iota + 1 // signs collectors' certificates
	ServerAnchor                      // signs the listeners' certificate
	RootAnchor                        // vouches for signing keys
)

var anchorNames = map[string]Anchor{"collector": CollectorAnchor, "server": ServerAnchor, "root": RootAnchor}

// ParseAnchor is the inverse of String.
func ParseAnchor(s string) (Anchor, error) {
	a, ok := anchorNames[s]
	if !ok {
		return 0, fmt.Errorf("anchor %q: must be collector, server or root", s)
	}
	return a, nil
}

// String returns the anchor's name on the command line.
func (a Anchor) String() string {
	for name, anchor := range anchorNames {
		if anchor == a {
			return name
		}
	}
	return "none"
}

// Rotation replaces one anchor of a directory without a failed request:
//
//	┌─ Begin ──▶ both are trusted, the old one signs
//	│   (wait)   until everyone who checks has the new one
//	├─ Switch ─▶ both are trusted, the new one signs
//	│   (wait)   until nothing that the old one signed is in use
//	└─ Finish ─▶ the new one is trusted alone
//
// Each step may be repeated, and may be stopped half-way and repeated. Running
// services read the files again by themselves; copies elsewhere are the
// operator's to replace after each step.
type Rotation struct {
	Dir    string
	Anchor Anchor
	Now    time.Time
	// Force makes a step before its time: for a key that was stolen. Who has
	// nothing newer is then locked out, and must be enrolled again.
	Force bool
}

// ErrTooEarly says that a step would lock somebody out; see Rotation.Force.
var ErrTooEarly = errors.New("too early")

// What must be waited for.
const (
	// Collectors learn of a new server CA when they renew, the last of them 30
	// days after their certificate's end.
	serverKnownAfter = CollectorLife + 30*24*time.Hour
	// A certificate of the old collector CA may be renewed for as long.
	collectorsDoneAfter = CollectorLife + 30*24*time.Hour
	// A refresh token lives for a day.
	tokensDoneAfter = 25 * time.Hour
)

// Begin makes the new anchor and has it trusted beside the old one.
func (r Rotation) Begin() error { return r.step("begin", r.begin) }

// Switch has the new anchor sign from now on.
func (r Rotation) Switch() error { return r.step("switch", r.swap) }

// Finish ends the trust in the old anchor.
func (r Rotation) Finish() error { return r.step("finish", r.finish) }

func (r Rotation) step(name string, do func() error) error {
	if err := do(); err != nil {
		return fmt.Errorf("%s the replacement of the %s anchor: %w", name, r.Anchor, err)
	}
	return nil
}

func (r Rotation) begin() error {
	trusted, err := r.trusted()
	if err != nil {
		return err
	}
	if len(trusted) > 1 {
		if exists(r.nextKeyPath()) {
			return nil // begun before
		}
		return errors.New("the replacement before is not finished")
	}
	generate := newEd25519Key
	if r.Anchor == ServerAnchor {
		generate = newECKey
	}
	// The key first: one that is left over from a stop half-way is used.
	if err := makeKey(r.nextKeyPath(), generate); err != nil {
		return err
	}
	key, err := readKey(r.nextKeyPath())
	if err != nil {
		return err
	}
	next, err := r.public(key)
	if err != nil {
		return err
	}
	return r.trust(append(trusted, next))
}

func (r Rotation) swap() error {
	trusted, err := r.trusted()
	if err != nil {
		return err
	}
	if len(trusted) != 2 {
		return errors.New("begin it first")
	}
	if exists(r.nextKeyPath()) {
		if err := r.waited(serverKnownAfter, r.Anchor == ServerAnchor); err != nil {
			return err
		}
		// The one act that counts: whose key lies here signs.
		if err := os.Rename(r.nextKeyPath(), r.keyPath()); err != nil {
			return err
		}
		if err := syncDir(r.Dir); err != nil {
			return err
		}
	}
	if trusted, err = r.signerFirst(trusted); err != nil {
		return err
	}
	if err := r.trust(trusted); err != nil {
		return err
	}
	switch r.Anchor {
	case ServerAnchor:
		return RenewServer(r.Dir, nil, r.Now)
	case RootAnchor:
		return r.resign()
	default:
		return nil
	}
}

func (r Rotation) finish() error {
	trusted, err := r.trusted()
	if err != nil {
		return err
	}
	if exists(r.nextKeyPath()) {
		return errors.New("switch first")
	}
	if len(trusted) == 1 {
		return nil // finished before
	}
	wait := map[Anchor]time.Duration{CollectorAnchor: collectorsDoneAfter, RootAnchor: tokensDoneAfter}[r.Anchor]
	if err := r.waited(wait, wait > 0); err != nil {
		return err
	}
	if trusted, err = r.signerFirst(trusted); err != nil {
		return err
	}
	return r.trust(trusted[:1])
}

// waited errs unless the trusted file has been as it is for so long.
func (r Rotation) waited(wait time.Duration, matters bool) error {
	if !matters || r.Force {
		return nil
	}
	info, err := os.Stat(r.trustPath())
	if err != nil {
		return err
	}
	if due := info.ModTime().Add(wait); r.Now.Before(due) {
		return fmt.Errorf("%w: wait until %s, or force it", ErrTooEarly, due.UTC().Format(time.RFC3339))
	}
	return nil
}

func (r Rotation) names() (key, trust string) {
	switch r.Anchor {
	case CollectorAnchor:
		return collectorCAKeyFile, CollectorCAFile
	case ServerAnchor:
		return serverCAKeyFile, ServerCAFile
	default:
		return rootKeyFile, RootFile
	}
}

func (r Rotation) keyPath() string {
	key, _ := r.names()
	return filepath.Join(r.Dir, key)
}

func (r Rotation) trustPath() string {
	_, trust := r.names()
	return filepath.Join(r.Dir, trust)
}

func (r Rotation) nextKeyPath() string {
	key, _ := r.names()
	base := strings.TrimSuffix(key, filepath.Ext(key))
	return filepath.Join(r.Dir, base+nextSuffix+filepath.Ext(key))
}

// trusted returns the PEM blocks of the trusted file.
func (r Rotation) trusted() ([]*pem.Block, error) {
	if r.Anchor < CollectorAnchor || r.Anchor > RootAnchor {
		return nil, errors.New("no such anchor")
	}
	var blocks []*pem.Block
	if r.Anchor == RootAnchor {
		roots, err := LoadRoots(r.trustPath())
		if err != nil {
			return nil, err
		}
		for _, root := range roots {
			block, err := publicBlock(root)
			if err != nil {
				return nil, err
			}
			blocks = append(blocks, block)
		}
		return blocks, nil
	}
	certs, err := LoadCertificates(r.trustPath())
	if err != nil {
		return nil, err
	}
	for _, c := range certs {
		blocks = append(blocks, &pem.Block{Type: blockCertificate, Bytes: c.Raw})
	}
	return blocks, nil
}

func (r Rotation) trust(blocks []*pem.Block) error {
	var text []byte
	for _, b := range blocks {
		text = append(text, pem.EncodeToMemory(b)...)
	}
	return writeFile(r.trustPath(), text, 0o644, replace)
}

// public returns what others shall trust for the key.
func (r Rotation) public(key crypto.Signer) (*pem.Block, error) {
	if r.Anchor == RootAnchor {
		return publicBlock(key.Public())
	}
	// As the one before: same name, usage and trust domain.
	certs, err := LoadCertificates(r.trustPath())
	if err != nil {
		return nil, err
	}
	old := certs[0]
	if len(old.ExtKeyUsage) != 1 {
		return nil, fmt.Errorf("%s is not one of ours", r.trustPath())
	}
	var uri *url.URL
	if len(old.URIs) == 1 {
		uri = old.URIs[0]
	}
	cert, err := newCA(key, old.Subject.CommonName, old.ExtKeyUsage[0], uri, r.Now)
	if err != nil {
		return nil, err
	}
	return &pem.Block{Type: blockCertificate, Bytes: cert.Raw}, nil
}

func publicBlock(public crypto.PublicKey) (*pem.Block, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("encode root public key: %w", err)
	}
	return &pem.Block{Type: blockPublicKey, Bytes: der}, nil
}

// signerFirst moves the anchor of the key that signs to the front.
func (r Rotation) signerFirst(blocks []*pem.Block) ([]*pem.Block, error) {
	key, err := readKey(r.keyPath())
	if err != nil {
		return nil, err
	}
	for i, b := range blocks {
		same := false
		if r.Anchor == RootAnchor {
			own, err := publicBlock(key.Public())
			if err != nil {
				return nil, err
			}
			same = slices.Equal(own.Bytes, b.Bytes)
		} else if cert, err := x509.ParseCertificate(b.Bytes); err == nil {
			same = sameKey(key, cert)
		}
		if same {
			return append([]*pem.Block{b}, slices.Delete(slices.Clone(blocks), i, i+1)...), nil
		}
	}
	return nil, fmt.Errorf("%s is not the key of anything in %s", r.keyPath(), r.trustPath())
}

// resign has the new root vouch for a new signing key. One that the old root
// vouched for would be refused after Finish.
func (r Rotation) resign() error {
	path := filepath.Join(r.Dir, signingKeyFile)
	root, err := readEd25519Key(r.keyPath())
	if err != nil {
		return err
	}
	_, current, err := readSigningKey(path)
	if err != nil {
		return err
	}
	if current.Verify([]ed25519.PublicKey{root.Public().(ed25519.PublicKey)}) == nil {
		return nil
	}
	_, err = replaceSigningKey(path, root, r.Now)
	return err
}
