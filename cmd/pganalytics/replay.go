package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/replay"
	"pganalytics/pkg/service"
)

type replayCmd struct {
	service.Installation
	From         moment      `help:"Replay what arrived on the stream from this time on: 2026-01-31T15:04:05Z, \"2026-01-31 15:04\" in local time, or 6h for six hours ago. Defaults to what the ingesters hold because the database went back."`
	To           moment      `help:"Replay only what arrived before this time. Defaults to now."`
	FromSeq      uint64      `help:"Replay from this sequence of the stream on, instead of --from."`
	Collector    []uuid.UUID `help:"Only batches of this collector, by its id. May be given several times."`
	Family       []string    `help:"Only batches with rows of this metric family; each is stored whole. May be given several times."`
	File         string      `type:"existingdir" help:"Replay what pganalytics stream export wrote to this directory, instead of the stream. An interrupted one is run once more: what is stored is skipped."`
	Rate         int         `help:"Most rows a second. Defaults to as many as possible; live batches go first anyway."`
	DryRun       bool        `help:"Tell what would be done and change nothing."`
	Resume       bool        `help:"Go on with the oldest replay that was interrupted. Other flags do not count then."`
	AllowPartial bool        `help:"Replay what is left although some of it is no longer on the stream."`
	Yes          bool        `help:"Do not ask."`
	Output       string      `default:"text" enum:"text,json" help:"text for people, json for scripts."`
}

// Help stands below the flags' description.
func (*replayCmd) Help() string {
	return `Batches that are stored already are skipped, so it does no harm to replay too much.
What is replayed stays on the stream until it is done, also after an interruption.

Exit code: 0 done, or nothing is missing; 1 it did not work, or was interrupted; 2 something is
missing (--dry-run), could not be stored, or is no longer on the stream.

Example, after last night's backup was restored:

  pganalytics replay --from "2026-01-31 02:00" --dry-run
  pganalytics replay --from "2026-01-31 02:00"`
}

// Run replays.
func (c *replayCmd) Run(con console) error {
	if c.Rate < 0 {
		return fmt.Errorf("--rate: %d is below zero", c.Rate)
	}
	if c.File != "" && (c.Resume || c.FromSeq > 0 || !c.From.IsZero() || !c.To.IsZero()) {
		return errors.New("--file is replayed whole: it takes neither --from, --to, --from-seq nor --resume")
	}
	line := newProgressLine(con.stderr)
	req := service.ReplayRequest{
		From: c.From.Time, To: c.To.Time, FromSequence: c.FromSeq,
		Selection: replay.Selection{Collectors: c.Collector, Families: c.Family},
		File:      c.File, Rate: c.Rate, AllowPartial: c.AllowPartial, DryRun: c.DryRun, Resume: c.Resume, By: actor(),
	}
	plan, res, err := c.Replay(con.ctx, req, service.ReplayConsole{
		Stderr: con.stderr,
		Tell:   func(p replay.Progress) { line.show(progressText(p)) },
		Agree: func(p replay.Plan) error {
			line.end()
			if c.Output == "text" && !c.Yes {
				if err := printPlan(con.stdout, p); err != nil {
					return err
				}
			}
			return confirm(con, c.Yes, fmt.Sprintf("Store %s?", count(p.Missing.Batches, "missing batch")))
		},
	})
	line.end()
	if res.ID != "" {
		return errors.Join(c.print(con, res, func(out io.Writer) error { return printResult(out, res, err != nil && c.File == "") }), verdict(res, err, c.again()))
	}
	if plan.Last > 0 && (err == nil || errors.Is(err, service.ErrPartial)) {
		if printErr := c.print(con, plan, func(out io.Writer) error { return printPlan(out, plan) }); printErr != nil {
			return printErr
		}
	}
	switch {
	case errors.Is(err, service.ErrPartial):
		return found{err}
	case err == nil && plan.Missing.Batches > 0:
		return found{fmt.Errorf("the database lacks %s", count(plan.Missing.Batches, "batch"))}
	}
	return err
}

// again is how to go on with what was interrupted.
func (c *replayCmd) again() string {
	if c.File != "" {
		return "the same command" // what is stored is skipped
	}
	return "pganalytics replay --resume"
}

// verdict says what is left to do after a replay.
func verdict(res replay.Result, err error, again string) error {
	switch {
	case err != nil:
		return fmt.Errorf("%w; go on with %s", err, again)
	case res.Left > 0:
		return found{fmt.Errorf("%s could not be stored yet; try again with %s", count(uint64(res.Left), "batch"), again)}
	case len(res.Gone) > 0 && !res.Partial:
		return found{errors.New("part of what was to be replayed is gone")}
	}
	return nil
}

func (c *replayCmd) print(con console, v any, text func(io.Writer) error) error {
	if c.Output == "json" {
		return json.NewEncoder(con.stdout).Encode(v)
	}
	return text(con.stdout)
}

func printPlan(out io.Writer, p replay.Plan) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "sequences\t%d to %d\n", p.First, p.Last)
	if !p.Begins.IsZero() {
		fmt.Fprintf(w, "arrived\t%s to %s\n", when(&p.Begins), when(&p.Ends))
	}
	fmt.Fprintf(w, "on the stream\t%s\n", amount(p.Selected))
	fmt.Fprintf(w, "missing\t%s\n", amount(p.Missing))
	if p.Late {
		fmt.Fprintln(w, "gone\twhat arrived before that")
	}
	printGone(w, p.Gone)
	if p.Unreadable > 0 {
		fmt.Fprintf(w, "unreadable\t%s, among the dead letters\n", count(p.Unreadable, "message"))
	}
	if p.Unknown > 0 {
		fmt.Fprintf(w, "unknown\t%s of a newer version, which this command leaves alone\n", count(p.Unknown, "batch"))
	}
	if len(p.Collectors) > 0 {
		fmt.Fprintln(w, "\nCOLLECTOR\tBATCHES\tMISSING\tMISSING-ROWS")
	}
	for _, c := range p.Collectors {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\n", c.ID, c.Selected.Batches, c.Missing.Batches, c.Missing.Rows)
	}
	return w.Flush()
}

func printGone(w io.Writer, gone []replay.Jump) {
	for _, j := range gone {
		fmt.Fprintf(w, "gone\tsequences %d to %d\n", j.From, j.To)
	}
}

func printResult(out io.Writer, res replay.Result, interrupted bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "replay\t%s, sequences %d to %d\n", res.ID, res.First, res.Last)
	fmt.Fprintf(w, "stored\t%s with %s\n", count(res.Done.Stored.Batches, "batch"), count(res.Done.Stored.Rows, "row"))
	fmt.Fprintf(w, "skipped\t%s, stored already\n", count(res.Done.Skipped, "batch"))
	if res.Done.Buried > 0 {
		fmt.Fprintf(w, "dead letters\t%s\n", count(res.Done.Buried, "batch"))
	}
	if res.Done.Unreadable > 0 {
		fmt.Fprintf(w, "unreadable\t%s, among the dead letters\n", count(res.Done.Unreadable, "message"))
	}
	printGone(w, res.Gone)
	switch {
	case interrupted:
		fmt.Fprintf(w, "interrupted\tat sequence %d, which stays on the stream with what follows\n", res.Next)
	case res.Filled:
		fmt.Fprintln(w, "gap\tfilled, and held no more")
	case res.Gap != nil && res.Left == 0:
		fmt.Fprintln(w, "gap\theld again, for the database went back once more: replay again")
	}
	return w.Flush()
}

// progressText is one look at a replay, as one line.
func progressText(p replay.Progress) string {
	if p.Planning {
		return fmt.Sprintf("reading sequence %d of %d to %d, missing %d batches", p.Next, p.First, p.Last, p.Missing.Batches)
	}
	s := fmt.Sprintf("%d of %d batches stored, %d skipped, %.0f rows/s", p.Done.Stored.Batches, p.Missing.Batches, p.Done.Skipped, p.RowsPerSec)
	switch left := float64(p.Missing.Rows) - float64(p.Done.Stored.Rows); {
	case p.Waiting != "":
		return s + ", waiting: " + p.Waiting
	case p.RowsPerSec > 0 && left > 0:
		eta := time.Duration(left / p.RowsPerSec * float64(time.Second))
		return s + ", " + eta.Round(time.Second).String() + " left"
	}
	return s
}

func amount(c replay.Counts) string {
	return fmt.Sprintf("%s, %s, %.1f MB", count(c.Batches, "batch"), count(c.Rows, "row"), float64(c.Bytes)/1e6)
}

// count writes a number with what it counts.
func count[N int | int64 | uint64](n N, what string) string {
	switch {
	case n == 1:
		return "1 " + what
	case what[len(what)-1] == 'h':
		what += "e"
	}
	return fmt.Sprintf("%d %ss", n, what)
}
