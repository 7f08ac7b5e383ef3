package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"
	"time"

	"pganalytics/pkg/bus"
	"pganalytics/pkg/service"
	"pganalytics/pkg/store"
)

type statusCmd struct {
	service.Installation
	Output string `default:"text" enum:"text,json" help:"text for people, json for scripts."`
}

// status is what one look at an installation finds.
type status struct {
	Stream  bus.Status    `json:"stream"`
	Backlog uint64        `json:"backlog"` // batches not acknowledged
	Store   store.Summary `json:"store"`
}

// Run looks at stream and store.
func (c *statusCmd) Run(con console) error {
	b, err := c.Bus(con.ctx, con.stderr)
	if err != nil {
		return err
	}
	defer func() { _ = b.Close(con.ctx) }()
	st, err := c.Store(con.ctx, con.stderr)
	if err != nil {
		return err
	}
	defer st.Close()
	var s status
	if s.Stream, err = b.Status(con.ctx); err != nil {
		return err
	}
	s.Backlog = backlog(s.Stream)
	if s.Store, err = st.Summary(con.ctx); err != nil {
		return err
	}
	if c.Output == "json" {
		return json.NewEncoder(con.stdout).Encode(s)
	}
	return s.print(con)
}

// backlog counts by the floor of acknowledged messages: the server's own count
// of pending ones lags behind.
func backlog(s bus.Status) uint64 { return s.LastSequence - min(s.LastSequence, s.AckFloor) }

func (s status) print(con console) error {
	w := tabwriter.NewWriter(con.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "stream\t%d batches, %d of %d bytes\n", s.Stream.Messages, s.Stream.Bytes, s.Stream.MaxBytes)
	fmt.Fprintf(w, "backlog\t%d batches, %d of them with an ingester\n", s.Backlog, s.Stream.AckPending)
	fmt.Fprintf(w, "dead letters\t%d\n", s.Stream.DeadLetters)
	fmt.Fprintf(w, "stored\t%d batches, %d rows, newest row %s\n\n", s.Store.Batches, s.Store.LedgerRows, ago(s.Store.Newest))
	fmt.Fprintln(w, "FAMILY\tROWS\tNEWEST")
	for _, f := range s.Store.Families {
		fmt.Fprintf(w, "%s\t%d\t%s\n", f.Name, f.Rows, ago(f.Newest))
	}
	return w.Flush()
}

func ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return time.Since(t).Round(time.Second).String() + " ago"
}
