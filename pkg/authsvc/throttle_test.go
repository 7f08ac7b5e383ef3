package authsvc

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/fault"
)

func from(account, address string) pair {
	return pair{account, sourceOf(netip.MustParseAddr(address))}
}

// attempt returns how long it had to wait.
func attempt(t *testing.T, th *throttle, p pair, right bool) time.Duration {
	t.Helper()
	began := time.Now()
	known, leave, err := th.admit(t.Context(), p)
	require.NoError(t, err)
	defer leave()
	if right {
		th.succeeded(p)
	} else {
		th.failed(p, known)
	}
	return time.Since(began)
}

func TestDelayRisesWithFailuresAndFallsWithTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := newThrottle(time.Now)
		p := from("anna", "192.0.2.1")
		var last time.Duration
		for i := range 12 {
			waited := attempt(t, th, p, false)
			if i < 3 {
				require.Zero(t, waited, "a typo or two cost nothing")
			} else if i < 8 {
				require.Greater(t, waited, last)
			}
			require.LessOrEqual(t, waited, accountLimit.most, "nobody is locked out")
			last = waited
		}
		require.Equal(t, accountLimit.most, last)
		time.Sleep(10 * halfLife)
		require.Zero(t, attempt(t, th, p, false))
	})
}

func TestFailuresAreCountedPerAccountPerSourceAndInAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		perAccount, perSource, inAll := newThrottle(time.Now), newThrottle(time.Now), newThrottle(time.Now)
		address := func(i int) string { return netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}).String() }
		for i := range 6 {
			attempt(t, perAccount, from("anna", address(i)), false)
		}
		require.NotZero(t, attempt(t, perAccount, from("anna", address(99)), false))
		require.Zero(t, attempt(t, perAccount, from("bert", address(99)), false))

		for i := range 14 {
			// Addresses of one IPv6 network are one source.
			a := netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 1, byte(i)}).String()
			attempt(t, perSource, from("user"+a, a), false)
		}
		require.NotZero(t, attempt(t, perSource, from("anna", "2001:db8:0:7:ffff::1"), false))
		require.Zero(t, attempt(t, perSource, from("anna", "2001:db8:0:8::1"), false))

		for i := range 120 {
			attempt(t, inAll, from("user"+address(i), address(i)), false)
		}
		require.NotZero(t, attempt(t, inAll, from("anna", "192.0.2.1"), false))
	})
}

func TestStrangersDoNotSlowDownWhoHasBeenThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := newThrottle(time.Now)
		home := from("anna", "192.0.2.1")
		attempt(t, th, home, true)
		for range 30 {
			attempt(t, th, from("anna", "198.51.100.7"), false)
			attempt(t, th, from("bert", "192.0.2.1"), false) // a neighbour behind the same address
		}
		require.Zero(t, attempt(t, th, home, true))
		// Its own failures count.
		for range 6 {
			attempt(t, th, home, false)
		}
		require.NotZero(t, attempt(t, th, home, true))
	})
}

func TestAttemptsUnderWayAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := newThrottle(time.Now)
		home := from("anna", "192.0.2.1")
		attempt(t, th, home, true)
		var leaves []func()
		admitted := 0
		for i := range 2 * maxUnderWay {
			a := netip.AddrFrom4([4]byte{10, 0, byte(i >> 4), 1}).String() // 16 each
			_, leave, err := th.admit(t.Context(), from("bert", a))
			if err == nil {
				admitted++
				leaves = append(leaves, leave)
				continue
			}
			require.Equal(t, fault.Throttled, fault.ClassOf(err))
		}
		require.Equal(t, maxUnderWay, admitted)
		require.Zero(t, attempt(t, th, home, true), "who has been there is let in")
		for _, leave := range leaves {
			leave()
		}
		for range maxUnderWayPerSource {
			_, leave, err := th.admit(t.Context(), from("bert", "10.9.9.9"))
			require.NoError(t, err)
			defer leave()
		}
		_, _, err := th.admit(t.Context(), from("carl", "10.9.9.9"))
		require.Equal(t, fault.Throttled, fault.ClassOf(err))
	})
}

func TestWhoGivesUpLeavesNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := newThrottle(time.Now)
		p := from("anna", "192.0.2.1")
		for range 10 {
			attempt(t, th, p, false)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, _, err := th.admit(ctx, p)
		require.Equal(t, fault.Unavailable, fault.ClassOf(err))
		require.Empty(t, th.underWay)
		require.Zero(t, th.all)
	})
}

func TestScoresAreBoundedInMemory(t *testing.T) {
	t.Parallel()
	now := time.Now()
	th := newThrottle(func() time.Time { return now })
	for i := range maxScores {
		th.failed(from("anna", netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String()), false)
	}
	require.LessOrEqual(t, len(th.scores), maxScores+3)
	require.NotZero(t, accountLimit.delay(th.score(scoreKey{pair: pair{account: "anna"}}, now)), "what matters is kept")
}
