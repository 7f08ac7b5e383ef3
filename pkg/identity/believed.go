package identity

import (
	"crypto/sha256"
	"sync"
)

// maxBelieved bounds the memory of verified tokens, at about 500 bytes each. A
// collector has a new one two or three times an hour.
const maxBelieved = 20_000

// believed remembers whose signature collectors' tokens bear, so that of a
// token which comes with each push only the first use costs a verification: it
// took half of what the gateway spent on a small push. Everything that may
// change is looked at each time: the key, the times, and what the token is held
// against.
type believed struct {
	mu     sync.RWMutex
	tokens map[[sha256.Size]byte]*believedToken
}

type believedToken struct {
	claims collectorClaims
	by     signingKey
}

// recall returns the claims of a token that is still good, or nil: then it must
// be looked at in full.
func (v *Verifier) recall(sum [sha256.Size]byte) *collectorClaims {
	v.believed.mu.RLock()
	t := v.believed.tokens[sum]
	v.believed.mu.RUnlock()
	if t == nil {
		return nil
	}
	if key, err := v.key(t.by.id); err != nil || !key.Equal(t.by.key) {
		return nil
	}
	if v.validator.Validate(&t.claims) != nil {
		return nil
	}
	return &t.claims
}

// add remembers a token that was verified.
func (b *believed) add(sum [sha256.Size]byte, t *believedToken) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tokens == nil || len(b.tokens) >= maxBelieved {
		b.tokens = map[[sha256.Size]byte]*believedToken{}
	}
	b.tokens[sum] = t
}
