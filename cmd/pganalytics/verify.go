package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/replay"
	"pganalytics/pkg/replay/verify"
	"pganalytics/pkg/service"
)

type verifyCmd struct {
	service.Installation
	From      moment      `help:"Verify what was sent from this time on, by the collectors' clocks: 2026-01-31T15:04:05Z, \"2026-01-31 15:04\" in local time, or 6h for six hours ago. Rows are counted in the whole hours from then on. Defaults to all that is known."`
	To        moment      `help:"Verify only what was sent up to this time. Defaults to now."`
	Collector []uuid.UUID `help:"Only batches and rows of this collector, by its id. May be given several times."`
	Fix       bool        `help:"Store what is replayable, as replay does, and verify again; ask collectors to send again what is lost."`
	Yes       bool        `help:"Do not ask before --fix stores anything."`
	List      int         `default:"1000" help:"Most gaps, and most mismatches, to list; all are counted."`
	Output    string      `default:"text" enum:"text,json" help:"text for people, json for scripts."`
}

// Help stands below the flags' description.
func (*verifyCmd) Help() string {
	return `Every number that a collector gave is looked for in ledger, dead letters and stream, and the rows of
every server and hour are counted against the ledger. Batches of senders that do not number are looked for on
the stream alone. It changes nothing, and may run beside everything else.

  stored         in the ledger, and so in the tables
  discarded      given up by people: in the ledger, without rows
  dead_lettered  laid aside: pganalytics deadletters
  in_flight      on the stream, not yet acknowledged; that is no fault
  replayable     on the stream, acknowledged and not stored: --fix, or pganalytics replay
  refused        refused by a gateway for good and reported by the collector, which keeps the body
  lost           nowhere, though the collector has sent later ones: --fix asks it to send them again

Exit code: 0 nothing is dead-lettered, replayable or lost, and all rows are there; 1 it did not work; 2 something
of that was found.

Example, after the replay that followed on a restored backup:

  pganalytics verify --from 48h`
}

// Run verifies, and with --fix replays and verifies again.
func (c *verifyCmd) Run(con console) error {
	if c.List < 0 {
		return fmt.Errorf("--list: %d is below zero", c.List)
	}
	line := newProgressLine(con.stderr)
	r, res, err := c.Verify(con.ctx, service.VerifyRequest{
		Request: verify.Request{From: c.From.Time, To: c.To.Time, Collectors: c.Collector, List: c.List},
		Fix:     c.Fix, By: actor(),
	}, service.ReplayConsole{
		Stderr: con.stderr,
		Tell:   func(p replay.Progress) { line.show(progressText(p)) },
		Agree: func(p replay.Plan) error {
			line.end()
			return confirm(con, c.Yes, fmt.Sprintf("Store %s?", count(p.Missing.Batches, "missing batch")))
		},
	})
	line.end()
	if res.ID != "" {
		err = verdict(res, err, "pganalytics replay --resume")
	}
	if err != nil {
		return err
	}
	if c.Output == "json" {
		err = json.NewEncoder(con.stdout).Encode(r)
	} else {
		err = printReport(con.stdout, &r)
	}
	return errors.Join(err, findings(&r))
}

// findings is what somebody must act on.
func findings(r *verify.Report) error {
	if r.Clean() {
		return nil
	}
	var sum verify.Counts
	for i := range r.Collectors {
		for class, n := range r.Collectors[i].Batches {
			sum[class] += n
		}
	}
	var texts []string
	for _, f := range []struct {
		n    uint64
		what string
		then string
	}{
		{sum[verify.Lost], "lost batch", lostAdvice(r)},
		{sum[verify.Replayable], "replayable batch", ": verify --fix or replay stores them"},
		{r.AckedInFlight, "batch", " in flight, acknowledged and not stored: verify --fix or replay stores them"},
		{sum[verify.DeadLettered], "dead-lettered batch", ""},
		{r.MismatchCount, "mismatch", " of tables and ledger"},
		{r.Unknown, "batch", " of a newer version, which this command cannot read"},
	} {
		if f.n > 0 {
			texts = append(texts, count(f.n, f.what)+f.then)
		}
	}
	return found{errors.New("found " + strings.Join(texts, "; "))}
}

func printReport(out io.Writer, r *verify.Report) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if r.Known.After(time.Unix(0, 0)) {
		fmt.Fprintf(w, "The ledger knows what was sent since %s.\n\n", when(&r.Known))
	}
	fmt.Fprintln(w, "COLLECTOR\tEPOCHS\tSTORED\tDISCARDED\tDEAD\tIN-FLIGHT\tREPLAYABLE\tREFUSED\tLOST\tUNNUMBERED\tNEWEST\tSENT")
	for _, c := range r.Collectors {
		fmt.Fprintf(w, "%s\t%d", c.ID, c.Epochs)
		for _, n := range c.Batches {
			fmt.Fprintf(w, "\t%d", n)
		}
		fmt.Fprintf(w, "\t%d\t%s\t%s\n", c.Unnumbered, number(c.Newest), since(c.Newest.SentAt))
	}
	printGaps(w, r)
	printAsked(w, r.Asked)
	printTables(w, r)
	return w.Flush()
}

// number writes a place in a numbering with as much of the epoch as tells it
// from others.
func number(n verify.Number) string {
	if n.Sequence == 0 {
		return "-"
	}
	return fmt.Sprintf("%s/%d", n.Epoch, n.Sequence)
}

// since is when for a time that may be zero.
func since(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return when(&t)
}

func printGaps(w io.Writer, r *verify.Report) {
	if len(r.Gaps) == 0 {
		return
	}
	fmt.Fprintln(w, "\nCOLLECTOR\tEPOCH\tNUMBERS\tWHERE\tSENT")
	lost := false
	for _, g := range r.Gaps {
		lost = lost || g.Class == verify.Lost
		numbers := fmt.Sprint(g.First)
		if g.Last > g.First {
			numbers = fmt.Sprintf("%d-%d", g.First, g.Last)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", g.Collector, g.Epoch, numbers, g.Class, between(g.From, g.To))
	}
	if left := r.GapCount - uint64(len(r.Gaps)); left > 0 {
		fmt.Fprintf(w, "and %s more, see --list\n", count(left, "range"))
	}
	if lost {
		fmt.Fprint(w, "\nOf lost numbers there is no copy here. Their collectors may still have them: --fix asks them to send again.\n")
	}
}

func printAsked(w io.Writer, all []verify.Asked) {
	for _, a := range all {
		fmt.Fprintf(w, "\nCollector %s is asked to send %s again, request %s of %s. It does so within a\nminute, once; verify then finds what it still had.\n",
			a.Collector, count(a.Numbers, "batch"), a.Request, since(a.At))
		if b := a.Before; b != nil {
			fmt.Fprintf(w, "To request %s it has answered: %s found, %d not there any more.\n", b.ID, count(b.Found, "batch"), b.Missing)
		}
	}
}

func lostAdvice(r *verify.Report) string {
	if len(r.Asked) > 0 {
		return ", asked for again"
	}
	return ": verify --fix asks the collectors"
}

func between(from, to time.Time) string {
	switch {
	case from.Equal(to):
		return since(from)
	case from.IsZero():
		return "before " + since(to)
	case to.IsZero():
		return "after " + since(from)
	}
	return since(from) + " to " + since(to)
}

func printTables(w io.Writer, r *verify.Report) {
	fmt.Fprintln(w, "\nFAMILY\tRANGES\tLEDGER-ROWS\tTABLE-ROWS\tFROM")
	var leftOut []string
	for _, f := range r.Families {
		if f.LeftOut != "" {
			leftOut = append(leftOut, fmt.Sprintf("left out: %s, %s\n", f.Name, f.LeftOut))
			continue
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\n", f.Name, f.Ranges, f.LedgerRows, f.TableRows, since(f.From))
	}
	fmt.Fprint(w, strings.Join(leftOut, ""))
	if len(r.Mismatches) == 0 {
		return
	}
	fmt.Fprintln(w, "\nMISMATCH\tSERVER\tSERVER-ID\tFROM\tTO\tLEDGER-ROWS\tTABLE-ROWS")
	for _, m := range r.Mismatches {
		name := m.Server
		if name == "" {
			name = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%d\n", m.Family, name, m.ServerID, when(&m.From), when(&m.To), m.LedgerRows, m.TableRows)
	}
	if left := r.MismatchCount - uint64(len(r.Mismatches)); left > 0 {
		fmt.Fprintf(w, "and %s more, see --list\n", count(left, "range"))
	}
}
