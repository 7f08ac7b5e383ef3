package ca

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"path/filepath"
	"time"
)

// Overview is the public side of an authority's directory.
type Overview struct {
	Anchors     []AnchorState `json:"anchors"`
	SigningKey  SigningKey    `json:"signing_key"`
	RevokedKeys []RevokedKey  `json:"revoked_keys"`
}

// AnchorState is one trusted anchor.
type AnchorState struct {
	Anchor      string    `json:"anchor"`
	State       string    `json:"state"` // signs; next: will after the switch; former: did before it
	Fingerprint string    `json:"fingerprint"`
	NotAfter    time.Time `json:"not_after,omitzero"` // a root has none
}

// Inspect reads an authority's directory for people to look at.
func Inspect(dir string) (Overview, error) {
	var o Overview
	for _, anchor := range []Anchor{CollectorAnchor, ServerAnchor, RootAnchor} {
		r := Rotation{Dir: dir, Anchor: anchor}
		blocks, err := r.trusted()
		if err != nil {
			return o, err
		}
		if anchor != RootAnchor || exists(r.keyPath()) { // the root's key may lie elsewhere
			if blocks, err = r.signerFirst(blocks); err != nil {
				return o, err
			}
		}
		for i, b := range blocks {
			sum := sha256.Sum256(b.Bytes)
			s := AnchorState{Anchor: anchor.String(), State: "signs", Fingerprint: "sha256:" + hex.EncodeToString(sum[:])}
			if i > 0 {
				s.State = "former"
				if exists(r.nextKeyPath()) {
					s.State = "next"
				}
			}
			if cert, err := x509.ParseCertificate(b.Bytes); err == nil {
				s.NotAfter = cert.NotAfter.UTC()
			}
			o.Anchors = append(o.Anchors, s)
		}
	}
	var err error
	if _, o.SigningKey, err = readSigningKey(filepath.Join(dir, signingKeyFile)); err != nil {
		return o, err
	}
	o.RevokedKeys, err = readRevokedKeys(filepath.Join(dir, revokedKeysFile))
	return o, err
}
