package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"pganalytics/pkg/collector"
	"pganalytics/pkg/collector/spool"
	"pganalytics/pkg/collector/uplink"
	"pganalytics/pkg/daemon"
)

type enrollCommand struct {
	URL           string `required:"" help:"URL of the backend's listener for users, https://host[:port]."`
	CAFingerprint string `required:"" help:"Fingerprint of the backend's server CA, sha256:…, as the backend shows it. The token is sent only to a server that this CA vouches for."`
	TokenFile     string `required:"" help:"File with the enrolment token; - is standard input."`
	Name          string `required:"" help:"Name of this collector, unique in the fleet."`
	Hostname      string `help:"Name of this machine; informs only. Defaults to what the system says."`
	StateDir      string `type:"path" default:"/var/lib/pganalytics-collector" help:"Directory for identity and spool. It is made if missing; keep it private."`
	Force         bool   `help:"Replace an identity that is there. If it is that of another collector, its spool, which only it could send, is set aside."`
}

// Run enrols.
func (c *enrollCommand) Run(ctx context.Context, io *streams) error {
	// A running collector would go on under the old identity, and write it
	// over the new one with its next renewal.
	held, err := spool.Hold(collector.SpoolDir(c.StateDir))
	if err != nil {
		return fmt.Errorf("stop the collector first: %w", err)
	}
	defer func() { _ = held.Close() }()
	token, err := c.token(io.in)
	if err != nil {
		return err
	}
	id, err := uplink.Enroll(ctx, uplink.Enrollment{
		URL: c.URL, CAFingerprint: c.CAFingerprint, Token: token, Name: c.Name,
		Hostname: c.Hostname, Version: daemon.ThisBuild().Version, StateDir: c.StateDir,
		Force: c.Force, Retire: func(old *uplink.Identity) error { return setAside(c.StateDir, old, io.err) },
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(io.out, "enrolled %s as %s, certificate until %s\n",
		id.Name, id.CollectorID, id.Certificate.Leaf.NotAfter.Format("2006-01-02 15:04:05Z"))
	return err
}

func (c *enrollCommand) token(stdin io.Reader) (string, error) {
	if c.TokenFile != "-" {
		data, err := os.ReadFile(c.TokenFile)
		if err != nil {
			return "", fmt.Errorf("--token-file: %w", err)
		}
		return strings.TrimSpace(string(data)), nil
	}
	data, err := io.ReadAll(io.LimitReader(stdin, 4096))
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// setAside moves the spool of a replaced identity out of the way: its batches
// carry the old collector's id, which the new one may not send.
func setAside(stateDir string, old *uplink.Identity, out io.Writer) error {
	from := collector.SpoolDir(stateDir)
	to := from + "." + old.CollectorID.String()
	err := os.Rename(from, to)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("set the old spool aside: %w", err)
	}
	_, err = fmt.Fprintf(out, "the spool of the replaced identity was set aside as %s\n", to)
	return err
}
