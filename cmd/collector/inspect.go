package main

import (
	"context"
	"io"

	"pganalytics/pkg/collector"
)

type checkCommand struct {
	source
}

// Run reads every family once.
func (c *checkCommand) Run(ctx context.Context, io *streams) error {
	cat, err := c.catalogue()
	if err != nil {
		return err
	}
	cfg, err := c.load(cat)
	if err != nil {
		return err
	}
	return collector.Check(ctx, cfg, cat, io.out)
}

type setupSQLCommand struct {
	families
	Role string `default:"pganalytics" help:"Role that the collector logs in as."`
}

// Run prints the script. It connects to nothing.
func (c *setupSQLCommand) Run(streams *streams) error {
	cat, err := c.catalogue()
	if err != nil {
		return err
	}
	script, err := collector.SetupSQL(cat, c.Role)
	if err != nil {
		return err
	}
	_, err = io.WriteString(streams.out, script)
	return err
}

type statusCommand struct {
	StateDir string `type:"path" default:"/var/lib/pganalytics-collector" help:"Directory with the identity."`
	SpoolDir string `type:"path" help:"Directory of the spool, if the configuration sets it elsewhere."`
}

// Run shows identity and spool.
func (c *statusCommand) Run(io *streams) error {
	return collector.Status(c.StateDir, c.SpoolDir, io.out)
}
