package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/collector"
	"pganalytics/pkg/collector/spool"
	"pganalytics/pkg/collector/uplink"
)

type deadlettersCommand struct {
	List    lettersListCommand    `cmd:"" help:"List dead letters, oldest first."`
	Show    lettersShowCommand    `cmd:"" help:"Show one of them: the gateway's answer, and what the body holds."`
	Resend  lettersResendCommand  `cmd:"" help:"Have letters sent again as they are, once their cause is gone. The collector that runs does it within seconds, else the next one."`
	Discard lettersDiscardCommand `cmd:"" help:"Give letters up for good: their bytes are gone."`
}

// lettersAt says where the letters are. All commands may run beside the
// collector.
type lettersAt struct {
	StateDir string `type:"path" default:"/var/lib/pganalytics-collector" help:"Directory with the identity."`
	SpoolDir string `type:"path" help:"Directory of the spool, if the configuration sets it elsewhere."`
}

func (l *lettersAt) dir() string {
	if l.SpoolDir != "" {
		return l.SpoolDir
	}
	return collector.SpoolDir(l.StateDir)
}

// letter is a letter's head as scripts see it.
type letter struct {
	spool.Letter
	Bytes      int64 `json:"bytes"`
	Asked      bool  `json:"asked"`      // it is to be sent again
	Resendable bool  `json:"resendable"` // else it can only be looked at
}

func letterOf(l spool.Letter) letter { return letter{l, l.Bytes, l.Asked, l.Resendable()} }

// what says which part of a batch it is.
func (l *letter) what() string {
	switch {
	case l.Rejected == 0:
		return "batch"
	case l.Resendable:
		return strconv.Itoa(l.Rejected) + " items"
	}
	return strconv.Itoa(l.Rejected) + " items, in their batch"
}

func (l *letter) code() string {
	if l.Code == "" {
		return "-"
	}
	return l.Code
}

type lettersListCommand struct {
	lettersAt
	formatted
}

// Run lists.
func (c *lettersListCommand) Run(streams *streams) error {
	found, err := spool.Letters(c.dir())
	if err != nil {
		return err
	}
	letters := []letter{}
	for _, l := range found {
		letters = append(letters, letterOf(l))
	}
	return c.show(streams.out, letters, func(out io.Writer) error {
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "ID\tREFUSED\tNUMBER\tSTATUS\tCODE\tWHAT\tBYTES\tSENT AGAIN")
		for _, l := range letters {
			asked := "-"
			if l.Asked {
				asked = "soon"
			}
			fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\t%s\t%d\t%s\n",
				l.BatchID, l.At.Format(time.RFC3339), l.Sequence, l.Status, l.code(), l.what(), l.Bytes, asked)
		}
		return w.Flush()
	})
}

type lettersShowCommand struct {
	ID uuid.UUID `arg:"" help:"Id of the letter, as list shows it."`
	lettersAt
	formatted
}

// shown is all of a letter but its rows.
type shown struct {
	letter
	AnswerDocument json.RawMessage `json:"answer_document,omitempty"`
	Sections       []section       `json:"sections"`
	Unreadable     string          `json:"unreadable,omitempty"` // why the sections are not known
}

type section struct {
	Family  string    `json:"family"`
	Server  string    `json:"server"`
	Rows    uint64    `json:"rows"`
	From    time.Time `json:"from"`
	To      time.Time `json:"to"`
	Columns []string  `json:"columns"`
}

// Run shows.
func (c *lettersShowCommand) Run(streams *streams) error {
	l, body, err := spool.ReadLetter(c.dir(), c.ID)
	if err != nil {
		return err
	}
	s := shown{letter: letterOf(l), Sections: []section{}}
	if json.Valid([]byte(l.Answer)) {
		s.AnswerDocument = json.RawMessage(l.Answer)
	}
	push, err := uplink.DecodeBody(body)
	if err != nil {
		s.Unreadable = err.Error()
	}
	for _, p := range push.GetSections() {
		in := section{
			Family: p.GetFamily(), Server: p.GetServer(), Rows: p.GetRows(),
			From: time.UnixMicro(p.GetMinTimeUs()).UTC(), To: time.UnixMicro(p.GetMaxTimeUs()).UTC(),
		}
		for _, column := range p.GetColumns() {
			in.Columns = append(in.Columns, column.GetName())
		}
		s.Sections = append(s.Sections, in)
	}
	return c.show(streams.out, s, s.print)
}

func (s *shown) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t"+format+"\n", append([]any{name}, args...)...)
	}
	line("id", "%s", s.BatchID)
	line("number", "%d of epoch %s", s.Sequence, s.Epoch)
	line("what", "%s, %d bytes", s.what(), s.Bytes)
	if s.PartOf != uuid.Nil {
		line("of batch", "%s", s.PartOf)
	}
	line("refused", "%s with status %d %s", s.At.Format(time.RFC3339), s.Status, s.code())
	line("answer", "%s", strings.TrimSpace(s.Answer))
	for i, in := range s.Sections {
		line(fmt.Sprintf("section %d", i), "%s of %s, %d rows from %s to %s: %s", in.Family, in.Server, in.Rows,
			in.From.Format(time.RFC3339), in.To.Format(time.RFC3339), strings.Join(in.Columns, " "))
	}
	if s.Unreadable != "" {
		line("sections", "not known: %s", s.Unreadable)
	}
	return w.Flush()
}

// chosen are the letters that a command is about.
type chosen struct {
	IDs []uuid.UUID `arg:"" optional:"" name:"id" help:"Ids of letters, as list shows them."`
	All bool        `env:"-" help:"All there are, instead of ids."`
	lettersAt
}

// each calls f with the chosen letters and joins its errors.
func (c *chosen) each(f func(dir string, id uuid.UUID) error) (n int, err error) {
	if c.All == (len(c.IDs) > 0) {
		return 0, errors.New("either ids or --all is needed")
	}
	ids := c.IDs
	if c.All {
		letters, err := spool.Letters(c.dir())
		if err != nil {
			return 0, err
		}
		for _, l := range letters {
			ids = append(ids, l.BatchID)
		}
	}
	var errs []error
	for _, id := range ids {
		if err := f(c.dir(), id); err != nil {
			errs = append(errs, err)
			continue
		}
		n++
	}
	return n, errors.Join(errs...)
}

type lettersResendCommand struct {
	chosen
}

// Run asks.
func (c *lettersResendCommand) Run(streams *streams) error {
	n, err := c.each(spool.AskResend)
	_, printErr := fmt.Fprintf(streams.out, "%d letters are sent again by the collector\n", n)
	return errors.Join(err, printErr)
}

type lettersDiscardCommand struct {
	chosen
}

// Run discards.
func (c *lettersDiscardCommand) Run(streams *streams) error {
	n, err := c.each(spool.DiscardLetter)
	_, printErr := fmt.Fprintf(streams.out, "%d letters are gone\n", n)
	return errors.Join(err, printErr)
}
