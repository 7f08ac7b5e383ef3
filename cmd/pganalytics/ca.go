package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"text/tabwriter"
	"time"

	"pganalytics/pkg/identity/ca"
)

type caCmd struct {
	Show             caShowCmd       `cmd:"" help:"Show the authorities and what is trusted."`
	RotateBegin      caBeginCmd      `cmd:"" help:"Make a new authority and trust it beside the old one, which still signs."`
	RotateSwitch     caSwitchCmd     `cmd:"" help:"Let the new authority sign. Both are trusted."`
	RotateFinish     caFinishCmd     `cmd:"" help:"End the trust in the old authority."`
	RotateSigningKey caSigningKeyCmd `cmd:"" help:"Replace the key that signs access tokens."`
}

// caFlags say where the authorities lie.
type caFlags struct {
	DataDir string `type:"path" default:"/var/lib/pganalytics" help:"Data directory of serve on this host."`
	PKIDir  string `type:"path" help:"Directory that \"pganalytics init\" has made. Defaults to that in data-dir."`
	Public  string `type:"path" help:"Directory to copy to what a gateway needs, as with init. Gateways elsewhere need the copy before the next step."`
}

func (f *caFlags) dir() string {
	if f.PKIDir != "" {
		return f.PKIDir
	}
	return filepath.Join(f.DataDir, "pki")
}

func (f *caFlags) publish() error {
	if f.Public == "" {
		return nil
	}
	return ca.CopyForVerifiers(f.dir(), f.Public)
}

type caShowCmd struct {
	caFlags
	Output string `default:"text" enum:"text,json" help:"text for people, json for scripts."`
}

// Run shows public things only.
func (c *caShowCmd) Run(con console) error {
	o, err := ca.Inspect(c.dir())
	if err != nil {
		return err
	}
	if c.Output == "json" {
		return json.NewEncoder(con.stdout).Encode(o)
	}
	w := tabwriter.NewWriter(con.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ANCHOR\tSTATE\tNOT AFTER\tFINGERPRINT")
	for _, a := range o.Anchors {
		end := "-"
		if !a.NotAfter.IsZero() {
			end = a.NotAfter.Format(time.DateOnly)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", a.Anchor, a.State, end, a.Fingerprint)
	}
	fmt.Fprintf(w, "signing key\tsigns\t%s\t%s\n", o.SigningKey.NotAfter.Format(time.DateOnly), o.SigningKey.KID)
	for _, k := range o.RevokedKeys {
		fmt.Fprintf(w, "signing key\trevoked\t%s\t%s\n", k.NotAfter.Format(time.DateOnly), k.KID)
	}
	return w.Flush()
}

type caStepFlags struct {
	caFlags
	Anchor string `arg:"" enum:"collector,server,root" help:"collector: signs collectors' certificates; server: signs the listeners' certificate; root: vouches for signing keys."`
}

func (f *caStepFlags) run(con console, force bool, step func(ca.Rotation) error, next string) error {
	anchor, err := ca.ParseAnchor(f.Anchor)
	if err != nil {
		return err
	}
	if err := step(ca.Rotation{Dir: f.dir(), Anchor: anchor, Now: time.Now(), Force: force}); err != nil {
		return err
	}
	if err := f.publish(); err != nil {
		return err
	}
	_, err = fmt.Fprintln(con.stdout, next)
	return err
}

type caBeginCmd struct{ caStepFlags }

// Run begins.
func (c *caBeginCmd) Run(con console) error {
	return c.run(con, false, ca.Rotation.Begin,
		"the new one is trusted beside the old one. Copy the trusted files to every gateway, then: ca rotate-switch "+c.Anchor)
}

type caSwitchCmd struct {
	caStepFlags
	Force bool `help:"Do not wait until every collector has learnt of a new server authority. Those that have not must be enrolled again."`
}

// Run switches.
func (c *caSwitchCmd) Run(con console) error {
	return c.run(con, c.Force, ca.Rotation.Switch, "the new one signs. Later: ca rotate-finish "+c.Anchor)
}

type caFinishCmd struct {
	caStepFlags
	Force bool `help:"Do not wait until nothing that the old one signed is in use. Collectors with its certificates must be enrolled again."`
}

// Run finishes.
func (c *caFinishCmd) Run(con console) error {
	return c.run(con, c.Force, ca.Rotation.Finish, "the old one is trusted no more. Copy the trusted files to every gateway.")
}

type caSigningKeyCmd struct {
	caFlags
	RevokeOld bool `help:"Refuse all tokens of the old key at once, because somebody else may have it. Collectors get new ones by themselves, people log in again."`
}

// Run makes the key; authsvc goes over to it within seconds.
func (c *caSigningKeyCmd) Run(con console) error {
	key, err := ca.RotateSigningKey(c.dir(), c.RevokeOld, time.Now())
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(con.stdout, "new signing key: %s, until %s\n", key.KID, key.NotAfter.Format(time.DateOnly))
	return err
}
