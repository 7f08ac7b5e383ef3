// Command ingester moves batches from the stream into TimescaleDB.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"pganalytics/pkg/cmdline"
	"pganalytics/pkg/daemon"
	"pganalytics/pkg/service"
)

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "ingester:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var cfg service.Ingester
	_, err := cmdline.Parse("ingester", "Moves batches from the stream into TimescaleDB.", &cfg, args, stdout, stderr)
	if errors.Is(err, cmdline.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	ctx, stop := daemon.Signals(ctx)
	defer stop()
	return service.RunIngester(ctx, cfg, stderr, nil)
}
