package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/replay/repair"
	"pganalytics/pkg/service"
)

type deadlettersCmd struct {
	List    lettersListCmd    `cmd:"" help:"List dead letters, oldest first."`
	Show    lettersShowCmd    `cmd:"" help:"Show all of one letter: its headers, its rows, and which value is at fault."`
	Retry   lettersRetryCmd   `cmd:"" help:"Publish batches again, and delete the letters of those that got stored."`
	Discard lettersDiscardCmd `cmd:"" help:"Give batches up for good: the ledger says so, and no replay stores them."`
	Export  lettersExportCmd  `cmd:"" help:"Write letters into files: their bytes, and what is known of each as JSON."`
}

// letterFilter is the flags that say which letters are meant.
type letterFilter struct {
	Collector string    `help:"Only letters of the collector with this id."`
	BuriedAs  string    `help:"Only letters of this reason, as data_error."`
	Since     time.Time `help:"Only letters buried from this time on, as 2026-01-31T12:00:00Z."`
	Until     time.Time `help:"Only letters buried before this time."`
}

func (f letterFilter) selection() (repair.Selection, error) {
	sel := repair.Selection{Reason: f.BuriedAs, Since: f.Since, Until: f.Until}
	if f.Collector != "" {
		id, err := uuid.Parse(f.Collector)
		if err != nil {
			return sel, fmt.Errorf("--collector: %q is no id of a collector", f.Collector)
		}
		sel.Collector = &id
	}
	return sel, nil
}

// formatted is the flag that every command with an answer has.
type formatted struct {
	Output string `default:"text" enum:"text,json" help:"text for people, json for scripts."`
}

// show prints v as JSON for scripts, else what text prints.
func (o formatted) show(con console, v any, text func(io.Writer) error) error {
	return (&remote{Output: o.Output}).show(con, v, text)
}

type lettersListCmd struct {
	service.Installation
	letterFilter
	After uint64 `help:"Only letters behind this place, which the page before ends with."`
	Limit int    `default:"100" help:"Most letters on the page."`
	formatted
}

// Help adds an example.
func (*lettersListCmd) Help() string {
	return "Example: pganalytics deadletters list --buried-as data_error --since 2026-01-31T12:00:00Z"
}

// letter is a letter's head as scripts see it.
type letter struct {
	ID          string    `json:"id"`
	Place       uint64    `json:"place"`
	BuriedAt    time.Time `json:"buried_at"`
	CollectorID uuid.UUID `json:"collector_id"`
	BatchID     uuid.UUID `json:"batch_id"`
	Digest      string    `json:"digest"`
	Reason      string    `json:"reason"`
	Detail      string    `json:"detail"`
	SQLState    string    `json:"sqlstate"`
	Rows        int       `json:"rows"`
	Bytes       int       `json:"bytes"`
	Sequence    uint64    `json:"stream_sequence"`
	Incarnation string    `json:"stream_incarnation"`
	Delivered   uint64    `json:"delivered"`
	StoredAt    time.Time `json:"stored_at"`
}

func letterOf(l batch.FiledLetter) letter {
	return letter{
		ID: l.ID, Place: l.Sequence, BuriedAt: l.BuriedAt, CollectorID: l.CollectorID, BatchID: l.BatchID,
		Digest: hex.EncodeToString(l.Digest[:]), Reason: l.Reason, Detail: l.Detail, SQLState: l.SQLState, Rows: l.Rows, Bytes: l.Size,
		Sequence: l.Position.Sequence, Incarnation: l.Position.Incarnation, Delivered: l.Position.Delivered, StoredAt: l.Position.StoredAt,
	}
}

// Run lists.
func (c *lettersListCmd) Run(con console) error {
	sel, err := c.selection()
	if err != nil {
		return err
	}
	sel.After, sel.Limit = c.After, max(1, c.Limit)
	bench, end, err := c.Letters(con.ctx, con.stderr)
	if err != nil {
		return err
	}
	defer end()
	heads, more, err := bench.List(con.ctx, sel)
	if err != nil {
		return err
	}
	list := struct {
		Letters []letter `json:"letters"`
		Next    uint64   `json:"next,omitempty"` // for --after; 0 when there are no more
	}{Letters: []letter{}}
	for _, l := range heads {
		list.Letters = append(list.Letters, letterOf(l))
		if more {
			list.Next = l.Sequence
		}
	}
	return c.show(con, list, func(out io.Writer) error { return printLetters(out, list.Letters, list.Next) })
}

func printLetters(out io.Writer, letters []letter, next uint64) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tBURIED\tCOLLECTOR\tREASON\tSQLSTATE\tBATCH\tROWS\tBYTES")
	for _, l := range letters {
		rows := "-"
		if l.Rows > 0 {
			rows = strconv.Itoa(l.Rows)
		}
		fmt.Fprintln(w, strings.Join([]string{l.ID, stamp(l.BuriedAt), l.CollectorID.String(), l.Reason, orDash(l.SQLState),
			l.BatchID.String(), rows, strconv.Itoa(l.Bytes)}, "\t"))
	}
	if err := w.Flush(); err != nil || next == 0 {
		return err
	}
	_, err := fmt.Fprintf(out, "there are more: --after %d\n", next)
	return err
}

// stamp prints a time that operators compare with logs: in UTC.
func stamp(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

type lettersShowCmd struct {
	service.Installation
	ID   string `arg:"" help:"Id of the letter."`
	Rows int    `default:"20" help:"Most rows shown of each section. All rows are searched for faults."`
	formatted
}

// Help adds an example.
func (*lettersShowCmd) Help() string {
	return "Example: pganalytics deadletters show 0123456789abcdef"
}

// shownLetter is a letter as scripts see it.
type shownLetter struct {
	letter
	SentAt   time.Time      `json:"sent_at,omitzero"`
	Received time.Time      `json:"received_at,omitzero"`
	Epoch    uuid.UUID      `json:"epoch,omitzero"`
	Number   uint64         `json:"sequence,omitempty"`
	Faults   []repair.Fault `json:"faults"`
	Sections []shownSection `json:"sections"`
}

type shownSection struct {
	Family   string      `json:"family"`
	Server   string      `json:"server"`
	ServerID uuid.UUID   `json:"server_id"`
	Columns  []string    `json:"columns"`
	Rows     int         `json:"rows"`
	Values   [][]*string `json:"values"`
}

// Run shows.
func (c *lettersShowCmd) Run(con console) error {
	bench, end, err := c.Letters(con.ctx, con.stderr)
	if err != nil {
		return err
	}
	defer end()
	found, err := bench.Show(con.ctx, c.ID, c.Rows)
	if err != nil {
		return err
	}
	s := shownLetter{letter: letterOf(found.FiledLetter), Faults: append([]repair.Fault{}, found.Faults...), Sections: []shownSection{}}
	if b := found.Batch; b != nil {
		s.SentAt, s.Received, s.Epoch, s.Number = b.SentAt, b.ReceivedAt, b.Epoch, b.Sequence
	}
	for _, x := range found.Sections {
		s.Sections = append(s.Sections, shownSection(x))
	}
	return c.show(con, s, s.print)
}

func (s shownLetter) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, line := range [][2]string{
		{"id", s.ID}, {"buried", stamp(s.BuriedAt)}, {"reason", s.Reason}, {"detail", orDash(s.Detail)}, {"sqlstate", orDash(s.SQLState)},
		{"collector", s.CollectorID.String()}, {"batch", s.BatchID.String()}, {"digest", s.Digest}, {"bytes", strconv.Itoa(s.Bytes)},
		{"stream", fmt.Sprintf("message %d of the stream of %s, there since %s, delivered %d times", s.Sequence, s.Incarnation, stamp(s.StoredAt), s.Delivered)},
		{"sent", stamp(s.SentAt)}, {"received", stamp(s.Received)}, {"number", s.numbered()},
	} {
		fmt.Fprintf(w, "%s\t%s\n", line[0], line[1])
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, f := range s.Faults {
		fmt.Fprintf(out, "fault: %s\n", s.place(f)+f.Why)
	}
	for i := range s.Sections {
		if err := s.printSection(out, i); err != nil {
			return err
		}
	}
	return nil
}

// numbered tells the batch's number, for senders that number.
func (s shownLetter) numbered() string {
	if s.Epoch == uuid.Nil {
		return "-"
	}
	return fmt.Sprintf("%d of epoch %s", s.Number, s.Epoch)
}

// place names the value that a fault is in. Rows count from 1.
func (s shownLetter) place(f repair.Fault) string {
	place := ""
	if f.Section >= 0 {
		place = printable(s.Sections[f.Section].Family) + " of " + printable(s.Sections[f.Section].Server) + ", "
	}
	if f.Row >= 0 {
		place += fmt.Sprintf("row %d, ", f.Row+1)
	}
	if f.Column != "" {
		place += printable(f.Column) + " "
	}
	return place
}

// printable keeps what a sender made up from steering the terminal.
func printable(s string) string { return batch.ValueText(catalogue.Text, []byte(s)) }

// printSection prints rows as a table, the values at fault marked.
func (s shownLetter) printSection(out io.Writer, i int) error {
	section := s.Sections[i]
	fmt.Fprintf(out, "\n%s of %s (%s): %s\n", printable(section.Family), printable(section.Server), section.ServerID, count(section.Rows, "row"))
	faulty := map[[2]any]bool{}
	for _, f := range s.Faults {
		faulty[[2]any{f.Row, f.Column}] = f.Section == i || faulty[[2]any{f.Row, f.Column}]
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	heading := make([]string, len(section.Columns))
	for c, name := range section.Columns {
		heading[c] = printable(name)
	}
	fmt.Fprintln(w, strings.Join(heading, "\t"))
	for row, values := range section.Values {
		cells := make([]string, len(values))
		for c, v := range values {
			if cells[c] = "NULL"; v != nil {
				cells[c] = *v
			}
			if faulty[[2]any{row, section.Columns[c]}] {
				cells[c] = ">>> " + cells[c]
			}
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(section.Values) < section.Rows {
		fmt.Fprintf(out, "… %d more\n", section.Rows-len(section.Values))
	}
	return nil
}
