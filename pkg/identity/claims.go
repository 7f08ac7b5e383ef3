package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

const (
	// CollectorTokenLife is how long a collector's access token is valid. A
	// token that claims a longer life is refused, whoever signed it.
	CollectorTokenLife = 30 * time.Minute

	// clockLeeway is what the clocks of authsvc and a verifier may differ by.
	clockLeeway = 30 * time.Second

	// maxTokenBytes bounds what is parsed. Our own tokens have about 700 bytes;
	// a hostname of 253 adds as many.
	maxTokenBytes = 4096

	accessTokenType = "at+jwt"
	accessType      = "access"
	subjectPrefix   = "collector:"
)

// Tokens says who issues access tokens and for whom: the same in the signer
// and in every verifier.
type Tokens struct {
	Issuer   string // claim iss. Defaults to pganalytics-authsvc
	Audience string // claim aud. Defaults to pganalytics
}

func (t Tokens) withDefaults() Tokens {
	if t.Issuer == "" {
		t.Issuer = "pganalytics-authsvc"
	}
	if t.Audience == "" {
		t.Audience = "pganalytics"
	}
	return t
}

// header is all that a token's header may hold. A header that asks for more
// (crit, jwk, jku, x5u, x5c, zip …) is refused.
type header struct {
	Algorithm string `json:"alg"`
	Type      string `json:"typ"`
	KeyID     string `json:"kid"`
}

// registeredClaims are in every token. The times are whole seconds since 1970.
// Audience is one string, not a list.
type registeredClaims struct {
	Issuer    string `json:"iss"`
	Audience  string `json:"aud"`
	Subject   string `json:"sub"`
	ID        string `json:"jti"`
	ExpiresAt int64  `json:"exp"`
	NotBefore int64  `json:"nbf"`
	IssuedAt  int64  `json:"iat"`
	Type      string `json:"type"`
}

// collectorClaims are the claims of a collector's access token.
type collectorClaims struct {
	registeredClaims
	CollectorID  string       `json:"collector_id"`
	Hostname     string       `json:"hostname"`
	Confirmation confirmation `json:"cnf"`
}

type confirmation struct {
	X5T string `json:"x5t#S256"` // RFC 8705: base64url SHA-256 of the certificate's DER
}

// UnmarshalJSON is strict where encoding/json is not: no duplicate names, no
// other spelling of a name, whole numbers only. Unknown claims are ignored, so
// that a newer authsvc may add some.
func (c *collectorClaims) UnmarshalJSON(data []byte) error {
	type plain collectorClaims // without this method
	return json.Unmarshal(data, (*plain)(c))
}

// The getters of jwt.Claims: a zero time is a missing one.

func (c *registeredClaims) GetExpirationTime() (*jwt.NumericDate, error) {
	return date(c.ExpiresAt), nil
}
func (c *registeredClaims) GetNotBefore() (*jwt.NumericDate, error) { return date(c.NotBefore), nil }
func (c *registeredClaims) GetIssuedAt() (*jwt.NumericDate, error)  { return date(c.IssuedAt), nil }
func (c *registeredClaims) GetIssuer() (string, error)              { return c.Issuer, nil }
func (c *registeredClaims) GetSubject() (string, error)             { return c.Subject, nil }
func (c *registeredClaims) GetAudience() (jwt.ClaimStrings, error) {
	return jwt.ClaimStrings{c.Audience}, nil
}

func date(seconds int64) *jwt.NumericDate {
	if seconds <= 0 {
		return nil
	}
	return jwt.NewNumericDate(time.Unix(seconds, 0))
}

// check errs unless the token is of the type and lives no longer than such
// tokens may.
func (c *registeredClaims) check(kind string, most time.Duration) error {
	switch life := c.ExpiresAt - c.IssuedAt; {
	case c.IssuedAt <= 0:
		return errors.New("iat is missing")
	case life <= 0 || life > int64(most/time.Second):
		return errors.New("life is not within the bounds")
	case c.Type != kind:
		return errors.New("type is another")
	case c.ID == "":
		return errors.New("jti is missing")
	}
	return nil
}

// Validate is called by the jwt parser after its own checks of times, issuer
// and audience.
func (c *collectorClaims) Validate() error {
	if err := c.check(accessType, CollectorTokenLife); err != nil {
		return err
	}
	if c.Subject != subjectPrefix+c.CollectorID {
		return errors.New("sub and collector_id differ")
	}
	return nil
}

// boundTo errs unless the token was made for this collector and certificate.
func (c *collectorClaims) boundTo(id uuid.UUID, cert *x509.Certificate) error {
	if c.CollectorID != id.String() || c.Confirmation.X5T != x5t(cert) {
		return errors.New("token and certificate do not belong together")
	}
	return nil
}

func x5t(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
