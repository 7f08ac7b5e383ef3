package identity

import "errors"

// Role says what a user may do. A greater one may do all that a lesser one may.
type Role uint8

// The roles. The zero value is none of them and may nothing.
const (
	roleNone Role = iota
	Viewer
	Operator
	Admin
)

var roleNames = [...]string{"none", "viewer", "operator", "admin"}

// ParseRole is the inverse of String.
func ParseRole(s string) (Role, error) {
	for i, name := range roleNames[1:] {
		if s == name {
			return Role(i + 1), nil
		}
	}
	return roleNone, errors.New("unknown role")
}

// String returns the role as it stands in claims and answers.
func (r Role) String() string {
	if int(r) >= len(roleNames) {
		return roleNames[roleNone]
	}
	return roleNames[r]
}

// MarshalText implements encoding.TextMarshaler.
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *Role) UnmarshalText(text []byte) (err error) {
	*r, err = ParseRole(string(text))
	return err
}
