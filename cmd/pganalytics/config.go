package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/policy"
	"pganalytics/pkg/policy/pulled"
	"pganalytics/pkg/service"
)

type configCmd struct {
	Get      configGetCmd      `cmd:"" help:"Show what a collector is to read, and what it says about that."`
	Set      configSetCmd      `cmd:"" help:"Give a collector, or all that have none of their own, a new configuration."`
	Unset    configUnsetCmd    `cmd:"" help:"Take a configuration back: the default counts again, and without one the collector's own file alone."`
	History  configHistoryCmd  `cmd:"" help:"List the versions of a configuration."`
	Rollback configRollbackCmd `cmd:"" help:"Make an earlier version the newest."`
}

// configured is the arguments of every command on a document.
type configured struct {
	service.Installation
	Collector string `arg:"" optional:"" help:"Name or id of the collector."`
	Default   bool   `env:"-" help:"Instead of a collector: the configuration of all collectors that have none of their own."`
}

// desk opens the desk and finds whose document is meant.
func (c *configured) desk(con console) (*service.Configs, service.ConfigTarget, func(), error) {
	var target service.ConfigTarget
	if (c.Collector == "") != c.Default {
		return nil, target, nil, errors.New("give a collector or --default")
	}
	desk, end, err := c.Configs(con.ctx, con.stderr)
	if err != nil {
		return nil, target, nil, err
	}
	if target, err = desk.Target(con.ctx, c.Collector); err != nil {
		end()
		return nil, target, nil, err
	}
	return desk, target, end, nil
}

// said is what a change is written down with.
type said struct {
	Comment       string `env:"-" required:"" help:"Why; it is kept with the version."`
	Author        string `env:"-" help:"Who. Defaults to the user of the operating system."`
	ExpectVersion *int64 `env:"-" help:"Change nothing if this is not the newest version of the configuration; 0: there is none."`
}

// change makes a version and tells of it.
func (c *configured) change(con console, s said, o formatted, document func(*service.Configs, service.ConfigTarget) (file, text string, err error)) error {
	desk, target, end, err := c.desk(con)
	if err != nil {
		return err
	}
	defer end()
	file, text, err := document(desk, target)
	if err != nil {
		return err
	}
	author := s.Author
	if author == "" {
		author = actor()
	}
	v, err := desk.Set(con.ctx, service.SetConfig{
		Target: target, File: file, Document: text, Author: author, Comment: s.Comment, Expect: s.ExpectVersion, By: actor(),
	})
	if err != nil {
		return err
	}
	return o.show(con, v, func(out io.Writer) error {
		_, err := fmt.Fprintf(out, "%s: version %d; gateways tell it from now on\n", target.Name, v.Number)
		return err
	})
}

type configSetCmd struct {
	configured
	File string `env:"-" required:"" type:"path" help:"File with the document, YAML or JSON; - is standard input."`
	said
	formatted
}

// Help shows a document and an example.
func (*configSetCmd) Help() string {
	return `The document can choose what is read, and nothing else:

  preset: standard                     minimal, standard or exhaustive
  families:
    pg_locks: off                      on: as the catalogue says
    pg_stat_statements: {interval: 30s, max_rows: 500}
  databases: {include: [shop*], exclude: []}
  servers:
    replica1: {preset: minimal}        preset, families and databases of one server

What it says counts before the collector's own file; what it does not say is left to that. All faults are told at
once and nothing is changed. Collectors take it within a minute; config get tells what became of it.

Example: pganalytics config set db1 --file db1.yaml --comment "statements every 30 seconds"`
}

// Run sets it.
func (c *configSetCmd) Run(con console) error {
	return c.change(con, c.said, c.formatted, func(*service.Configs, service.ConfigTarget) (string, string, error) {
		text, err := readDocument(c.File)
		if err == nil && text == "" {
			err = fmt.Errorf("%s is empty; config unset takes a configuration back", c.File)
		}
		return c.File, text, err
	})
}

func readDocument(name string) (string, error) {
	file := os.Stdin
	if name != "-" {
		var err error
		if file, err = os.Open(name); err != nil {
			return "", err
		}
		defer func() { _ = file.Close() }() // it was only read
	}
	text, err := io.ReadAll(io.LimitReader(file, policy.MaxDocumentBytes+1))
	return string(text), err
}

type configUnsetCmd struct {
	configured
	said
	formatted
}

// Run takes it back.
func (c *configUnsetCmd) Run(con console) error {
	return c.change(con, c.said, c.formatted, func(*service.Configs, service.ConfigTarget) (string, string, error) { return "", "", nil })
}

type configRollbackCmd struct {
	configured
	To int64 `env:"-" required:"" help:"The version to make the newest again, as config history has it."`
	said
	formatted
}

// Help says what it does not.
func (*configRollbackCmd) Help() string {
	return `Nothing is deleted: the document of that version becomes a new version.

Example: pganalytics config rollback db1 --to 12 --comment "too slow on the replica"`
}

// Run makes a version of a former one.
func (c *configRollbackCmd) Run(con console) error {
	return c.change(con, c.said, c.formatted, func(desk *service.Configs, target service.ConfigTarget) (string, string, error) {
		v, err := desk.Former(con.ctx, target, c.To)
		return fmt.Sprintf("version %d", c.To), v.Document, err
	})
}

type configHistoryCmd struct {
	configured
	Limit int `default:"20" help:"Most versions to list."`
	formatted
}

// Run lists.
func (c *configHistoryCmd) Run(con console) error {
	desk, target, end, err := c.desk(con)
	if err != nil {
		return err
	}
	defer end()
	versions, err := desk.History(con.ctx, target, max(0, c.Limit))
	if err != nil {
		return err
	}
	return c.show(con, versions, func(out io.Writer) error {
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "VERSION\tSET\tAUTHOR\tBYTES\tCOMMENT")
		for _, v := range versions {
			fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%s\n", v.Number, when(&v.CreatedAt), v.Author, len(v.Document), v.Comment)
		}
		return w.Flush()
	})
}

type configGetCmd struct {
	configured
	Version int64  `env:"-" help:"A former version instead of the one that counts."`
	Output  string `default:"yaml" enum:"yaml,text,json" help:"yaml or text for people: the document below what is known of it as comments, ready to be changed and set; json for scripts."`
}

// Run shows it.
func (c *configGetCmd) Run(con console) error {
	desk, target, end, err := c.desk(con)
	if err != nil {
		return err
	}
	defer end()
	view, err := desk.Get(con.ctx, target, c.Version)
	if err != nil {
		return err
	}
	return formatted{c.Output}.show(con, view, func(out io.Writer) error {
		_, err := io.WriteString(out, configText(&view))
		return err
	})
}

// configText is the document below comments.
func configText(view *service.ConfigView) string {
	var b strings.Builder
	say := func(format string, args ...any) {
		text := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", " ")
		fmt.Fprintf(&b, "# %s\n", text)
	}
	v := view.Version
	switch {
	case v.Number == 0:
		say("%s: nothing was ever set", view.Target.Name)
	case v.Document == "":
		say("%s: taken back by version %d, set %s by %s: %s", view.Target.Name, v.Number, when(&v.CreatedAt), v.Author, v.Comment)
	default:
		whose := ""
		if view.Target.ID != uuid.Nil && v.Collector == uuid.Nil {
			whose = " of the default"
		}
		say("%s: version %d%s, set %s by %s: %s", view.Target.Name, v.Number, whose, when(&v.CreatedAt), v.Author, v.Comment)
	}
	if view.Published < v.Number {
		say("gateways tell version %d yet", view.Published)
	}
	if view.Target.ID != uuid.Nil {
		say("%s", stateText(view.State))
	}
	b.WriteString(v.Document)
	if v.Document != "" && !strings.HasSuffix(v.Document, "\n") {
		b.WriteByte('\n')
	}
	return b.String()
}

func stateText(s *pulled.State) string {
	if s == nil {
		return "the collector has not said anything yet"
	}
	since := s.At.Local().Format(time.DateTime)
	text := fmt.Sprintf("the collector runs version %d, as it said %s", s.Applied, since)
	if s.Applied == 0 {
		text = "the collector runs its own file alone, as it said " + since
	}
	if s.Refused != 0 {
		text += fmt.Sprintf("; it refuses version %d", s.Refused)
	}
	if s.Detail != "" {
		text += ": " + s.Detail
	}
	return text
}
