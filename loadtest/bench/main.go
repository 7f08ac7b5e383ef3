// Command bench measures the system on the machine that it runs on. Every
// figure that counts is a ratio of two things measured in turn in one run, so
// that a machine whose speed drifts drifts for both.
//
//	line    push to commit against a plain COPY of the same rows
//	drain   a backlog on the stream: its size, size of batches, loaders, ingesters
//	fresh   202 to the row being visible, and a push against a bare publish
//	skip    batches that are stored already
//	replay  pganalytics replay against live batches
//	memory  gateway and ingester as processes of their own, 500 collectors
//	collector  a collector with ten servers: its memory, and its cost on them
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"

	"pganalytics/pkg/daemon"
)

// options are the flags of all modes.
type options struct {
	runs  int
	scale float64
	gate  bool
	only  string
	pprof string
}

type mode struct {
	name string
	run  func(ctx context.Context, o options) error
}

var modes = []mode{
	{"line", benchLine},
	{"drain", benchDrain},
	{"fresh", benchFresh},
	{"skip", benchSkip},
	{"replay", benchReplay},
	{"memory", benchMemory},
	{"collector", benchCollector},
}

func main() {
	ctx, stop := daemon.Signals(context.Background())
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	var o options
	flags := flag.NewFlagSet("bench line|drain|fresh|skip|replay|memory|collector", flag.ContinueOnError)
	flags.IntVar(&o.runs, "runs", 5, "measured runs of each kind")
	flags.Float64Var(&o.scale, "scale", 1, "share of the rows or seconds of a full run")
	flags.BoolVar(&o.gate, "gate", false, "fail when a figure misses its gate")
	flags.StringVar(&o.only, "only", "", "of line and drain, only the shapes or scenarios whose name holds this")
	flags.StringVar(&o.pprof, "pprof", "", "of line, directory to keep the profiles of gateway, stream and ingester in")
	if len(args) == 0 {
		args = []string{"-h"}
	}
	chosen := slices.IndexFunc(modes, func(m mode) bool { return m.name == args[0] })
	if chosen >= 0 {
		args = args[1:]
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	switch {
	case chosen < 0:
		return fmt.Errorf("unknown mode %q", args[0])
	case flags.NArg() > 0:
		return fmt.Errorf("unknown arguments %q", flags.Args())
	case o.runs < 1 || o.scale <= 0:
		return errors.New("-runs and -scale must be above zero")
	}
	if err := printMachine(); err != nil {
		return err
	}
	return modes[chosen].run(ctx, o)
}
