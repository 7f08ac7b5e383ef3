// Command collector reads PostgreSQL servers and pushes what it read to the
// gateway.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"pganalytics/pkg/cmdline"
	"pganalytics/pkg/daemon"
)

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "collector:", err)
		os.Exit(1)
	}
}

type commands struct {
	Enroll   enrollCommand   `cmd:"" help:"Enrol this collector: make its key and have it certified."`
	Run      runCommand      `cmd:"" help:"Collect and push until told to stop."`
	Check    checkCommand    `cmd:"" help:"Try everything once: directories, gateway, servers, families; say what works and why not."`
	SetupSQL setupSQLCommand `cmd:"" name:"setup-sql" help:"Print the SQL that prepares a server for this collector: role, extensions, functions."`
	Status   statusCommand   `cmd:"" help:"Show how the collector is: identity, backend's last word, spool, servers. It may be running."`

	Deadletters deadlettersCommand `cmd:"" help:"Look at what the gateway refused for good, send it again, or give it up."`
}

// streams are what commands read and write.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	kctx, err := cmdline.Parse("collector", "Reads PostgreSQL servers and pushes what it read to the gateway.", &commands{}, args, stdout, stderr)
	if errors.Is(err, cmdline.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	ctx, stop := daemon.Signals(ctx)
	defer stop()
	kctx.BindTo(ctx, (*context.Context)(nil))
	return kctx.Run(&streams{in: stdin, out: stdout, err: stderr})
}
