package authsvc

import (
	"context"
	"slices"
	"time"

	"pganalytics/pkg/identity"
	"pganalytics/pkg/identity/ca"
)

// signing is what Run knows of the replacement of the signing key. Run alone
// touches it.
type signing struct {
	candidate string    // the id of the key that shall be used
	knownFrom time.Time // since when the snapshot has it; zero: it has not
}

// followKey goes over to the signing key that the authority's directory holds
// now. The new key is published first, and used once verifiers have had time to
// learn of it: until then the old one signs, so that no token is refused.
func (s *Service) followKey(ctx context.Context) {
	key, record := s.Authority.SigningKey()
	used := s.Signer.Record().KID
	if record.KID == used {
		s.signing.candidate = ""
		return
	}
	if s.signing.candidate != record.KID {
		s.signing.candidate, s.signing.knownFrom = record.KID, time.Time{}
	}
	if !s.Verifier.KnowsKey(record.KID) {
		s.signing.knownFrom = time.Time{}
		err := s.put(ctx, func() (string, []byte, error) { return identity.KeyRecord(record) })
		if err != nil {
			s.Log.Warn("new signing key not published yet", "kid", record.KID, "err", err)
		}
		return
	}
	if s.signing.knownFrom.IsZero() {
		s.signing.knownFrom = time.Now()
	}
	// The old key may be of no use any more: about to be revoked, or past its end.
	if s.Verifier.KnowsKey(used) && !s.revoked(used) && time.Since(s.signing.knownFrom) < s.cfg.KeySettle {
		return
	}
	if err := s.Signer.Use(key, record); err != nil {
		s.Log.Error("new signing key not used", "kid", record.KID, "err", err)
		return
	}
	s.Log.Info("signing key replaced", "kid", record.KID, "former", used, "not_after", record.NotAfter)
}

// revoked reports whether the authority revokes the key.
func (s *Service) revoked(kid string) bool {
	return slices.ContainsFunc(s.Authority.RevokedKeys(), func(k ca.RevokedKey) bool { return k.KID == kid })
}

// revokedKeysChanged reports whether keys were revoked that verifiers have not
// been told of.
func (s *Service) revokedKeysChanged() bool {
	return int64(len(s.Authority.RevokedKeys())) != s.revokedSent.Load()
}

// putKeys publishes the keys that sign, or soon will, and the revoked ones.
func (s *Service) putKeys(ctx context.Context, have identity.Observed) error {
	_, next := s.Authority.SigningKey()
	for _, k := range []ca.SigningKey{s.Signer.Record(), next} {
		if _, ok := have.Keys[k.KID]; ok {
			continue
		}
		if err := s.put(ctx, func() (string, []byte, error) { return identity.KeyRecord(k) }); err != nil {
			return err
		}
		have.Keys[k.KID] = k
	}
	keys := s.Authority.RevokedKeys()
	revocations := make([]identity.Revocation, 0, len(keys))
	for _, k := range keys {
		// Until its successor signs, nobody would get a token; that is a matter
		// of a second or two, see followKey.
		if k.KID == s.Signer.Record().KID && k.KID != next.KID {
			continue
		}
		thumbprint, err := k.Fingerprint()
		if err != nil {
			return err
		}
		revocations = append(revocations, identity.Revocation{Thumbprint: thumbprint, NotAfter: k.NotAfter, RevokedAt: k.RevokedAt})
	}
	if err := s.putRevocations(ctx, revocations, have.Revoked); err != nil {
		return err
	}
	s.revokedSent.Store(int64(len(revocations)))
	return nil
}
