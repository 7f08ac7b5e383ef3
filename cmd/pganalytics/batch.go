package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/service"
)

type batchCmd struct {
	Show   batchShowCmd   `cmd:"" help:"Show where a batch is: stream, ledger, tables, dead letters."`
	Remove batchRemoveCmd `cmd:"" help:"Take a stored batch out of the database, all its rows or nothing."`
}

// oneBatch is the arguments of commands on one batch.
type oneBatch struct {
	service.Installation
	Collector uuid.UUID `arg:"" help:"Id of the collector."`
	Batch     uuid.UUID `arg:"" help:"Id of the batch."`
}

type batchShowCmd struct {
	oneBatch
	formatted
}

// Help adds an example and the statuses.
func (*batchShowCmd) Help() string {
	return `Example: pganalytics batch show 6a1f7a52-6f0c-4d0b-9b57-0c2f4f6b8d11 0190b7a4-4b1c-7c3e-8a7d-0123456789ab

Exit status: 0 it is somewhere, 1 error, 2 it is nowhere.`
}

// shownBatch is where a batch is, as scripts see it.
type shownBatch struct {
	Messages []shownMessage  `json:"messages"`
	Ledger   []shownRow      `json:"ledger"`
	Tables   []batch.Holding `json:"tables"`
	Letters  []letter        `json:"letters"`
}

type shownMessage struct {
	Sequence uint64    `json:"sequence"`
	StoredAt time.Time `json:"stored_at"`
	Digest   string    `json:"digest"`
	Rows     int       `json:"rows"`
	Bytes    int       `json:"bytes"`
}

type shownRow struct {
	SentAt      time.Time `json:"sent_at"`
	StoredAt    time.Time `json:"stored_at"`
	Sequence    uint64    `json:"stream_sequence"`
	Incarnation string    `json:"stream_incarnation"`
	Digest      string    `json:"digest"`
	Rows        int64     `json:"rows"`
	Discarded   string    `json:"discarded,omitempty"`
}

// Run looks everywhere.
func (c *batchShowCmd) Run(con console) error {
	bench, end, err := c.Repair(con.ctx, actor(), con.stderr)
	if err != nil {
		return err
	}
	defer end()
	t, err := bench.Trace(con.ctx, c.Collector, c.Batch)
	if err != nil {
		return err
	}
	s := shownBatch{Messages: []shownMessage{}, Ledger: []shownRow{}, Tables: t.Holdings, Letters: []letter{}}
	for _, m := range t.Messages {
		s.Messages = append(s.Messages, shownMessage{m.Sequence, m.StoredAt, hex.EncodeToString(m.Digest[:]), m.Rows, m.Bytes})
	}
	for _, r := range t.Ledger {
		s.Ledger = append(s.Ledger, shownRow{r.SentAt, r.StoredAt, r.Sequence, r.Incarnation, hex.EncodeToString(r.Digest[:]), r.Rows, r.Discarded})
	}
	for _, l := range t.Letters {
		s.Letters = append(s.Letters, letterOf(l))
	}
	if err := c.show(con, s, s.print); err != nil {
		return err
	}
	if len(t.Messages)+len(t.Ledger)+len(t.Letters) == 0 {
		return errPartial
	}
	return nil
}

func (s shownBatch) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, m := range s.Messages {
		fmt.Fprintf(w, "stream\tmessage %d since %s, %s, %d bytes, digest %.16s\n", m.Sequence, stamp(m.StoredAt), count(m.Rows, "row"), m.Bytes, m.Digest)
	}
	for _, r := range s.Ledger {
		if r.Discarded != "" {
			fmt.Fprintf(w, "ledger\tdiscarded %s: %s, digest %.16s\n", stamp(r.StoredAt), r.Discarded, r.Digest)
			continue
		}
		fmt.Fprintf(w, "ledger\tstored %s from message %d, %s, digest %.16s\n", stamp(r.StoredAt), r.Sequence, count(r.Rows, "row"), r.Digest)
	}
	for _, l := range s.Letters {
		fmt.Fprintf(w, "dead letter\t%s since %s: %s\n", l.ID, stamp(l.BuriedAt), l.Reason)
	}
	printHoldings(w, s.Tables)
	if len(s.Messages)+len(s.Ledger)+len(s.Letters) == 0 {
		fmt.Fprintln(w, "neither on the stream, nor in the ledger, nor a dead letter")
	}
	return w.Flush()
}

func printHoldings(w io.Writer, holdings []batch.Holding) {
	for _, h := range holdings {
		if h.Dimension {
			fmt.Fprintf(w, "table %s\t%s, shared with other batches\n", h.Family, count(h.Rows, "row"))
			continue
		}
		fmt.Fprintf(w, "table %s\t%d of %s\n", h.Family, h.Found, count(h.Rows, "row"))
	}
}

type batchRemoveCmd struct {
	oneBatch
	Discard string `env:"-" placeholder:"REASON" help:"Give the batch up for good, with this reason: no replay stores it again."`
	Yes     bool   `env:"-" help:"Do not ask. Without a terminal nothing is done unless it is given."`
	formatted
}

// Help adds an example and the statuses.
func (*batchRemoveCmd) Help() string {
	return `All rows that the batch stored are deleted, and its row of the ledger, in one transaction. The batch must still be on the stream, and it must be certain that the rows are its own; else nothing is done. Rows of dimensions, such as query texts, stay. Afterwards pganalytics replay stores the batch again; so may an ingester that starts while it is among the newest of the stream.

Example: pganalytics batch remove 6a1f7a52-6f0c-4d0b-9b57-0c2f4f6b8d11 0190b7a4-4b1c-7c3e-8a7d-0123456789ab --discard "measured nonsense"

Exit status: 0 it is removed, 1 it is not.`
}

// Run removes.
func (c *batchRemoveCmd) Run(con console) error {
	bench, end, err := c.Repair(con.ctx, actor(), con.stderr)
	if err != nil {
		return err
	}
	defer end()
	question := fmt.Sprintf("delete all rows of batch %s of collector %s?", c.Batch, c.Collector)
	if err := confirm(con, c.Yes, question); err != nil {
		return err
	}
	removed, err := bench.Remove(con.ctx, c.Collector, c.Batch, c.Discard)
	if err != nil {
		return err
	}
	answer := struct {
		Tables    []batch.Holding `json:"tables"`
		Discarded bool            `json:"discarded"`
	}{removed, c.Discard != ""}
	return c.show(con, answer, func(out io.Writer) error { return printRemoved(out, removed, answer.Discarded) })
}

func printRemoved(out io.Writer, removed []batch.Holding, discarded bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, h := range removed {
		what := "deleted"
		if h.Dimension {
			what = "left: they may be other batches' too"
		}
		fmt.Fprintf(w, "table %s\t%s %s\n", h.Family, count(h.Rows, "row"), what)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	end := "the batch is removed; pganalytics replay stores it again"
	if discarded {
		end = "the batch is removed and given up: no replay stores it"
	}
	_, err := fmt.Fprintln(out, end)
	return err
}
