package collector

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"text/tabwriter"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/collector/pgread"
	"pganalytics/pkg/collector/spool"
	"pganalytics/pkg/collector/uplink"
	"pganalytics/pkg/policy"
)

// Check connects to every server and reads every family once. It writes what
// works and why not, and returns an error if any server or family failed.
func Check(ctx context.Context, cfg Config, cat *catalogue.Catalogue, out io.Writer) error {
	failed := 0
	for _, sc := range cfg.readers(cat, policy.Document{}) {
		s, err := pgread.NewServer(sc, cat, slog.New(slog.DiscardHandler), pgread.NewMetrics(prometheus.NewRegistry()), nil)
		if err != nil {
			return err
		}
		report, err := s.Check(ctx)
		if err != nil {
			failed++
			fmt.Fprintf(out, "server %s: %v\n", sc.Name, err)
			continue
		}
		fmt.Fprintf(out, "server %s: version %d\n", sc.Name, report.Version)
		table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		for _, f := range report.Families {
			switch {
			case f.Err != nil:
				failed++
				fmt.Fprintf(table, "  %s\t%s\tfails\t%v\n", f.Family, f.Database, f.Err)
			case f.Off != nil:
				fmt.Fprintf(table, "  %s\t%s\toff\t%s\n", f.Family, f.Database, f.Off)
			default:
				fmt.Fprintf(table, "  %s\t%s\tworks\t%d rows in %s\n", f.Family, f.Database, f.Rows, f.Took.Round(time.Millisecond))
			}
		}
		if err := table.Flush(); err != nil {
			return fmt.Errorf("write report: %w", err)
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d servers or families do not work", failed)
	}
	return nil
}

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
