package main

import (
	"context"

	"pganalytics/pkg/collector"
)

type checkCommand struct {
	source
}

// Run reads every family once.
func (c *checkCommand) Run(ctx context.Context, io *streams) error {
	cfg, cat, err := c.load()
	if err != nil {
		return err
	}
	return collector.Check(ctx, cfg, cat, io.out)
}

type statusCommand struct {
	StateDir string `type:"path" default:"/var/lib/pganalytics-collector" help:"Directory with the identity."`
	SpoolDir string `type:"path" help:"Directory of the spool, if the configuration sets it elsewhere."`
}

// Run shows identity and spool.
func (c *statusCommand) Run(io *streams) error {
	return collector.Status(c.StateDir, c.SpoolDir, io.out)
}
