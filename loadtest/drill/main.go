// Command drill loses a database for real and gets everything back. It runs the
// whole system on this host: collectors push over mTLS through the gateway while
// a physical backup of the database is taken, while the database is destroyed,
// and all through the outage, until the stream is full and refuses them. Then
// the backup is restored and what it lacks is replayed. At the end every row of
// every batch that a collector was told is taken is looked up by a journal that
// was synced to disk before the next one was sent.
//
// The last line says what came of it; a batch that is lost or stored twice makes
// the exit code 1. That the drill can fail is shown by -sabotage, which breaks
// one of the parts that it is about, from outside of the programs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"pganalytics/pkg/daemon"
)

// options are the flags.
type options struct {
	collectors int
	rows       int           // of a batch
	pause      time.Duration // between two batches of a collector
	batches    int           // stored in each phase
	window     time.Duration // the trimmer's
	maxBytes   int64         // of the stream
	auto       bool
	sabotage   string
	limit      time.Duration
	script     string
}

func main() {
	ctx, stop := daemon.Signals(context.Background())
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "drill:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	var o options
	prove := false
	flags := flag.NewFlagSet("drill", flag.ContinueOnError)
	flags.IntVar(&o.collectors, "collectors", 20, "collectors that push at once")
	flags.IntVar(&o.rows, "rows", 50, "rows of a batch")
	flags.DurationVar(&o.pause, "pause", 200*time.Millisecond, "time between two batches of a collector; in the outage there is none")
	flags.IntVar(&o.batches, "batches", 300, "batches to be stored before the backup, after it, and after the replay")
	flags.DurationVar(&o.window, "window", 45*time.Second, "replay window; the outage is longer, the time from backup to destruction must be shorter")
	flags.Int64Var(&o.maxBytes, "stream", 48<<20, "bytes at which the stream is full")
	flags.BoolVar(&o.auto, "auto", false, "let the ingester replay by itself, instead of by command")
	flags.StringVar(&o.sabotage, "sabotage", "", "break the hold, the ledger or the rewind check; the drill must fail then")
	flags.BoolVar(&prove, "prove", false, "carry out every sabotage, and fail if one goes unnoticed")
	flags.DurationVar(&o.limit, "limit", 10*time.Minute, "longest time for all")
	flags.StringVar(&o.script, "script", "scripts/timescaledb.sh", "script that runs a private TimescaleDB")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	switch o.sabotage {
	case "", sabotageHold, sabotageLedger, sabotageRewind:
	default:
		return fmt.Errorf("-sabotage: %q is none of %s, %s and %s", o.sabotage, sabotageHold, sabotageLedger, sabotageRewind)
	}
	if !prove {
		f, err := timed(ctx, o)
		if err == nil && f.lost+f.duplicated > 0 {
			err = fmt.Errorf("%d batches are lost and %d stored more than once", f.lost, f.duplicated)
		}
		return err
	}
	for _, o.sabotage = range []string{sabotageHold, sabotageLedger, sabotageRewind} {
		f, err := timed(ctx, o)
		if err == nil && f.lost+f.duplicated == 0 {
			err = errors.New("nobody noticed")
		}
		if err != nil {
			return fmt.Errorf("sabotage of the %s: %w", o.sabotage, err)
		}
	}
	return nil
}

// timed carries out a drill within its limit and prints its figures.
func timed(ctx context.Context, o options) (figures, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.limit, fmt.Errorf("it took longer than %v", o.limit))
	defer cancel()
	begin := time.Now()
	f, err := carryOut(ctx, o)
	if err != nil {
		return f, errors.Join(err, context.Cause(ctx))
	}
	_, err = fmt.Printf("drill: batches=%d rows=%d lost=%d duplicated=%d replayed=%d skipped=%d seconds=%.0f\n",
		f.batches, f.rows, f.lost, f.duplicated, f.replayed, f.skipped, time.Since(begin).Seconds())
	return f, err
}
