package collector

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"pganalytics/pkg/collector/spool"
	"pganalytics/pkg/collector/uplink"
)

// Status writes identity and spool of the collector in stateDir. The collector
// may be running. spoolDir "" is the default one.
func Status(stateDir, spoolDir string, out io.Writer) error {
	id, err := uplink.LoadIdentity(stateDir)
	if err != nil {
		return err
	}
	if spoolDir == "" {
		spoolDir = SpoolDir(stateDir)
	}
	stats, err := spool.Inspect(spoolDir)
	if err != nil {
		return err
	}
	accepted, err := spool.ReadAccepted(spoolDir)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(table, "%s\t"+format+"\n", append([]any{name}, args...)...)
	}
	line("collector", "%s (%s)", id.Name, id.CollectorID)
	line("gateway", "%s", id.CollectorURL)
	line("certificate", "until %s", id.Certificate.Leaf.NotAfter.UTC().Format(time.RFC3339))
	line("unsent", "%d batches, %d bytes", stats.Unsent, stats.UnsentBytes)
	line("dead letters", "%d bytes", stats.DeadBytes)
	line("last number", "%d of epoch %s", stats.Last.Sequence, stats.Last.Epoch)
	line("accepted", "%d batches in the journal", len(accepted))
	if n := len(accepted); n > 0 {
		line("last accepted", "%s at %s", accepted[n-1].BatchID, accepted[n-1].At.Format(time.RFC3339))
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return nil
}
