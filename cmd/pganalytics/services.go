package main

import (
	"errors"
	"fmt"
	"path/filepath"

	"pganalytics/pkg/daemon"
	"pganalytics/pkg/identity/ca"
	"pganalytics/pkg/service"
	"pganalytics/pkg/store"
)

type serveCmd struct{ service.Serve }

// Run runs all services until a signal ends them.
func (c *serveCmd) Run(con console) error {
	return service.RunServe(con.ctx, c.Serve, con.stderr, nil)
}

type migrateCmd struct {
	Database service.DatabaseFlags `embed:"" prefix:"database-"`
	NATS     service.StreamFlags   `embed:"" prefix:"nats-"`
	service.CatalogueFlags
}

// Run changes the database, and the streams where a NATS URL is given.
func (c *migrateCmd) Run(con console) error {
	cat, err := c.Load()
	url, urlErr := c.Database.URL()
	if err := errors.Join(err, urlErr); err != nil {
		return err
	}
	if err := service.Migrate(con.ctx, url, cat); err != nil {
		return err
	}
	fmt.Fprintf(con.stdout, "database is up to date: %d families\n", len(cat.Families()))
	if err := store.EnsureReader(con.ctx, url); errors.Is(err, store.ErrNoReader) {
		fmt.Fprintln(con.stderr, "warning:", err) // all but reading works without
	} else if err != nil {
		return err
	}
	if c.NATS.URL == "" {
		return nil
	}
	if err := service.MakeStreams(con.ctx, c.NATS, con.stderr); err != nil {
		return err
	}
	fmt.Fprintln(con.stdout, "streams are up to date")
	return nil
}

type initCmd struct {
	PKIDir      string   `type:"path" required:"" help:"Directory for the authorities' keys; made with mode 0700."`
	TrustDomain string   `default:"pganalytics" help:"Trust domain of the collectors' identities; fixed once made."`
	Hosts       []string `default:"localhost,127.0.0.1" help:"Host names and addresses by which users and collectors reach the services; they go into the server's certificate."`
	Public      string   `type:"path" help:"Directory to copy to what a gateway needs: trusted certificates, and certificate and key of its listener."`
}

// Run makes what is missing; it overwrites no key.
func (c *initCmd) Run(con console) error {
	authority, err := ca.Init(ca.Options{Dir: c.PKIDir, TrustDomain: c.TrustDomain, ServerNames: c.Hosts})
	if err != nil {
		return err
	}
	if c.Public != "" {
		if err := ca.CopyForVerifiers(c.PKIDir, c.Public); err != nil {
			return err
		}
	}
	fmt.Fprintf(con.stdout, "authorities are in %s\nserver CA fingerprint: %s\n", filepath.Clean(c.PKIDir), ca.Fingerprint(authority.ServerCAs()[0]))
	return nil
}

type versionCmd struct{}

// Run prints what the toolchain recorded.
func (versionCmd) Run(con console) error {
	b := daemon.ThisBuild()
	_, err := fmt.Fprintf(con.stdout, "pganalytics %s %s %s\n", b.Version, b.Commit, b.Date)
	return err
}
