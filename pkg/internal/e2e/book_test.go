package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// book is docs/operations.md: the blocks that are marked as run by tests.
type book struct {
	mu     sync.Mutex
	blocks map[string][]string // by section; "" is what stands before the first
	unused map[string]bool     // blocks by section and text
}

var shellBlock = regexp.MustCompile("(?s)```sh\n(.*?)```")

func openBook(t *testing.T) *book {
	t.Helper()
	text, err := os.ReadFile("../../../docs/operations.md")
	require.NoError(t, err)
	b := &book{blocks: map[string][]string{}, unused: map[string]bool{}}
	for i, section := range strings.Split(string(text), "\n## ") {
		title, rest, _ := strings.Cut(section, "\n")
		if i == 0 {
			title = ""
		}
		for _, m := range shellBlock.FindAllStringSubmatch(rest, -1) {
			block := strings.TrimSpace(m[1])
			b.blocks[title] = append(b.blocks[title], block)
			b.unused[title+": "+block] = true
		}
	}
	require.NotEmpty(t, b.blocks)
	return b
}

// page is a section at work.
type page struct {
	t       *testing.T
	book    *book
	title   string
	env     []string
	replace []string // pairs: what differs in this test
}

// run runs the nth block of the section and returns what it printed and its
// exit status.
func (p *page) run(n int) (string, int) {
	p.t.Helper()
	blocks := p.book.blocks[p.title]
	require.Greater(p.t, len(blocks), n, "blocks in %q", p.title)
	p.book.mu.Lock()
	delete(p.book.unused, p.title+": "+blocks[n])
	p.book.mu.Unlock()
	return p.paste(blocks[n])
}

func (p *page) paste(line string) (string, int) {
	p.t.Helper()
	cmd := exec.CommandContext(p.t.Context(), "sh", "-e", "-c", strings.NewReplacer(p.replace...).Replace(line))
	cmd.Dir = p.t.TempDir()
	cmd.Env = append(append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH")), p.env...)
	out, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return string(out), exit.ExitCode()
	}
	require.NoError(p.t, err)
	return string(out), 0
}

// page opens a section for a running system.
func (s *system) page(b *book, title string, replace ...string) *page {
	return &page{t: s.t, book: b, title: title, replace: replace, env: []string{
		"DATABASE_URL=" + s.db, "PGANALYTICS_DATA_DIR=" + s.data(), "PGANALYTICS_SESSION_FILE=" + filepath.Join(s.dir, "session.json"),
	}}
}

// well waits until the overview of the beginning finds nothing wrong.
func (s *system) well(b *book) {
	s.t.Helper()
	p := s.page(b, "")
	var out string
	defer func() {
		if s.t.Failed() {
			s.t.Log(out)
		}
	}()
	s.eventually("nothing is wrong", func() bool {
		var status int
		out, status = p.run(0)
		return status == 0 && strings.Contains(out, "nothing is wrong")
	})
}
