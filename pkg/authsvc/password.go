package authsvc

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"
	"unicode"

	"golang.org/x/crypto/bcrypt"

	"pganalytics/pkg/fault"
)

const (
	minPasswordBytes = 12
	maxPasswordBytes = 72 // bcrypt takes no more

	// hashWait is how long a request waits for its turn at the hash. It is less
	// than clients are patient.
	hashWait = 10 * time.Second
)

// passwordCost is bcrypt's: about 250 ms of one core. Only tests change it.
var passwordCost = 12

// hasher compares and makes password hashes, a few at once: it must not take
// the cores that pushes need.
type hasher struct {
	strangers, known chan struct{} // slots
	dummy            []byte        // the hash that unknown users have
}

func newHasher() (*hasher, error) {
	dummy, err := bcrypt.GenerateFromPassword([]byte(rand.Text()), passwordCost)
	if err != nil {
		return nil, fmt.Errorf("make password hash: %w", err)
	}
	// Half of the cores for whoever comes, one for those who have been here
	// before, so that nobody else can keep them out.
	half := max(1, runtime.GOMAXPROCS(0)/2)
	return &hasher{strangers: make(chan struct{}, half), known: make(chan struct{}, 1), dummy: dummy}, nil
}

var errBusy = &fault.Error{Class: fault.Unavailable, Code: "busy", Detail: "Too many requests of this kind are waiting.", RetryAfter: 5 * time.Second}

func (h *hasher) enter(ctx context.Context, known bool) (leave func(), err error) {
	slots := h.strangers
	if known {
		slots = h.known
	}
	ctx, cancel := context.WithTimeout(ctx, hashWait)
	defer cancel()
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-ctx.Done():
		return nil, errBusy
	}
}

// compare reports whether the password is that of the hash. It does the same
// work for an empty hash, which no password has, and for a password that is too
// short or too long to be one. It errs with Unavailable when it is not its turn
// soon.
func (h *hasher) compare(ctx context.Context, known bool, hash, password string) (bool, error) {
	leave, err := h.enter(ctx, known)
	if err != nil {
		return false, err
	}
	defer leave()
	against := []byte(hash)
	usable := hash != "" && len(password) >= minPasswordBytes && len(password) <= maxPasswordBytes
	if !usable {
		against = h.dummy
	}
	err = bcrypt.CompareHashAndPassword(against, []byte(password)[:min(len(password), maxPasswordBytes)])
	return usable && err == nil, nil
}

// make returns the hash of a password that checkPassword accepts.
func (h *hasher) make(ctx context.Context, known bool, password string) (string, error) {
	leave, err := h.enter(ctx, known)
	if err != nil {
		return "", err
	}
	defer leave()
	return HashPassword(password)
}

// HashPassword returns what is stored of a password that is acceptable by its
// length.
func HashPassword(password string) (string, error) {
	if len(password) < minPasswordBytes || len(password) > maxPasswordBytes {
		return "", errors.New("hash password: its length is not acceptable")
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), passwordCost)
	if err != nil {
		return "", errors.New("hash password: refused") // the cause might quote it
	}
	return string(hash), nil
}

// OneTimePassword returns a password that nobody can guess.
func OneTimePassword() string { return rand.Text() }

// checkPassword errs with Invalid, at pointer, unless the password may be set
// for the user.
func checkPassword(pointer, password, username string) error {
	switch {
	case len(password) < minPasswordBytes:
		return invalid(pointer, "password_too_short", fmt.Sprintf("has fewer than %d bytes", minPasswordBytes))
	case len(password) > maxPasswordBytes:
		return invalid(pointer, "password_too_long", fmt.Sprintf("has more than %d bytes", maxPasswordBytes))
	case isCommon(password, username):
		return invalid(pointer, "password_common", "is one of those that are tried first")
	}
	return nil
}

// common.txt holds words and passwords that are tried first, one on a line, in
// lower case.
//
//go:embed common.txt
var commonText string

var commonWords = func() map[string]bool {
	words := map[string]bool{}
	for line := range strings.Lines(commonText) {
		words[strings.TrimSpace(line)] = true
	}
	return words
}()

// leet undoes what is done to words to make them look like passwords.
var leet = strings.NewReplacer("0", "o", "1", "i", "3", "e", "4", "a", "5", "s", "7", "t", "@", "a", "$", "s", "!", "i")

// isCommon reports whether a guesser would try the password early: a common
// one, common words with something around them, the user's own name, one short
// piece again and again, or a walk along alphabet or keyboard.
func isCommon(password, username string) bool {
	plain := strings.ToLower(password)
	if commonWords[plain] || repeats(plain) || walks(plain) {
		return true
	}
	if len(username) >= 3 && len(strings.ReplaceAll(plain, username, "")) < 6 && strings.Contains(plain, username) {
		return true
	}
	notLetter := func(r rune) bool { return !unicode.IsLetter(r) }
	tail := strings.TrimRightFunc(plain, notLetter) // what stands behind a word is no part of it
	for _, form := range []string{plain, leet.Replace(plain), leet.Replace(tail), leet.Replace(strings.TrimLeftFunc(tail, notLetter))} {
		letters := strings.Map(func(r rune) rune {
			if notLetter(r) {
				return -1
			}
			return r
		}, form)
		if letters != "" && madeOfCommon(letters) {
			return true
		}
	}
	return false
}

// maxCommonWords is how many words in a row are still tried first.
const maxCommonWords = 3

// madeOfCommon reports whether the letters are a few common words, one behind
// the other.
func madeOfCommon(letters string) bool {
	words := make([]int, len(letters)+1) // least number of words up to there, plus one; 0: no way
	words[0] = 1
	for i := range letters {
		for length := 2; words[i] > 0 && i+length <= len(letters); length++ {
			end := i + length
			if commonWords[letters[i:end]] && (words[end] == 0 || words[i]+1 < words[end]) {
				words[end] = words[i] + 1
			}
		}
	}
	last := words[len(letters)]
	return last > 0 && last <= maxCommonWords+1
}

// repeats reports whether the text is a piece of at most a third of it, again
// and again.
func repeats(s string) bool {
	for size := 1; size <= len(s)/3; size++ {
		if strings.HasPrefix(strings.Repeat(s[:size], len(s)/size+1), s) {
			return true
		}
	}
	return false
}

// The ways along which people walk.
var walkways = []string{
	"abcdefghijklmnopqrstuvwxyz", "01234567890123456789", "qwertyuiop[]", "asdfghjkl;'", "zxcvbnm,./",
	"1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik,9ol.0p;/", "!@#$%^&*()_+", "qwertzuiop", "azertyuiop", "1q2w3e4r5t6y7u8i9o0p",
}

// walks reports whether at least three quarters of the text lie in steps of
// four characters and more along one of the ways, either direction.
func walks(s string) bool {
	covered := 0
	for i := 0; i < len(s); {
		longest := 1
		for _, way := range walkways {
			for _, w := range []string{way, reverse(way)} {
				n := longest
				for i+n < len(s) && strings.Contains(w, s[i:i+n+1]) {
					n++
				}
				longest = max(longest, n)
			}
		}
		if longest >= 4 {
			covered += longest
		}
		i += longest
	}
	return covered*4 >= len(s)*3
}

func reverse(s string) string {
	b := []byte(s)
	for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
		b[i], b[j] = b[j], b[i]
	}
	return string(b)
}
