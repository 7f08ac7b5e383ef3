package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"pganalytics/pkg/service"
	"pganalytics/pkg/store"
)

type queryCmd struct {
	Database service.DatabaseFlags `embed:"" prefix:"database-"`
	SQL      string                `arg:"" help:"The statement; it runs in a read-only transaction."`
}

// Run prints the result as a table.
func (c *queryCmd) Run(con console) error {
	url, err := c.Database.URL()
	if err != nil {
		return err
	}
	t, err := store.Query(con.ctx, url, c.SQL)
	if err != nil {
		return err
	}
	return printTable(con.stdout, t)
}

func printTable(out io.Writer, t store.Table) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, strings.Join(t.Columns, "\t"))
	for _, row := range t.Rows {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}
