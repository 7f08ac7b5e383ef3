package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/replay/repair"
	"pganalytics/pkg/service"
)

// lettersChosen is the arguments of commands that do something with letters.
type lettersChosen struct {
	service.Installation
	IDs []string `arg:"" optional:"" name:"id" help:"Ids of letters. Without any, the flags choose."`
	letterFilter
	All bool `env:"-" help:"All letters."`
}

var errNoneChosen = errors.New("say which letters: ids, --collector, --buried-as, --since, --until or --all")

func (c *lettersChosen) selection() (repair.Selection, error) {
	sel, err := c.letterFilter.selection()
	sel.IDs = c.IDs
	narrow := len(c.IDs) > 0 || c.letterFilter != letterFilter{}
	if err == nil && narrow == c.All { // neither or both
		err = errNoneChosen
	}
	return sel, err
}

type lettersRetryCmd struct {
	lettersChosen
	Wait time.Duration `default:"1m" help:"How long to wait while none of the batches gets stored. Letters of those that then are not stay."`
	formatted
}

// Help adds an example and the statuses.
func (*lettersRetryCmd) Help() string {
	return `The letter of a batch is deleted once the database has the batch. One that is refused again keeps its letter.

Example: pganalytics deadletters retry --buried-as unknown_schema

Exit status: 0 all are stored, 1 error, 2 some letters stay.`
}

// Run publishes and waits.
func (c *lettersRetryCmd) Run(con console) error {
	return c.work(con, c.formatted, func(bench *repair.Bench, heads []batch.FiledLetter, tell func(repair.Result)) error {
		return bench.Retry(con.ctx, heads, c.Wait, tell)
	})
}

type lettersDiscardCmd struct {
	lettersChosen
	Reason      string `env:"-" required:"" help:"Why; it is kept in the ledger and the audit."`
	Undecodable bool   `env:"-" help:"Also delete letters that cannot be decoded. They have no place in the ledger: the audit keeps the digest of their bytes."`
	Yes         bool   `env:"-" help:"Do not ask. Without a terminal nothing is done unless it is given."`
	formatted
}

// Help adds an example and the statuses.
func (*lettersDiscardCmd) Help() string {
	return `Example: pganalytics deadletters discard 0123456789abcdef --reason "test data of the installation"

Exit status: 0 all are given up, 1 error, 2 some letters stay.`
}

// Run gives up.
func (c *lettersDiscardCmd) Run(con console) error {
	return c.work(con, c.formatted, func(bench *repair.Bench, heads []batch.FiledLetter, tell func(repair.Result)) error {
		if err := confirm(con, c.Yes, fmt.Sprintf("give up %s for good?", count(len(heads), "batch"))); err != nil {
			return err
		}
		return bench.Discard(con.ctx, heads, repair.Discarding{Reason: c.Reason, Undecodable: c.Undecodable}, tell)
	})
}

// result is the end of a letter as scripts see it.
type result struct {
	ID     string     `json:"id"`
	End    repair.End `json:"end"`
	Detail string     `json:"detail,omitempty"`
}

// work finds the letters that are meant, does something with them and tells
// what became of each, also of those before an error.
func (c *lettersChosen) work(con console, o formatted, do func(*repair.Bench, []batch.FiledLetter, func(repair.Result)) error) error {
	sel, err := c.selection()
	if err != nil {
		return err
	}
	bench, end, err := c.Repair(con.ctx, actor(), con.stderr)
	if err != nil {
		return err
	}
	defer end()
	heads, _, err := bench.List(con.ctx, sel)
	if err != nil {
		return err
	}
	results, stay := []result{}, 0
	err = do(bench, heads, func(r repair.Result) {
		results = append(results, result{r.Letter.ID, r.End, r.Detail})
		if !r.End.Gone() {
			stay++
		}
	})
	if err != nil && len(results) == 0 {
		return err
	}
	if err := errors.Join(err, o.show(con, results, func(out io.Writer) error { return printResults(out, results) })); err != nil {
		return err
	}
	if stay > 0 {
		return errPartial
	}
	return nil
}

func printResults(out io.Writer, results []result) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	gone := 0
	for _, r := range results {
		fmt.Fprintln(w, strings.TrimRight(r.ID+"\t"+r.End.String()+"\t"+r.Detail, "\t"))
		if r.End.Gone() {
			gone++
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "%s done, %d left\n", count(gone, "letter"), len(results)-gone)
	return err
}

type lettersExportCmd struct {
	service.Installation
	Dir string   `arg:"" type:"path" help:"Directory for the files; it is made if it is missing."`
	IDs []string `arg:"" optional:"" name:"id" help:"Ids of letters. Without any, the flags choose; without those, all."`
	letterFilter
	formatted
}

// Help adds an example.
func (*lettersExportCmd) Help() string {
	return `Each letter becomes NAME.batch, its bytes as they came, and NAME.json, what is known of it with the SHA-256 of the bytes. Nothing is deleted.

Example: pganalytics deadletters export /var/tmp/letters --since 2026-01-31T12:00:00Z`
}

// Run writes the files.
func (c *lettersExportCmd) Run(con console) error {
	sel, err := c.selection()
	if err != nil {
		return err
	}
	sel.IDs = c.IDs
	bench, end, err := c.Letters(con.ctx, con.stderr)
	if err != nil {
		return err
	}
	defer end()
	heads, _, err := bench.List(con.ctx, sel)
	if err != nil {
		return err
	}
	if err := bench.Export(con.ctx, heads, c.Dir); err != nil {
		return err
	}
	answer := struct {
		Letters   int    `json:"letters"`
		Directory string `json:"directory"`
	}{len(heads), c.Dir}
	return c.show(con, answer, func(out io.Writer) error {
		_, err := fmt.Fprintf(out, "%s in %s\n", count(len(heads), "letter"), c.Dir)
		return err
	})
}
