package authsvc

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/fault"
)

func TestPasswordsThatAreTriedFirstAreRefused(t *testing.T) {
	t.Parallel()
	for _, common := range []string{
		"password1234", "Password1234!", "P@ssw0rd!2026", "passwordpassword", "qwertyuiop123", "1q2w3e4r5t6y", "123456789012",
		"aaaaaaaaaaaa", "abcabcabcabc", "abcdefghijkl", "zyxwvutsrqpo", "Welcome2026!!", "Summer2026!!!", "correct horse battery",
		"Administrator1", "letmein!letmein!", "postgres-postgres", "bonaventura1", "!bonaventura!",
	} {
		require.Error(t, checkPassword("/password", common, "bonaventura"), common)
	}
	for _, good := range []string{
		"a quiet lake 47 herons", "Tr0ub4dor&3-xyzzy", "kJ8#mQ2$vL9!", "bonaventura rides elks", "Zähre um Zähre", "4815162342-mondkalb", OneTimePassword(),
	} {
		require.NoError(t, checkPassword("/password", good, "bonaventura"), good)
	}
}

func TestLengthIsCheckedOnSetAndOnCompare(t *testing.T) {
	t.Parallel()
	h, err := newHasher()
	require.NoError(t, err)
	long := strings.Repeat("x1y2z3", 12)
	require.Len(t, long, maxPasswordBytes)
	hash, err := h.make(t.Context(), false, long)
	require.NoError(t, err)
	compare := func(password string) bool {
		ok, err := h.compare(t.Context(), false, hash, password)
		require.NoError(t, err)
		return ok
	}
	require.True(t, compare(long))
	require.False(t, compare(long+"z"), "bcrypt alone would not see the 73rd byte")
	require.False(t, compare(long[:71]))
	require.False(t, compare("short"))
	ok, err := h.compare(t.Context(), false, "", long)
	require.NoError(t, err)
	require.False(t, ok, "no hash fits no password")
	for _, refused := range []string{long + "z", "short"} {
		_, err := h.make(t.Context(), false, refused)
		require.Error(t, err)
		require.NotContains(t, err.Error(), refused)
	}
}

func TestStrangersCannotTakeTheSlotOfWhoHasBeenThere(t *testing.T) {
	t.Parallel()
	h, err := newHasher()
	require.NoError(t, err)
	for range cap(h.strangers) {
		leave, err := h.enter(t.Context(), false)
		require.NoError(t, err)
		defer leave()
	}
	leave, err := h.enter(t.Context(), true)
	require.NoError(t, err)
	leave()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = h.enter(ctx, false)
	require.Equal(t, fault.Unavailable, fault.ClassOf(err))
}

func FuzzIsCommon(f *testing.F) {
	for _, seed := range []string{"password1234", "\xff\xfe", "", "ÄÖÜ", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"} {
		f.Add(seed, "anna")
	}
	f.Fuzz(func(t *testing.T, password, username string) {
		if err := checkPassword("/password", password, username); err != nil && len(password) > 20 {
			require.NotContains(t, err.Error(), password)
		}
	})
}
