package collector

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// Write writes the findings for people.
func (f *Findings) Write(out io.Writer) error {
	w := &lines{out: out}
	if f.Collector != "" {
		w.line("collector %s, gateway %s", f.Collector, f.Gateway)
	}
	w.all("", f.Notes, f.Faults)
	for i := range f.Servers {
		f.Servers[i].write(w)
	}
	if f.Host != nil {
		w.line("\nhost, stored as server %s", f.Host.Name)
		w.families(f.Host.Families)
	}
	if n := f.Bad(); n == 0 {
		w.line("\neverything that is configured works")
	}
	return w.err
}

func (s *ServerFinding) write(w *lines) {
	if s.Version == "" {
		w.line("\nserver %s", s.Name)
	} else {
		w.line("\nserver %s: PostgreSQL %s, %s, as %s", s.Name, s.Version, s.Role, s.User)
	}
	w.all("  ", s.Notes, s.Faults)
	w.families(s.Families)
}

// lines writes lines and keeps the first error.
type lines struct {
	out io.Writer
	err error
}

func (l *lines) line(format string, args ...any) {
	if l.err == nil {
		_, l.err = fmt.Fprintf(l.out, format+"\n", args...)
	}
}

func (l *lines) all(indent string, notes, faults []string) {
	for _, note := range notes {
		l.line("%s%s", indent, note)
	}
	for _, fault := range faults {
		l.line("%sFAULT: %s", indent, fault)
	}
}

func (l *lines) families(families []FamilyFinding) {
	if len(families) == 0 || l.err != nil {
		return
	}
	table := tabwriter.NewWriter(l.out, 0, 0, 2, ' ', 0)
	fmt.Fprint(table, "  FAMILY\tDATABASE\tREAD\tROWS\tTOOK\t\n")
	for _, f := range families {
		database := f.Database
		if database == "" {
			database = "-"
		}
		if f.State == collected {
			every := strings.NewReplacer("m0s", "m", "h0m", "h").Replace(time.Duration(f.Every * float64(time.Second)).String())
			fmt.Fprintf(table, "  %s\t%s\tevery %s\t%d\t%.0f ms\t\n", f.Family, database, every, f.Rows, f.Millis)
			continue
		}
		state := f.State
		if f.Fault {
			state = "FAULT"
		}
		fmt.Fprintf(table, "  %s\t%s\t%s\t\t\t%s\n", f.Family, database, state, f.Reason)
	}
	l.err = table.Flush()
}
