package identity

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/golang-jwt/jwt/v5"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/identity/ca"
)

// VerifierConfig says whom to believe.
type VerifierConfig struct {
	// CollectorCAs are the anchors of collector certificates; two while one
	// replaces the other.
	CollectorCAs []*x509.Certificate
	// TrustDomain of the collectors' SPIFFE ids.
	TrustDomain string
	Tokens      Tokens
	// MaxAge is how long the snapshot may be unconfirmed before every answer
	// is Unavailable. Defaults to 15 min. Longer: revocations may be missed for
	// as long. Shorter: pushes stop during a short absence of NATS.
	MaxAge time.Duration
	// Now is the verifier's clock. Defaults to time.Now.
	Now func() time.Time
	// OnAPIToken is told when an API token was used, with each request; it must
	// not block. Defaults to nobody.
	OnAPIToken func(id string, at time.Time)
}

// Validate reports all faults at once.
func (c VerifierConfig) Validate() error {
	var errs []error
	if len(c.CollectorCAs) == 0 {
		errs = append(errs, errors.New("collector CA: at least one certificate is needed"))
	}
	if err := ca.CheckTrustDomain(c.TrustDomain); err != nil {
		errs = append(errs, err)
	}
	if c.MaxAge < 0 {
		errs = append(errs, fmt.Errorf("--identity-max-age %s: must not be negative", c.MaxAge))
	}
	return errors.Join(errs...)
}

// Verifier checks the credentials of collectors. Its methods may be called at
// once.
type Verifier struct {
	chains        atomic.Pointer[chains]
	snapshot      *Snapshot
	parser        *jwt.Parser
	validator     *jwt.Validator // the parser's, without the signature
	believed      believed
	refreshParser *jwt.Parser
	maxAge        time.Duration
	now           func() time.Time
	onAPIToken    func(id string, at time.Time)
}

// NewVerifier makes a verifier on top of a snapshot that something else feeds.
func NewVerifier(cfg VerifierConfig, snapshot *Snapshot) (*Verifier, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("identity verifier: %w", err)
	}
	if cfg.MaxAge == 0 {
		cfg.MaxAge = 15 * time.Minute
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	chains, err := newChains(cfg.CollectorCAs, cfg.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("identity verifier: %w", err)
	}
	tokens := cfg.Tokens.withDefaults()
	rules := func(audience string) []jwt.ParserOption {
		return []jwt.ParserOption{
			jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}),
			jwt.WithIssuer(tokens.Issuer), jwt.WithAudience(audience),
			jwt.WithExpirationRequired(), jwt.WithNotBeforeRequired(), jwt.WithIssuedAt(),
			jwt.WithLeeway(clockLeeway), jwt.WithTimeFunc(cfg.Now), jwt.WithStrictDecoding(),
		}
	}
	v := &Verifier{
		snapshot:      snapshot,
		parser:        jwt.NewParser(rules(tokens.Audience)...),
		validator:     jwt.NewValidator(rules(tokens.Audience)...),
		refreshParser: jwt.NewParser(rules(tokens.Audience + refreshSuffix)...),
		maxAge:        cfg.MaxAge,
		now:           cfg.Now,
		onAPIToken:    cfg.OnAPIToken,
	}
	v.chains.Store(chains)
	return v, nil
}

// CollectorCAs returns the anchors of collector certificates, for the listener.
// What the listener lets in is checked again with each request.
func (v *Verifier) CollectorCAs() *x509.CertPool { return v.chains.Load().pool }

// TrustCollectorCAs replaces the anchors of collector certificates, also for
// connections that are open. It errs, and leaves them as they are, on anchors
// that NewVerifier would refuse.
func (v *Verifier) TrustCollectorCAs(anchors []*x509.Certificate) error {
	if len(anchors) == 0 {
		return errors.New("trust collector CAs: at least one certificate is needed")
	}
	// What was verified before is verified again: its anchor may be gone.
	chains, err := newChains(anchors, v.chains.Load().trustDomain)
	if err != nil {
		return fmt.Errorf("trust collector CAs: %w", err)
	}
	v.chains.Store(chains)
	return nil
}

// Ready errs with Unavailable while no request can be decided: before the
// first snapshot and when it has not been confirmed for too long.
func (v *Verifier) Ready() error { return v.snapshot.fresh(v.now(), v.maxAge) }

// KnowsKey reports whether tokens that the key signs are believed here: it has
// reached the snapshot, and with it, or in moments, every other verifier.
func (v *Verifier) KnowsKey(kid string) bool {
	_, err := v.key(kid)
	return err == nil
}

// VerifyCollector checks everything a push needs: certificate, token, and that
// they belong together. authorization is the value of that header. It looks
// everything up anew, so a live connection ends to be good when its collector
// does. It errs with Unauthenticated, Forbidden (disabled or locked), or
// Unavailable (see Ready).
func (v *Verifier) VerifyCollector(cs tls.ConnectionState, authorization string) (Principal, error) {
	p, cert, err := v.verifyCertificate(cs, 0)
	if err != nil {
		return Principal{}, err
	}
	claims, err := v.parseToken(authorization)
	if err != nil {
		return Principal{}, err
	}
	if err := claims.boundTo(p.CollectorID, cert); err != nil {
		return Principal{}, refuseToken(err)
	}
	return p, nil
}

// VerifyCertificate is VerifyCollector without the token: for the request that
// asks for one.
func (v *Verifier) VerifyCertificate(cs tls.ConnectionState) (Principal, error) {
	p, _, err := v.verifyCertificate(cs, 0)
	return p, err
}

// VerifyRenewal is VerifyCertificate for the request that asks for a new
// certificate: one that expired up to RenewalGrace ago will do.
func (v *Verifier) VerifyRenewal(cs tls.ConnectionState) (Principal, error) {
	p, _, err := v.verifyCertificate(cs, RenewalGrace)
	return p, err
}

func (v *Verifier) verifyCertificate(cs tls.ConnectionState, grace time.Duration) (Principal, *x509.Certificate, error) {
	now := v.now()
	// First of all: what can't be decided is 503, also for what looks bad.
	if err := v.snapshot.fresh(now, v.maxAge); err != nil {
		return Principal{}, nil, err
	}
	// The handshake proved possession of the key; the rest is proved here,
	// whatever the listener's configuration.
	if !cs.HandshakeComplete || cs.Version < tls.VersionTLS13 || len(cs.PeerCertificates) == 0 {
		return Principal{}, nil, fault.New(fault.Unauthenticated, "certificate_required", "A collector certificate over TLS 1.3 is required.")
	}
	cert := cs.PeerCertificates[0]
	id, err := v.chains.Load().verify(cert, now)
	if err != nil {
		return Principal{}, nil, refuseCertificate(err)
	}
	if err := inTime(cert, now, grace); err != nil {
		return Principal{}, nil, err
	}
	thumbprint := ca.Fingerprint(cert)
	c, known, revoked := v.snapshot.lookup(id, thumbprint)
	switch {
	case revoked:
		return Principal{}, nil, fault.New(fault.Unauthenticated, "certificate_revoked", "The certificate is revoked.")
	case !known && now.Sub(cert.NotBefore) < propagation:
		return Principal{}, nil, &fault.Error{Class: fault.Unavailable, Code: "identity_propagating",
			Detail: "The collector was enrolled a moment ago and is not known here yet.", RetryAfter: time.Second}
	case !known:
		return Principal{}, nil, errUnknownCollector
	}
	if err := refuseStatus(c.Status); err != nil {
		return Principal{}, nil, err
	}
	return Principal{CollectorID: id, Hostname: c.Hostname, Thumbprint: thumbprint, NotAfter: cert.NotAfter}, cert, nil
}

// refuseStatus errs with Forbidden unless a collector of the status may push.
func refuseStatus(status Status) error {
	switch status {
	case Registered, Active, Offline:
		return nil
	case Locked:
		return fault.New(fault.Forbidden, "collector_locked", "The collector is locked; an operator must unlock it.")
	default:
		return fault.New(fault.Forbidden, "collector_disabled", "The collector is disabled.")
	}
}

var errUnknownCollector = fault.New(fault.Unauthenticated, "collector_unknown", "The collector is not enrolled.")

// parseToken checks the token alone: form, key, signature, times, audience.
func (v *Verifier) parseToken(authorization string) (*collectorClaims, error) {
	token, err := bearer(authorization)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(token))
	if claims := v.recall(sum); claims != nil {
		return claims, nil
	}
	var claims collectorClaims
	by, err := v.parse(v.parser, accessTokenType, token, &claims)
	if err != nil {
		return nil, err
	}
	v.believed.add(sum, &believedToken{claims, by})
	return &claims, nil
}

func (v *Verifier) key(kid string) (ed25519.PublicKey, error) {
	k, known := v.snapshot.signingKey(kid)
	if !known || !k.Covers(v.now()) {
		return nil, errors.New("no such signing key")
	}
	return k.PublicKey, nil
}

// bearer returns the token of the header. Length, alphabet and number of parts
// are checked before anything is decoded: base64 decoders skip line breaks, and
// nobody should parse a megabyte for a stranger.
func bearer(authorization string) (string, error) {
	scheme, token, _ := strings.Cut(authorization, " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return "", fault.New(fault.Unauthenticated, "token_required", "An access token is required.")
	}
	return token, checkForm(token)
}

// checkForm errs unless the text may be a token.
func checkForm(token string) error {
	if len(token) > maxTokenBytes {
		return refuseToken(errors.New("longer than a token can be"))
	}
	dots := 0
	for i := range len(token) {
		switch c := token[i]; {
		case c == '.':
			dots++
		case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_':
		default:
			return refuseToken(errors.New("a byte outside the alphabet of tokens"))
		}
	}
	if dots != 2 {
		return refuseToken(errors.New("not three parts"))
	}
	return nil
}

// parseHeader reads the header before the jwt package does, which would take
// the last of duplicate names and ignore members that it does not know.
func parseHeader(token, kind string) (header, error) {
	var h header
	encoded, _, _ := strings.Cut(token, ".")
	raw, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil {
		return h, errors.New("header is not strict base64")
	}
	if err := json.Unmarshal(raw, &h, json.RejectUnknownMembers(true)); err != nil {
		return h, errors.New("header is not the one that is expected")
	}
	if h.Algorithm != jwt.SigningMethodEdDSA.Alg() || h.Type != kind || h.KeyID == "" {
		return h, errors.New("header names another algorithm or type, or no key")
	}
	return h, nil
}

// cause reduces an error of the jwt package to the kind of error: the rest may
// quote the token.
func cause(err error) error {
	for _, kind := range []error{
		jwt.ErrTokenMalformed, jwt.ErrTokenUnverifiable, jwt.ErrTokenSignatureInvalid, jwt.ErrTokenNotValidYet,
		jwt.ErrTokenUsedBeforeIssued, jwt.ErrTokenInvalidIssuer, jwt.ErrTokenInvalidAudience,
		jwt.ErrTokenRequiredClaimMissing, jwt.ErrTokenInvalidClaims,
	} {
		if errors.Is(err, kind) {
			return kind
		}
	}
	return errors.New("token refused")
}

func refuseToken(err error) error {
	return &fault.Error{Class: fault.Unauthenticated, Code: "token_invalid", Detail: "The access token is not valid.", Err: err}
}

func refuseCertificate(err error) error {
	return &fault.Error{Class: fault.Unauthenticated, Code: "certificate_invalid",
		Detail: "The certificate is not one of a collector here.", Err: err}
}
