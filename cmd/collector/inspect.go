package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"pganalytics/pkg/collector"
)

type checkCommand struct {
	source
	StateDir string `type:"path" default:"/var/lib/pganalytics-collector" help:"Directory with the identity, and the spool unless the configuration says otherwise."`
	Offline  bool   `help:"Do not ask the gateway."`
	formatted
}

// Run reads every family once, and errs if something that is configured does
// not work.
func (c *checkCommand) Run(ctx context.Context, io *streams) error {
	cat, err := c.catalogue()
	if err != nil {
		return err
	}
	cfg, err := c.load(cat)
	cfg.StateDir = c.StateDir
	if err == nil {
		err = cfg.Validate()
	}
	if err != nil {
		return err
	}
	findings, err := collector.Check(ctx, cfg, cat, c.Offline)
	if err != nil {
		return err
	}
	err = c.show(io.out, findings, findings.Write)
	if n := findings.Bad(); err == nil && n > 0 {
		return fmt.Errorf("%d of what is configured does not work", n)
	}
	return err
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
	formatted
}

// Run shows how the collector is.
func (c *statusCommand) Run(io *streams) error {
	status, err := collector.ReadStatus(c.StateDir, c.SpoolDir)
	if err != nil {
		return err
	}
	return c.show(io.out, status, status.Print)
}

// formatted is the flag of commands with an answer.
type formatted struct {
	Output string `default:"text" enum:"text,json" help:"text for people, json for scripts."`
}

// show prints v as JSON for scripts, else what text prints.
func (f formatted) show(out io.Writer, v any, text func(io.Writer) error) error {
	if f.Output == "text" {
		return text(out)
	}
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
