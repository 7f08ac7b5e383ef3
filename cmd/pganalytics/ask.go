package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

var errNotAgreed = errors.New("nothing was done")

// confirm asks at the terminal whether to go on. Where there is none it errs
// unless yes says so.
func confirm(con console, yes bool, question string) error {
	if yes {
		return nil
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return errors.New("there is no terminal to ask at: give --yes")
	}
	return ask(con, os.Stdin, question)
}

// ask ends with the context too: whoever answers with Ctrl-C has said no.
func ask(con console, in io.Reader, question string) error {
	fmt.Fprint(con.stderr, question, " [y/N] ")
	answer := make(chan string, 1) // the reader may be left behind
	go func() {
		line, _ := bufio.NewReader(in).ReadString('\n') // no line is no yes
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case <-con.ctx.Done():
		fmt.Fprintln(con.stderr)
		return errNotAgreed
	case a := <-answer:
		if a != "y" && a != "yes" {
			return errNotAgreed
		}
		return nil
	}
}

// progressLine shows how far something is: on a terminal as one line that is
// drawn again, else as a line every few seconds.
type progressLine struct {
	out      io.Writer
	terminal bool
	width    int // of what stands on the line
	shown    time.Time
}

// plainEvery is the time between two lines where nobody looks on.
const plainEvery = 5 * time.Second

func newProgressLine(out io.Writer) *progressLine {
	f, ok := out.(*os.File)
	return &progressLine{out: out, terminal: ok && term.IsTerminal(int(f.Fd()))}
}

func (l *progressLine) show(text string) {
	now := time.Now()
	if l.terminal {
		blank := strings.Repeat(" ", max(0, l.width-utf8.RuneCountInString(text)))
		fmt.Fprint(l.out, "\r", text, blank)
		l.width = utf8.RuneCountInString(text)
		return
	}
	if now.Sub(l.shown) >= plainEvery {
		fmt.Fprintln(l.out, text)
		l.shown = now
	}
}

// end goes on below the line.
func (l *progressLine) end() {
	if l.width > 0 {
		fmt.Fprintln(l.out)
		l.width = 0
	}
}
