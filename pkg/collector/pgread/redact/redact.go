// Package redact takes the literals out of SQL texts, which may be secrets:
// strings, numbers, and comments with whatever is in them.
//
// Invariant: what may be a literal does not stay. A text may end anywhere, for
// servers cut it, so what is not closed is a literal up to its end. Where the
// lexical rules leave open what is a literal, nothing of the text stays.
//
// Source: PostgreSQL documentation, "Lexical Structure". The rules are those of
// all supported versions together: what is a number in one of them is one here.
package redact

import "strings"

// Literal stands for each literal that was taken out.
const Literal = "?"

// Unreadable stands for a whole text of which it is not sure what is a literal.
const Unreadable = "<redacted>"

// Text returns sql without literals and comments.
func Text(sql string) string {
	s := scanner{in: sql}
	s.out.Grow(len(sql))
	for s.at < len(sql) && !s.unsure {
		s.token()
	}
	if s.unsure {
		return Unreadable
	}
	return s.out.String()
}

// scanner reads one text.
type scanner struct {
	in     string
	at     int
	out    strings.Builder
	unsure bool
}

// token reads one token, or one byte that is none.
func (s *scanner) token() {
	rest := s.in[s.at:]
	switch c := rest[0]; {
	case strings.HasPrefix(rest, "--"):
		s.at += lineEnd(rest)
		s.out.WriteByte(' ')
	case strings.HasPrefix(rest, "/*"):
		s.at += commentEnd(rest)
		s.out.WriteByte(' ')
	case c == '\'':
		s.literal(0)
	case stringPrefix(rest) > 0:
		s.literal(stringPrefix(rest))
	case c == '"':
		s.name()
	case c == '$':
		s.dollar()
	case digit(c), c == '.' && len(rest) > 1 && digit(rest[1]):
		s.number()
	case letter(c):
		s.copy(end(rest, inName))
	case c == '\\', c < ' ' && !space(c):
		s.unsure = true // no such thing outside of a string: this may be inside of one
	default:
		s.copy(1)
	}
}

func (s *scanner) copy(n int) {
	s.out.WriteString(s.in[s.at : s.at+n])
	s.at += n
}

// stringPrefix returns the length of what makes a quote behind it another kind
// of string, 0 if there is none: E, B, X, N and U&.
func stringPrefix(rest string) int {
	switch {
	case len(rest) >= 2 && rest[1] == '\'' && strings.IndexByte("eEbBxXnN", rest[0]) >= 0:
		return 1
	case len(rest) >= 3 && (rest[0] == 'u' || rest[0] == 'U') && rest[1] == '&' && rest[2] == '\'':
		return 2
	}
	return 0
}

// literal reads a string with a prefix of that length, and those that continue
// it on later lines, which have no prefix and are of the same kind.
func (s *scanner) literal(prefix int) {
	escapes := prefix == 1 && (s.in[s.at] == 'e' || s.in[s.at] == 'E')
	s.at += prefix
	for {
		s.at++ // the quote
		s.body(escapes)
		next := continuation(s.in[s.at:])
		if next == 0 {
			break
		}
		s.at += next
	}
	s.out.WriteString(Literal)
}

// body reads up to and with the quote that ends a string. Whether a backslash
// before a quote hides it, in strings other than E”, is a setting of the
// session (standard_conforming_strings), which a text does not tell.
func (s *scanner) body(escapes bool) {
	backslashes := 0
	for ; s.at < len(s.in); s.at++ {
		switch c := s.in[s.at]; {
		case c == '\\':
			backslashes++
			continue
		case c == '\'' && backslashes%2 == 1:
			if !escapes {
				s.unsure = true
				return
			}
		case c == '\'' && strings.HasPrefix(s.in[s.at+1:], "'"):
			s.at++ // stands for one quote
		case c == '\'':
			s.at++
			return
		}
		backslashes = 0
	}
}

// continuation returns how far behind a string the quote is that continues it,
// 0 if none does: only white space and comments up to a line's end may stand
// between them, and an end of line.
func continuation(rest string) int {
	newline := false
	for i := 0; i < len(rest); {
		switch {
		case strings.HasPrefix(rest[i:], "--"):
			i += lineEnd(rest[i:])
			continue
		case rest[i] == '\n', rest[i] == '\r':
			newline = true
		case rest[i] == '\'' && newline:
			return i
		case !space(rest[i]):
			return 0
		}
		i++
	}
	return 0
}

// name copies a quoted name. One that is not closed may be anything.
func (s *scanner) name() {
	rest := s.in[s.at:]
	for i := 1; i < len(rest); i++ {
		switch {
		case rest[i] != '"':
		case strings.HasPrefix(rest[i+1:], `"`):
			i++ // stands for one quote
		default:
			s.copy(i + 1)
			return
		}
	}
	s.at = len(s.in)
	s.out.WriteString(Literal)
}

// dollar reads a parameter such as $1, a string such as $tag$…$tag$, or the
// bare sign.
func (s *scanner) dollar() {
	rest := s.in[s.at:]
	if n := 1 + end(rest[1:], digit); n > 1 {
		s.copy(n)
		return
	}
	n := 1 + end(rest[1:], func(c byte) bool { return letter(c) || digit(c) })
	if n == len(rest) && n > 1 {
		s.at = len(s.in) // the text was cut in a tag
		s.out.WriteString(Literal)
		return
	}
	if n == len(rest) || rest[n] != '$' {
		s.copy(1)
		return
	}
	tag := rest[:n+1]
	if i := strings.Index(rest[len(tag):], tag); i >= 0 {
		s.at += i + 2*len(tag)
	} else {
		s.at = len(s.in)
	}
	s.out.WriteString(Literal)
}

// lineEnd returns the length of a comment up to the line's end, which stays.
func lineEnd(rest string) int {
	return end(rest, func(c byte) bool { return c != '\n' && c != '\r' })
}

// commentEnd returns the length of a comment, in which others may be nested.
func commentEnd(rest string) int {
	depth := 0
	for i := 0; i < len(rest); {
		switch {
		case strings.HasPrefix(rest[i:], "/*"):
			depth++
			i += 2
		case strings.HasPrefix(rest[i:], "*/"):
			depth--
			i += 2
			if depth == 0 {
				return i
			}
		default:
			i++
		}
	}
	return len(rest)
}

// number reads a number. Where letters hang on it, old servers begin a name
// there, which may have a dollar sign in it, and new ones do not.
func (s *scanner) number() {
	rest := s.in[s.at:]
	n := numberEnd(rest)
	letters := strings.ContainsFunc(rest[:n], func(r rune) bool { return r > 0x7f || letter(byte(r)) })
	if letters && strings.HasPrefix(rest[n:], "$") {
		s.unsure = true
	}
	s.at += n
	s.out.WriteString(Literal)
}

// numberEnd returns the length of a number of whatever form, 0x1f, 1_000, 1.5e-3,
// and of what hangs on it.
func numberEnd(rest string) int {
	for i := 0; i < len(rest); i++ {
		c := rest[i]
		sign := (c == '+' || c == '-') && i > 0 && (rest[i-1] == 'e' || rest[i-1] == 'E') && i+1 < len(rest) && digit(rest[i+1])
		if !letter(c) && !digit(c) && c != '.' && !sign {
			return i
		}
	}
	return len(rest)
}

// end returns the length of what begins rest and is all such bytes.
func end(rest string, such func(byte) bool) int {
	for i := range len(rest) {
		if !such(rest[i]) {
			return i
		}
	}
	return len(rest)
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

// letter reports whether a name may begin with c: every byte beyond ASCII does.
func letter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' || c == '_' || c >= 0x80 }

func inName(c byte) bool { return letter(c) || digit(c) || c == '$' }

func space(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }
