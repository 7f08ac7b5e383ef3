package pgread

import "fmt"

// TextPolicy says what becomes of raw query text, which may hold literals and
// so secrets: the columns of the catalogue that are marked query_text.
type TextPolicy uint8

// The policies.
const (
	TextRedacted TextPolicy = iota // without literals and comments
	TextOff                        // NULL
	TextFull                       // as it is
)

var textPolicyNames = [...]string{TextRedacted: "redacted", TextOff: "off", TextFull: "full"}

// String returns the policy's name in configurations.
func (p TextPolicy) String() string {
	if int(p) >= len(textPolicyNames) {
		return fmt.Sprintf("text policy(%d)", p)
	}
	return textPolicyNames[p]
}

// ParseTextPolicy returns the policy of that name.
func ParseTextPolicy(name string) (TextPolicy, error) {
	for i, n := range textPolicyNames {
		if n == name {
			return TextPolicy(i), nil
		}
	}
	return 0, fmt.Errorf("unknown policy of query text %q, want one of off, redacted, full", name)
}
