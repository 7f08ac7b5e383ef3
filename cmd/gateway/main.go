// Command gateway takes batches from collectors and puts them onto the stream.
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
		fmt.Fprintln(os.Stderr, "gateway:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var cfg service.Gateway
	_, err := cmdline.Parse("gateway", "Takes batches from collectors over HTTPS and puts them onto the stream.", &cfg, args, stdout, stderr)
	if errors.Is(err, cmdline.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	ctx, stop := daemon.Signals(ctx)
	defer stop()
	return service.RunGateway(ctx, cfg, stderr, nil)
}
