package identity

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"pganalytics/pkg/fault"
	"pganalytics/pkg/identity/ca"
)

// Snapshot is the identity bucket in memory. Whoever follows the bucket feeds
// it; requests read it.
//
//	Begin ─▶ Apply* ─▶ Complete ─▶ (Apply | Remove | Confirm)*
//	  ▲                                      │
//	  └────────── bucket made anew ──────────┘
//
// What Begin starts is built aside and served only once it is complete and
// Meta agrees; until then the previous contents are served, if any, and grow
// stale. So an emptied, cut or older bucket never lets a revoked collector in
// and never turns a known one away.
type Snapshot struct {
	log     *slog.Logger
	metrics *metrics

	mu        sync.RWMutex
	roots     []ed25519.PublicKey
	live      *contents // served; nil before the first complete snapshot
	next      *contents // being built; nil when live is what the bucket holds
	delivered bool      // Complete was called for next
	confirmed time.Time // when live was last known to be the bucket's newest; the verifier's clock
}

// contents is what a bucket holds, as far as it is valid.
type contents struct {
	meta       Meta                     // zero: none yet
	keys       map[string]ca.SigningKey // those of offered that a root vouches for
	offered    map[string]ca.SigningKey // well-formed; a root that is trusted later may vouch for them
	collectors map[uuid.UUID]Collector
	revoked    map[string]Revocation // by thumbprint; of signing keys too, see ca.KeyFingerprint
	people     People
}

func newContents() *contents {
	return &contents{
		keys: map[string]ca.SigningKey{}, offered: map[string]ca.SigningKey{},
		collectors: map[uuid.UUID]Collector{}, revoked: map[string]Revocation{},
		people: NewPeople(),
	}
}

// NewSnapshot makes an empty snapshot that believes signing keys only on the
// word of one of the roots.
func NewSnapshot(roots []ed25519.PublicKey, log *slog.Logger, reg prometheus.Registerer) (*Snapshot, error) {
	if len(roots) == 0 {
		return nil, errors.New("identity snapshot: no root key to trust")
	}
	s := &Snapshot{roots: roots, log: log}
	s.metrics = newMetrics(reg, s)
	return s, nil
}

// Begin starts over: what the bucket held before means nothing any more.
func (s *Snapshot) Begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delivered = false
	s.next = newContents()
}

// TrustRoots replaces the roots whose word for signing keys is believed. Keys
// that are there already are judged anew.
func (s *Snapshot) TrustRoots(roots []ed25519.PublicKey) error {
	if len(roots) == 0 {
		return errors.New("trust roots: at least one key is needed")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roots = roots
	for _, c := range []*contents{s.live, s.next} {
		if c == nil {
			continue
		}
		clear(c.keys)
		for kid, k := range c.offered {
			if k.Verify(roots) == nil {
				c.keys[kid] = k
			}
		}
	}
	s.promote()
	return nil
}

// Apply takes one record. One that is spoilt, or a signing key without the
// root's signature, is left out, counted, and the error says so: a matter for
// an alarm, not for ceasing to follow.
func (s *Snapshot) Apply(key string, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == nil {
		if s.live == nil {
			return errors.New("record before Begin")
		}
		return s.apply(s.live, key, value)
	}
	err := s.apply(s.next, key, value)
	// A refusal must not wait until a new bucket is complete.
	if s.live != nil && err == nil {
		s.live.refuseToo(s.next, key)
	}
	s.promote()
	return err
}

func (s *Snapshot) apply(c *contents, key string, value []byte) error {
	switch {
	case key == metaKey:
		m, err := decodeMeta(value)
		if err != nil {
			return s.refuse("meta", err)
		}
		if m.Generation > c.meta.Generation {
			c.meta = m
		}
	case strings.HasPrefix(key, keyPrefix):
		c.forget(key)
		k, err := decodeKey(key, value)
		if err != nil {
			return s.refuse("key", err)
		}
		c.offered[k.KID] = k
		if err := k.Verify(s.roots); err != nil {
			return s.refuse("key", err) // the alarm: someone without the root key writes here
		}
		c.keys[k.KID] = k
	case strings.HasPrefix(key, collectorPrefix):
		r, err := decodeCollector(key, value)
		if err != nil {
			c.forget(key) // whatever it was meant to say, it may have been "refuse this one"
			return s.refuse("collector", err)
		}
		c.collectors[r.ID] = r
	case strings.HasPrefix(key, revokedPrefix):
		r, ok := decodeRevocation(key, value)
		if !ok {
			return s.refuse("revocation", errors.New("key is no thumbprint"))
		}
		c.revoked[r.Thumbprint] = r
	default:
		if kind, mine, err := c.people.apply(key, value); mine && err != nil {
			return s.refuse(kind, err)
		}
	}
	return nil
}

// refuseToo takes over from a bucket that is still being read what refuses
// someone: revocations, and newer records of collectors.
func (c *contents) refuseToo(next *contents, key string) {
	thumbprint := fingerprintPrefix + strings.TrimPrefix(key, revokedPrefix)
	if r, ok := next.revoked[thumbprint]; ok {
		c.revoked[thumbprint] = r
	}
	id, err := uuid.Parse(strings.TrimPrefix(key, collectorPrefix))
	if r, ok := next.collectors[id]; err == nil && ok && r.ChangedAt.After(c.collectors[id].ChangedAt) {
		c.collectors[id] = r
	}
	c.people.refuseToo(&next.people, key)
}

func decodeKey(key string, value []byte) (ca.SigningKey, error) {
	var k ca.SigningKey
	if err := json.Unmarshal(value, &k); err != nil {
		return k, err
	}
	if keyPrefix+k.KID != key {
		return k, errors.New("record does not belong under its key")
	}
	return k, nil
}

func (s *Snapshot) refuse(kind string, err error) error {
	s.metrics.refused.WithLabelValues(kind).Inc()
	return fmt.Errorf("identity record refused: %w", err)
}

// Remove forgets the record under the key.
func (s *Snapshot) Remove(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.observed(); c != nil {
		c.forget(key)
	}
}

func (c *contents) forget(key string) {
	c.people.forget(key)
	switch {
	case strings.HasPrefix(key, keyPrefix):
		delete(c.keys, strings.TrimPrefix(key, keyPrefix))
		delete(c.offered, strings.TrimPrefix(key, keyPrefix))
	case strings.HasPrefix(key, collectorPrefix):
		if id, err := uuid.Parse(strings.TrimPrefix(key, collectorPrefix)); err == nil {
			delete(c.collectors, id)
		}
	case strings.HasPrefix(key, revokedPrefix):
		delete(c.revoked, fingerprintPrefix+strings.TrimPrefix(key, revokedPrefix))
	}
}

// Complete says that every record the bucket held at Begin has been applied.
func (s *Snapshot) Complete() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == nil {
		return
	}
	s.delivered = true
	s.promote()
	if s.next != nil {
		s.log.Warn("identity bucket is not complete yet", "generation", s.next.meta.Generation,
			"collectors", len(s.next.collectors), "revoked", len(s.next.revoked), "keys", len(s.next.keys))
	}
}

// promote serves next if it is whole. An older generation is not: the bucket
// came back from a backup and lacks what was revoked since.
func (s *Snapshot) promote() {
	if s.next == nil || !s.delivered || !s.next.whole() {
		return
	}
	if s.live != nil && s.next.meta.Generation < s.live.meta.Generation {
		return
	}
	s.live, s.next = s.next, nil
	s.log.Info("identity snapshot complete", "generation", s.live.meta.Generation,
		"collectors", len(s.live.collectors), "revoked", len(s.live.revoked), "keys", len(s.live.keys))
}

func (c *contents) whole() bool {
	m := c.meta
	// Offered keys: its writer may trust a root that this process does not yet, or no longer.
	return m.Generation > 0 && len(c.collectors) >= m.Collectors && len(c.revoked) >= m.Revoked && len(c.offered) >= m.Keys &&
		c.people.holds(m)
}

// Confirm says that at the given time the bucket held nothing that was not
// applied. It counts only for what is served.
func (s *Snapshot) Confirm(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live != nil && s.next == nil && at.After(s.confirmed) {
		s.confirmed = at
	}
}

// Observed returns a copy of what the bucket holds right now, complete or not,
// for its writer to compare with the database. ok is false until all of it has
// been delivered.
func (s *Snapshot) Observed() (o Observed, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c := s.observed()
	if c == nil || s.next != nil && !s.delivered {
		return o, false
	}
	o = Observed{Meta: c.meta, Collectors: maps.Clone(c.collectors), Revoked: maps.Clone(c.revoked), Keys: maps.Clone(c.keys),
		People: c.people.clone()}
	if s.live != nil {
		o.Served = s.live.meta.Generation
	}
	if s.live != nil && s.next != nil {
		o.Lost = s.live.missingIn(s.next)
	}
	return o, true
}

// Incomplete reports whether the bucket was delivered and is not served: it is
// empty, cut, or older than what is served. Its writer must fill it.
func (s *Snapshot) Incomplete() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.next != nil && s.delivered
}

// missingIn returns what c refuses and next does not: a bucket that was made
// anew has forgotten it.
func (c *contents) missingIn(next *contents) Refusals {
	lost := Refusals{People: c.people.missingIn(&next.people)}
	for thumbprint, r := range c.revoked {
		if _, ok := next.revoked[thumbprint]; !ok {
			lost.Revoked = append(lost.Revoked, r)
		}
	}
	for id, k := range c.collectors {
		if k.ChangedAt.After(next.collectors[id].ChangedAt) {
			lost.Collectors = append(lost.Collectors, k)
		}
	}
	return lost
}

// Refusals are records that must not get lost: revocations, and collectors at
// their newest.
type Refusals struct {
	Revoked    []Revocation
	Collectors []Collector
	People     People
}

// Observed is a copy of the bucket's valid records.
type Observed struct {
	Meta       Meta
	Served     int64 // generation that is served; Meta's may be lower in a bucket that was restored
	Collectors map[uuid.UUID]Collector
	Revoked    map[string]Revocation
	Keys       map[string]ca.SigningKey
	People     People
	Lost       Refusals // what is served and the bucket, made anew, does not hold
}

func (s *Snapshot) observed() *contents {
	if s.next != nil {
		return s.next
	}
	return s.live
}

// fresh errs with Unavailable unless the served contents were confirmed within
// maxAge before now.
func (s *Snapshot) fresh(now time.Time, maxAge time.Duration) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.live == nil || s.confirmed.IsZero() {
		return fault.New(fault.Unavailable, "identity_not_ready", "Identities are not loaded yet.")
	}
	if now.Sub(s.confirmed) > maxAge {
		return fault.New(fault.Unavailable, "identity_stale", "Identities could not be confirmed recently.")
	}
	return nil
}

// Collector returns what the served contents say of a collector.
func (s *Snapshot) Collector(id uuid.UUID) (c Collector, known bool) {
	c, known, _ = s.lookup(id, "")
	return c, known
}

// lookup returns what the served contents say of a collector and certificate.
func (s *Snapshot) lookup(id uuid.UUID, thumbprint string) (c Collector, known, revoked bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.live == nil {
		return c, false, false
	}
	c, known = s.live.collectors[id]
	_, revoked = s.live.revoked[thumbprint]
	return c, known, revoked
}

func (s *Snapshot) signingKey(kid string) (k ca.SigningKey, known bool) {
	fingerprint, err := ca.KeyFingerprint(kid)
	if err != nil {
		return k, false
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.live == nil {
		return k, false
	}
	if _, revoked := s.live.revoked[fingerprint]; revoked {
		return k, false
	}
	k, known = s.live.keys[kid]
	return k, known
}
