package authsvc

import (
	"context"
	"math"
	"net/netip"
	"sync"
	"time"

	"pganalytics/pkg/fault"
)

// throttle slows logins down, the more the more of them failed lately: those to
// one account, those from one source, and all together. Nothing is ever locked:
// an attempt waits and is then made, whatever the name and whether there is such
// a user. Only who has too many attempts under way already is turned away.
//
// A source from which an account was logged in to before is known there, and
// waits only for its own failures on that account. So strangers who try an
// account slow each other down, and not its owner.
type throttle struct {
	now func() time.Time

	mu       sync.Mutex
	scores   map[scoreKey]score
	known    map[pair]time.Time // when it was last logged in
	underWay map[scoreKey]int
	all      int // strangers
}

// pair is an account, by the name that was given, and a source.
type pair struct {
	account string
	source  netip.Prefix
}

// scoreKey is a pair, or one half of it, or empty for all together.
type scoreKey struct {
	pair
	known bool // the own failures of a known source
}

// score is how many attempts failed, halved every halfLife.
type score struct {
	value float64
	at    time.Time
}

// limit is from which score on attempts wait, and for how long at most. The
// wait begins with firstDelay and doubles with each failure, or with each tenth
// of the free ones.
type limit struct {
	free float64
	most time.Duration
}

const (
	halfLife   = 2 * time.Minute
	firstDelay = 250 * time.Millisecond

	// How many attempts of strangers may be under way at once, waiting or being
	// made, from one source and in all: a few kilobytes each.
	maxUnderWayPerSource = 32
	maxUnderWay          = 256

	// How many attempts of one known source on its account may.
	maxUnderWayKnown = 4

	maxScores = 100_000
	maxKnown  = 100_000
	knownLife = 30 * 24 * time.Hour
)

var (
	accountLimit = limit{free: 3, most: 8 * time.Second}
	sourceLimit  = limit{free: 10, most: 8 * time.Second}
	allLimit     = limit{free: 100, most: 2 * time.Second}
)

func newThrottle(now func() time.Time) *throttle {
	return &throttle{now: now, scores: map[scoreKey]score{}, known: map[pair]time.Time{}, underWay: map[scoreKey]int{}}
}

// sourceOf is the address, or of an IPv6 address the network that one customer
// has.
func sourceOf(a netip.Addr) netip.Prefix {
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // the zero Addr has the zero Prefix
	return p
}

func (p pair) halves() (account, source scoreKey) {
	return scoreKey{pair: pair{account: p.account}}, scoreKey{pair: pair{source: p.source}}
}

// everybody is the key of all attempts together.
var everybody scoreKey

// admit waits until the attempt may be made. It errs with Throttled if too many
// are under way, and Unavailable if ctx ends. known says that the source has
// logged in to the account before. Call leave when the attempt is over.
func (t *throttle) admit(ctx context.Context, p pair) (known bool, leave func(), err error) {
	delay, known, leave, err := t.enter(p)
	if err != nil || delay == 0 {
		return known, leave, err
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return known, leave, nil
	case <-ctx.Done():
		leave()
		return known, nil, fault.Wrap(fault.Unavailable, ctx.Err())
	}
}

func (t *throttle) enter(p pair) (delay time.Duration, known bool, leave func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	account, source := p.halves()
	key, most := source, maxUnderWayPerSource
	if at, ok := t.known[p]; ok && now.Sub(at) < knownLife {
		known = true
		key, most = scoreKey{p, true}, maxUnderWayKnown
		delay = accountLimit.delay(t.score(key, now))
	} else {
		delay = max(accountLimit.delay(t.score(account, now)), sourceLimit.delay(t.score(source, now)), allLimit.delay(t.score(everybody, now)))
	}
	if t.underWay[key] >= most || !known && t.all >= maxUnderWay {
		return 0, known, nil, &fault.Error{Class: fault.Throttled, Code: "throttled",
			Detail: "Too many attempts at once.", RetryAfter: max(delay, time.Second)}
	}
	t.underWay[key]++
	if !known {
		t.all++
	}
	return delay, known, func() { t.leave(key, known) }, nil
}

func (t *throttle) leave(key scoreKey, known bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.underWay[key]--; t.underWay[key] == 0 {
		delete(t.underWay, key)
	}
	if !known {
		t.all--
	}
}

// failed counts a failure; known is what admit said.
func (t *throttle) failed(p pair, known bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	account, source := p.halves()
	keys := []scoreKey{account, source, everybody}
	if known {
		keys = []scoreKey{{p, true}}
	}
	for _, key := range keys {
		if len(t.scores) >= maxScores {
			t.forget(now)
		}
		t.scores[key] = score{t.score(key, now) + 1, now}
	}
}

// succeeded makes the source known to the account.
func (t *throttle) succeeded(p pair) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	delete(t.scores, scoreKey{p, true})
	if len(t.known) >= maxKnown {
		for old, at := range t.known {
			if now.Sub(at) > knownLife/30 {
				delete(t.known, old)
			}
		}
		if len(t.known) >= maxKnown {
			clear(t.known)
		}
	}
	t.known[p] = now
}

func (t *throttle) score(key scoreKey, now time.Time) float64 {
	s, ok := t.scores[key]
	if !ok {
		return 0
	}
	return s.value * math.Exp2(-now.Sub(s.at).Minutes()/halfLife.Minutes())
}

// forget drops the scores that slow nobody down, and all if that is not enough:
// whoever has a hundred thousand sources is slowed down by the score of all.
func (t *throttle) forget(now time.Time) {
	for key := range t.scores {
		if t.score(key, now) < accountLimit.free {
			delete(t.scores, key)
		}
	}
	if len(t.scores) >= maxScores {
		all := t.scores[everybody]
		clear(t.scores)
		t.scores[everybody] = all
	}
}

func (l limit) delay(score float64) time.Duration {
	if score < l.free {
		return 0
	}
	steps := (score - l.free) / max(1, l.free/10)
	return time.Duration(min(float64(l.most), float64(firstDelay)*math.Exp2(min(steps, 30))))
}
