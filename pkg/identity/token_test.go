package identity_test

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/identity"
)

func TestGoodTokenNamesItsCollector(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, scheme := range []string{"Bearer ", "bearer "} {
		p, err := b.verifier.VerifyCollector(b.state, scheme+b.token)
		require.NoError(t, err)
		require.Equal(t, b.id, p.CollectorID)
		require.Equal(t, "db1", p.Hostname)
		require.Equal(t, b.collector(identity.Registered).Thumbprint, p.Thumbprint)
		require.Equal(t, p, identity.From(identity.WithPrincipal(t.Context(), p)))
	}
	header, payload := parts(t, b.token)
	_, record := b.authority.SigningKey()
	require.Equal(t, map[string]any{"alg": "EdDSA", "typ": "at+jwt", "kid": record.KID}, header)
	require.Equal(t, "collector:"+b.id.String(), payload["sub"])
	require.Equal(t, "access", payload["type"])
	require.InDelta(t, 30*60, payload["exp"].(float64)-payload["iat"].(float64), 0)
	require.Len(t, payload, 11)
	require.Equal(t, identity.Principal{}, identity.From(t.Context()))
}

// Each case takes the good token and spoils one thing. Signatures are good
// wherever the case is not about signatures.
func TestBadTokensAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	key, record := b.authority.SigningKey()
	sign := func(text []byte) []byte { return ed25519.Sign(key, text) }
	header, payload := parts(t, b.token)
	now := b.clock.now().Unix()

	encode := func(v map[string]any) string {
		raw, err := json.Marshal(v)
		require.NoError(t, err)
		return string(raw)
	}
	with := func(m map[string]any, name string, value any) string {
		changed := map[string]any{}
		for k, v := range m {
			changed[k] = v
		}
		if changed[name] = value; value == nil {
			delete(changed, name)
		}
		return encode(changed)
	}
	head := func(name string, value any) string { return forge(with(header, name, value), encode(payload), sign) }
	claim := func(name string, value any) string { return forge(encode(header), with(payload, name, value), sign) }
	raw := func(payload string) string { return forge(encode(header), payload, sign) }
	_, stranger, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	segments := strings.Split(b.token, ".")
	hmacWith := func(secret []byte) func([]byte) []byte {
		return func(text []byte) []byte {
			mac := hmac.New(sha256.New, secret)
			mac.Write(text)
			return mac.Sum(nil)
		}
	}
	nothing := func([]byte) []byte { return nil }

	require.NoError(t, func() error {
		_, err := b.verifier.VerifyCollector(b.state, "Bearer "+forge(encode(header), encode(payload), sign))
		return err
	}(), "the unspoilt token must pass, or the table proves nothing")

	for name, token := range map[string]string{
		"alg none":                        forge(with(header, "alg", "none"), encode(payload), nothing),
		"alg None, signed":                head("alg", "None"),
		"HS256 with the public key":       forge(with(header, "alg", "HS256"), encode(payload), hmacWith(record.PublicKey)),
		"EdDSA header, HMAC":              forge(encode(header), encode(payload), hmacWith(record.PublicKey)),
		"alg as list":                     head("alg", []string{"EdDSA"}),
		"alg missing":                     head("alg", nil),
		"typ JWT":                         head("typ", "JWT"),
		"typ refresh":                     head("typ", "refresh+jwt"),
		"typ upper case":                  head("typ", "AT+JWT"),
		"typ missing":                     head("typ", nil),
		"crit":                            head("crit", []string{"exp"}),
		"jwk":                             head("jwk", map[string]any{"kty": "OKP", "crv": "Ed25519"}),
		"jku":                             head("jku", "https://example.com/keys"),
		"x5u":                             head("x5u", "https://example.com/cert"),
		"x5c":                             head("x5c", []string{"MIIB"}),
		"zip":                             head("zip", "DEF"),
		"kid unknown":                     head("kid", "nobody"),
		"kid missing":                     head("kid", nil),
		"kid a path":                      head("kid", "../../dev/null"),
		"alg twice":                       forge(`{"alg":"none",`+encode(header)[1:], encode(payload), sign),
		"alg in capitals too":             forge(`{"ALG":"none",`+encode(header)[1:], encode(payload), sign),
		"header not JSON":                 forge("{", encode(payload), sign),
		"header null":                     forge("null", encode(payload), sign),
		"payload null":                    raw("null"),
		"payload list":                    raw("[]"),
		"payload not JSON":                raw("{"),
		"foreign key":                     forge(encode(header), encode(payload), func(text []byte) []byte { return ed25519.Sign(stranger, text) }),
		"no signature":                    forge(encode(header), encode(payload), nothing),
		"half a signature":                b.token[:len(b.token)-40],
		"exp missing":                     claim("exp", nil),
		"exp null":                        raw(strings.Replace(encode(payload), `"exp":`, `"exp":null,"exp_was":`, 1)),
		"exp a string":                    claim("exp", strconv.FormatInt(now+600, 10)),
		"exp a fraction":                  claim("exp", float64(now)+600.5),
		"exp negative":                    claim("exp", -1),
		"life too long":                   claim("exp", now+3600),
		"life overflows":                  claim("exp", int64(1)<<62),
		"nbf ahead":                       claim("nbf", now+120),
		"nbf missing":                     claim("nbf", nil),
		"iat ahead":                       claim("iat", now+120),
		"iat missing":                     claim("iat", nil),
		"iss other":                       claim("iss", "someone"),
		"iss missing":                     claim("iss", nil),
		"aud other":                       claim("aud", "someone"),
		"aud missing":                     claim("aud", nil),
		"aud a list":                      claim("aud", []string{"pganalytics", "someone"}),
		"type refresh":                    claim("type", "refresh"),
		"type missing":                    claim("type", nil),
		"jti missing":                     claim("jti", nil),
		"sub of a user":                   claim("sub", "user:"+b.id.String()),
		"sub of another":                  claim("sub", "collector:"+uuid.NewString()),
		"collector_id of another":         claim("collector_id", uuid.NewString()),
		"sub and collector_id of another": raw(strings.ReplaceAll(encode(payload), b.id.String(), uuid.NewString())),
		"cnf missing":                     claim("cnf", nil),
		"cnf other":                       claim("cnf", map[string]any{"x5t#S256": base64.RawURLEncoding.EncodeToString(make([]byte, 32))}),
		"claim twice":                     raw(`{"type":"refresh",` + encode(payload)[1:]),
		"unknown claim twice":             raw(`{"a":1,"a":2,` + encode(payload)[1:]),
		"duplicate within cnf":            raw(strings.Replace(encode(payload), `"cnf":{`, `"cnf":{"x5t#S256":"",`, 1)),
		"text after the payload":          raw(encode(payload) + "{}"),
		"padding":                         segments[0] + "." + segments[1] + "." + segments[2] + "=",
		"line break":                      segments[0] + "." + segments[1] + "\n." + segments[2],
		"line break in the signature":     segments[0] + "." + segments[1] + "." + segments[2][:10] + "\n" + segments[2][10:],
		"standard alphabet":               segments[0] + "." + segments[1] + "." + segments[2][:85] + "+",
		"last bits not zero":              spoilLastBits(b.token),
		"two parts":                       segments[0] + "." + segments[1],
		"four parts":                      b.token + ".",
		"space inside":                    segments[0] + " " + segments[1] + "." + segments[2],
		"one megabyte":                    segments[0] + "." + strings.Repeat("A", 1<<20) + "." + segments[2],
		"a megabyte of dots":              strings.Repeat(".", 2<<20),
		"two thousand nested lists":       raw(strings.Repeat("[", 2000)),
		"only dots":                       "..",
		"NUL":                             b.token + "\x00",
		"two tokens":                      b.token + ", Bearer " + b.token,
		"two spaces before the token":     " " + b.token,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := b.verifier.VerifyCollector(b.state, "Bearer "+token)
			requireFault(t, err, fault.Unauthenticated, "token_invalid")
			require.NotContains(t, err.Error(), "nobody", "no part of a token may be repeated")
			require.Less(t, len(err.Error()), 200)
			if len(token) > 1<<20 {
				require.ErrorContains(t, err, "longer than a token can be", "must be refused before it is parsed")
			}
		})
	}
	for _, authorization := range []string{"", "Bearer", "Bearer ", b.token, "Basic " + b.token, "BearerX " + b.token} {
		_, err := b.verifier.VerifyCollector(b.state, authorization)
		requireFault(t, err, fault.Unauthenticated, "token_required")
	}
}

// spoilLastBits changes the bits of the last character that carry nothing: a
// lax decoder takes the token for the same.
func spoilLastBits(token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, token[len(token)-1])
	return token[:len(token)-1] + string(alphabet[last^1])
}

func TestTokenExpires(t *testing.T) {
	t.Parallel()
	b := setup(t)
	step := func(d time.Duration) { b.clock.advance(d); b.snapshot.Confirm(b.clock.now()) }
	step(29 * time.Minute)
	require.NoError(t, b.verify())
	step(2 * time.Minute)
	requireFault(t, b.verify(), fault.Unauthenticated, "token_expired")
}

func TestTokenOfAKeyWithoutTheRootsSignatureIsRefused(t *testing.T) {
	t.Parallel()
	b, evil := setup(t), setup(t)
	key, record := evil.authority.SigningKey()
	signer, err := identity.NewSigner(identity.Tokens{}, key, record, b.clock.now)
	require.NoError(t, err)
	forged, _, err := signer.CollectorToken(b.id, "db1", b.cert.Leaf)
	require.NoError(t, err)

	name, value, err := identity.KeyRecord(record)
	require.NoError(t, err)
	require.Error(t, b.snapshot.Apply(name, value))
	_, err = b.verifier.VerifyCollector(b.state, "Bearer "+forged)
	requireFault(t, err, fault.Unauthenticated, "token_invalid")
	require.InDelta(t, 1, refused(t, b, "key"), 0)

	// Nor does it help to write the key under the id of a good one.
	_, good := b.authority.SigningKey()
	require.Error(t, b.snapshot.Apply("key."+good.KID, value))
	_, err = b.verifier.VerifyCollector(b.state, "Bearer "+forged)
	requireFault(t, err, fault.Unauthenticated, "token_invalid")
}

func TestTokenOfAKeyOutOfItsTimeIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.clock.advance(3 * 365 * 24 * time.Hour)
	b.snapshot.Confirm(b.clock.now())
	_, _, err := b.signer.CollectorToken(b.id, "db1", b.cert.Leaf)
	require.ErrorContains(t, err, "out of its time")
}

func TestTokensOfAnotherIssuerOrAudienceAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	key, record := b.authority.SigningKey()
	for _, tokens := range []identity.Tokens{{Issuer: "other"}, {Audience: "other"}} {
		signer, err := identity.NewSigner(tokens, key, record, b.clock.now)
		require.NoError(t, err)
		token, _, err := signer.CollectorToken(b.id, "db1", b.cert.Leaf)
		require.NoError(t, err)
		_, err = b.verifier.VerifyCollector(b.state, "Bearer "+token)
		requireFault(t, err, fault.Unauthenticated, "token_invalid")
	}
}

func TestSignerWantsTheKeyOfItsRecord(t *testing.T) {
	t.Parallel()
	a, b := setup(t), setup(t)
	key, _ := a.authority.SigningKey()
	_, record := b.authority.SigningKey()
	_, err := identity.NewSigner(identity.Tokens{}, key, record, nil)
	require.Error(t, err)
	_, err = identity.NewSnapshot(nil, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.Error(t, err)
}

func refused(t *testing.T, b *bundle, kind string) float64 {
	t.Helper()
	families, err := b.registry.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "pganalytics_identity_records_refused_total" && m.GetLabel()[0].GetValue() == kind {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func FuzzVerifyCollector(f *testing.F) {
	b := setup(f)
	key, _ := b.authority.SigningKey()
	header, payload, _ := strings.Cut(b.token, ".")
	payload, _, _ = strings.Cut(payload, ".")
	decode := func(s string) string {
		raw, err := base64.RawURLEncoding.DecodeString(s)
		require.NoError(f, err)
		return string(raw)
	}
	f.Add("Bearer "+b.token, "", "")
	f.Add("", decode(header), decode(payload))
	f.Add("", `{"alg":"none","typ":"at+jwt","kid":"x"}`, decode(payload))
	f.Fuzz(func(t *testing.T, authorization, head, body string) {
		signed := authorization == ""
		if signed { // let the fuzzer past the signature
			authorization = "Bearer " + forge(head, body, func(text []byte) []byte { return ed25519.Sign(key, text) })
		}
		p, err := b.verifier.VerifyCollector(b.state, authorization)
		if err != nil {
			require.Contains(t, []fault.Class{fault.Unauthenticated, fault.Unavailable}, fault.ClassOf(err))
			return
		}
		require.Equal(t, b.id, p.CollectorID)
		if !signed {
			_, token, _ := strings.Cut(authorization, " ")
			require.Equal(t, b.token, token, "accepted a token that was never signed")
		}
	})
}
