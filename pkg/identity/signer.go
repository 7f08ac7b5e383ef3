package identity

import (
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"

	"pganalytics/pkg/identity/ca"
)

// Signer makes access tokens. It needs neither a database nor NATS.
type Signer struct {
	tokens  Tokens
	now     func() time.Time
	current atomic.Pointer[keyPair]
}

type keyPair struct {
	key    ed25519.PrivateKey
	record ca.SigningKey
}

// NewSigner makes a signer. record is the public half of key with the root's
// signature; verifiers find it in the bucket by its id. now defaults to
// time.Now.
func NewSigner(tokens Tokens, key ed25519.PrivateKey, record ca.SigningKey, now func() time.Time) (*Signer, error) {
	if now == nil {
		now = time.Now
	}
	s := &Signer{tokens: tokens.withDefaults(), now: now}
	return s, s.Use(key, record)
}

// Use signs with another key from now on. Let verifiers know it first.
func (s *Signer) Use(key ed25519.PrivateKey, record ca.SigningKey) error {
	if !ed25519.PublicKey(record.PublicKey).Equal(key.Public()) {
		return errors.New("token signer: key and record do not belong together")
	}
	s.current.Store(&keyPair{key, record})
	return nil
}

// Record returns the public half of the signing key, for the bucket.
func (s *Signer) Record() ca.SigningKey { return s.current.Load().record }

// CollectorToken returns an access token that works only together with cert,
// and when it expires.
func (s *Signer) CollectorToken(id uuid.UUID, hostname string, cert *x509.Certificate) (string, time.Time, error) {
	now := s.now().UTC().Truncate(time.Second)
	expires := now.Add(CollectorTokenLife)
	signed, err := s.sign(accessTokenType, now, expires, &collectorClaims{
		registeredClaims: registeredClaims{
			Issuer: s.tokens.Issuer, Audience: s.tokens.Audience, Type: accessType,
			Subject: subjectPrefix + id.String(), ID: uuid.NewString(),
			ExpiresAt: expires.Unix(), NotBefore: now.Unix(), IssuedAt: now.Unix(),
		},
		CollectorID: id.String(), Hostname: hostname, Confirmation: confirmation{X5T: x5t(cert)},
	})
	return signed, expires, err
}

func (s *Signer) sign(kind string, from, to time.Time, claims jwt.Claims) (string, error) {
	pair := s.current.Load()
	if !pair.record.Covers(from) || !pair.record.Covers(to) {
		return "", errors.New("sign token: the signing key is out of its time")
	}
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, claims)
	token.Header = map[string]any{"alg": jwt.SigningMethodEdDSA.Alg(), "typ": kind, "kid": pair.record.KID}
	signed, err := token.SignedString(pair.key)
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	return signed, nil
}
