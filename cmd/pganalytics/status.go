package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"pganalytics/pkg/bus"
	"pganalytics/pkg/health"
	"pganalytics/pkg/service"
)

type statusCmd struct {
	service.Installation
	Output string `default:"text" enum:"text,json" help:"text for people, json for scripts."`
}

// Help is what --help adds.
func (*statusCmd) Help() string {
	return `One screen on the whole system, and what to do first if something is wrong. Sections are those of docs/operations.md.

Example: pganalytics status --output json

Exit status 0: nothing is wrong. 2: something is. 1: it cannot be told.`
}

// status is what one look at an installation finds.
type status struct {
	health.Facts
	Advice []health.Advice `json:"advice"` // what to do first first
}

// Run looks at everything once.
func (c *statusCmd) Run(con console) error {
	facts, err := service.Look(con.ctx, &c.Installation, con.stderr)
	if err != nil {
		return err
	}
	s := status{facts, health.Advise(facts)}
	if c.Output == "json" {
		err = json.NewEncoder(con.stdout).Encode(s)
	} else {
		err = s.print(con.stdout)
	}
	if err == nil && len(s.Advice) > 0 {
		return errPartial
	}
	return err
}

// print shows what is wrong at the end, where the eye is.
func (s *status) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(w, name+"\t"+format+"\n", args...) }
	if s.Serve != nil {
		line("serve", "%s", word(s.Serve.Ready, "ready", "not ready"))
	}
	if s.Stream == nil {
		line("stream", "no answer")
	} else {
		printStream(line, s.Stream)
	}
	if s.Database == nil {
		line("database", "no answer")
	} else {
		printDatabase(line, s.Database)
	}
	if k := s.Collectors; k != nil {
		line("collectors", "%d active, %d offline, %d never stored, %d disabled, %d locked", k.Active, k.Offline, k.Registered, k.Disabled, k.Locked)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return printAdvice(out, s.Advice)
}

func printStream(line func(name, format string, args ...any), s *health.Stream) {
	line("stream", "%s of %s, %d batches, full in %s", size(s.Bytes), size(uint64(s.MaxBytes)), s.Batches, span(s.FullIn))
	line("to replay", "%s back", s.Window)
	line("lag", "%d batches, %s", s.Backlog, s.Lag)
	line("holds", "%d", len(s.Holds))
	line("dead letters", "%d", s.DeadLetters)
}

func printDatabase(line func(name, format string, args ...any), d *health.Database) {
	if d.ReadOnly {
		line("database", "read only")
		return
	}
	line("database", "PostgreSQL %d.%d, %s", d.Version/10000, d.Version%10000, size(uint64(d.SizeBytes)))
	load := "nothing loaded yet"
	if d.LastLoad != nil {
		load = fmt.Sprintf("last load %s ago", d.LastLoad)
	}
	line("ingesters", "%d seen in the last minute, %s", d.Ingesters, load)
}

func printAdvice(out io.Writer, all []health.Advice) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(out, "\nnothing is wrong")
		return err
	}
	first := all[0]
	fmt.Fprintf(out, "\nFIRST: %s\n  %s\n  docs/operations.md: %s\n", first.Wrong, first.Do, first.See)
	for _, a := range all[1:] {
		fmt.Fprintf(out, "then: %s\n  %s\n", a.Wrong, a.Do)
	}
	return nil
}

func word(yes bool, then, otherwise string) string {
	if yes {
		return then
	}
	return otherwise
}

// span is for one that may be unknown.
func span(s *health.Span) string {
	if s == nil {
		return "-"
	}
	if time.Duration(*s) > 10*365*24*time.Hour {
		return "years"
	}
	return s.String()
}

// size is bytes for people.
func size(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	v, units := float64(n), strings.Split("KiB MiB GiB TiB PiB EiB", " ")
	for {
		v /= unit
		if v < unit || len(units) == 1 {
			return fmt.Sprintf("%.1f %s", v, units[0])
		}
		units = units[1:]
	}
}

// backlog counts by the floor of acknowledged messages: the server's own count
// of pending ones lags behind.
func backlog(s bus.Status) uint64 { return s.LastSequence - min(s.LastSequence, s.AckFloor) }
