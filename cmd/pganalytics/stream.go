package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"pganalytics/pkg/health"
	"pganalytics/pkg/service"
)

type streamCmd struct {
	Status streamStatusCmd `cmd:"" help:"Show what the stream holds, how far the ingesters are and when it will be full."`
	Export streamExportCmd `cmd:"" help:"Write a part of the stream to a directory, to be replayed after it has left the stream."`
}

type streamStatusCmd struct {
	service.Installation
	Output string `default:"text" enum:"text,json" help:"text for people, json for scripts."`
}

// Help is what --help adds.
func (*streamStatusCmd) Help() string {
	return `Example: pganalytics stream status --output json

Exit status 0: the stream has answered, whatever it said. 1: it has not. "pganalytics status" judges.`
}

// Run looks at the stream, and in the database only for the ingesters.
func (c *streamStatusCmd) Run(con console) error {
	s, err := service.LookAtStream(con.ctx, &c.Installation, con.stderr)
	if err != nil {
		return err
	}
	ingesters := service.CountIngesters(con.ctx, &c.Installation)
	if c.Output == "json" {
		return json.NewEncoder(con.stdout).Encode(struct {
			*health.Stream
			Ingesters *int `json:"ingesters"` // null: the database was not asked or did not answer
		}{s, ingesters})
	}
	return printWholeStream(con.stdout, s, ingesters)
}

func printWholeStream(out io.Writer, s *health.Stream, ingesters *int) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(w, name+"\t"+format+"\n", args...) }
	line("bytes", "%s of %s (%.1f%%)", size(s.Bytes), size(uint64(s.MaxBytes)), 100*float64(s.Bytes)/float64(max(1, s.MaxBytes)))
	line("must stay", "%s: not stored, or held", size(s.Kept))
	line("batches", "%d, sequences %d to %d", s.Batches, s.FirstSequence, s.LastSequence)
	line("to replay", "%s back", s.Window)
	line("coming in", "%s/s, full in %s if nothing leaves", size(uint64(s.Inflow)), span(s.FullIn))
	line("lag", "%d batches, %s", s.Backlog, s.Lag)
	line("with ingesters", "%d batches, %d of them more than once", s.AckPending, s.Redelivered)
	if ingesters == nil {
		line("ingesters", "unknown: the database does not answer")
	} else {
		line("ingesters", "%d seen in the last minute", *ingesters)
	}
	line("dead letters", "%d", s.DeadLetters)
	line("replicas", "%d%s", s.Copies, behindText(s.Behind))
	if s.Faults != "" {
		line("wrong", "%s", s.Faults)
	}
	for _, h := range s.Holds {
		line("held", "%s: %d to %d, for %s, by %s: %s", h.Name, h.From, h.To, h.Age, h.By, h.Reason)
	}
	return w.Flush()
}

func behindText(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return ", not up to date: " + strings.Join(names, ", ")
}

type streamExportCmd struct {
	service.Installation
	From         time.Time `required:"" help:"When the first batch came in, such as 2026-01-31T14:00:00Z."`
	To           time.Time `help:"When the last batch had come in. Defaults to now."`
	SegmentBytes int64     `default:"268435456" help:"Bytes at which a file ends and the next begins."`
	Dir          string    `arg:"" type:"path" help:"Directory; made if missing. One with the same export that was interrupted is gone on with."`
	Output       string    `default:"text" enum:"text,json" help:"text for people, json for scripts."`
}

// Help is what --help adds.
func (*streamExportCmd) Help() string {
	return `The stream is held while it is read. Run an interrupted export once more with the same --from and --to.

Example: pganalytics stream export --from 2026-01-31T14:00:00Z --to 2026-01-31T18:00:00Z /backup/stream

Exit status 0: all of it is written. 2: what the stream had is written, but some of it had left the stream. 1: anything else.`
}

// Run exports.
func (c *streamExportCmd) Run(con console) error {
	if c.SegmentBytes <= 0 {
		return fmt.Errorf("--segment-bytes %d is not positive", c.SegmentBytes)
	}
	if !c.To.IsZero() && !c.To.After(c.From) {
		return fmt.Errorf("--to %s is not after --from %s", c.To.Format(time.RFC3339), c.From.Format(time.RFC3339))
	}
	e := service.Export{From: c.From, To: c.To, Dir: c.Dir, SegmentBytes: c.SegmentBytes}
	done, err := e.Run(con.ctx, &c.Installation, con.stderr)
	if err != nil {
		return err
	}
	if c.Output == "json" {
		err = json.NewEncoder(con.stdout).Encode(done)
	} else {
		err = printExported(con.stdout, &done)
	}
	if err == nil && (done.Late || done.Missing > 0) {
		return errPartial
	}
	return err
}

func printExported(out io.Writer, done *service.Exported) error {
	_, err := fmt.Fprintf(out, "%d batches, %s in %d files, sequences %d to %d\n",
		done.Messages, size(uint64(done.Bytes)), done.Segments, done.First, done.Last)
	if done.Late {
		fmt.Fprintln(out, "the stream begins after --from: what came in before had left it")
	}
	if done.Missing > 0 {
		fmt.Fprintf(out, "%d sequences in between had left the stream\n", done.Missing)
	}
	return err
}
