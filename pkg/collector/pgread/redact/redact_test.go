package redact_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"pganalytics/pkg/collector/pgread/redact"
)

func TestLiteralsAreTakenOut(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                                      "",
		"select * from t1 where id = 42":        "select * from t1 where id = ?",
		"select 'it''s', x":                     "select ?, x",
		"alter role x password 'pw'":            "alter role x password ?",
		`select E'a\'pw', E'\\', y`:             "select ?, ?, y",
		`select e'a''\'pw', y`:                  "select ?, y",
		`select 'a\\', y`:                       "select ?, y",
		"select B'01', X'1f', N'pw', U&'pw', y": "select ?, ?, ?, ?, y",
		"select u&'d!0061' uescape '!'":         "select ? uescape ?",
		`select "a'b", U&"c""d", 'pw', y`:       `select "a'b", U&"c""d", ?, y`,
		"select $$pw$$, $x$ $y$ pw $x$, y":      "select ?, ?, y",
		"select $é$pw$é$, y":                    "select ?, y",
		"select $1, $1$a$pw$a$":                 "select $1, $1?",
		"select a$b$pw, 'x'":                    "select a$b$pw, ?", // a name
		"select $a pw":                          "select $a pw",     // no string either
		"select 0x1F, 0b01, 0o17, 1_000, .5, 1., 1e10, 1.5E-3, -7": "select ?, ?, ?, ?, ?, ?, ?, ?, -?",
		"select 123abc, x1, x_2, t.c3":                             "select ?, x1, x_2, t.c3",
		"for i in 1..10":                                           "for i in ?",
		"select a[1:2], 3::int, 'x'::text":                         "select a[?:?], ?::int, ?::text",
		"select 1 -- pw 'x\n, y":                                   "select ?  \n, y",
		"select 1 /* a /* 'b */ pw */ , y":                         "select ?   , y",
		"select 3*/*pw*/4, 5--pw":                                  "select ?* ?, ? ",
		"select '/*', y, '*/'":                                     "select ?, y, ?",
		"select '--', y":                                           "select ?, y",
		"select e'a'\n'b\\'pw', y":                                 "select ?, y",
		"select e'a' -- c\n -- d\n 'b\\'pw', y":                    "select ?, y",
		"select 'a' 'pw', y":                                       "select ? ?, y",
		"select data->>'key' = any('{1,2}')":                       "select data->>? = any(?)",
		"START_REPLICATION SLOT \"s\" LOGICAL 0/16B3748":           "START_REPLICATION SLOT \"s\" LOGICAL ?/?",
		"autovacuum: VACUUM public.t (to prevent wraparound)":      "autovacuum: VACUUM public.t (to prevent wraparound)",
		"<insufficient privilege>":                                 "<insufficient privilege>",
		"select 'é€', é":                                           "select ?, é",
	} {
		require.Equal(t, want, redact.Text(in), in)
	}
}

// Servers cut texts anywhere.
func TestWhatIsNotClosedIsALiteral(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"select 'pw":         "select ?",
		`select E'p\`:        "select ?",
		"select $x$ pw $x":   "select ?",
		"select $x":          "select ?", // may be the tag
		"select $$pw$":       "select ?",
		"select /* pw":       "select  ",
		"select /* /* */ pw": "select  ",
		"select -- pw":       "select  ",
		`select "pw`:         "select ?",
		"select 12":          "select ?",
		"select E":           "select E",
		"select $":           "select $",
	} {
		require.Equal(t, want, redact.Text(in), in)
	}
}

func TestNothingStaysWhereItIsNotSureWhatIsALiteral(t *testing.T) {
	t.Parallel()
	for _, in := range []string{
		`select 'a\', 'pw'`,       // one string or two
		`select 'a\'', pw, '`,     //
		`select U&'a\'pw'`,        //
		`select 1E'a\'pw'`,        // before 15 the number ends before E
		"select 1_$a$ 'x $a$ pw'", // before 16 a name begins at _
		`select a \ pw`,           // not SQL
		"select a \x01 pw",        //
	} {
		require.Equal(t, redact.Unreadable, redact.Text(in), in)
	}
}

// pieces are what texts are made of; § is in every literal and nowhere else.
var pieces = []string{
	"select ", "x", "E", "e1", "_", " ", ", ", "\n", "(", ")", "::", "->>", "*", "/", "-", "+", ".", "$1", "$x ", "5", "1e", "0x", `"q'"`, `"$$"`,
	"'§'", "'§''§'", `E'§\'§'`, `e'§\\'`, "$$§'§$$", "$t$§$$§$t$", "B'§'", "U&'§'", `'§\\'`, "N'§'", " -- §'\n", "/* § /* ' */ § */", "e'§'\n'§\\'§'", `'§\'§', '§'`, "$é$§$é$",
}

// Whatever literals a text is made of and wherever it is cut: none stays. A
// piece stands apart from the one before where the two would be something else
// together.
func FuzzNoLiteralSurvives(f *testing.F) {
	f.Add([]byte{0, 24, 6, 25}, uint16(8))
	f.Add([]byte{0, 29, 35, 26}, uint16(100))
	f.Add([]byte{0, 37, 6, 24}, uint16(100))
	f.Fuzz(func(t *testing.T, choice []byte, cut uint16) {
		var text strings.Builder
		for _, c := range choice {
			text.WriteString(pieces[int(c)%len(pieces)])
			text.WriteString(" ")
		}
		in := text.String()
		in = in[:min(int(cut), len(in))]
		out := redact.Text(in)
		if strings.Contains(out, "\xc2") { // with which § begins
			t.Fatalf("%q became %q", in, out)
		}
	})
}

// Of whatever text: what is left has nothing that would be taken out.
func FuzzText(f *testing.F) {
	for _, seed := range []string{"select 'a', E'\\'', $$b$$ -- c", `'a\'b`, "1e-5$", "\"", "/*/", "$a", "e'\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		out := redact.Text(in)
		if again := redact.Text(out); again != out {
			t.Fatalf("%q became %q became %q", in, out, again)
		}
	})
}
