package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"time"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/authsvc/pgstore"
	"pganalytics/pkg/identity/ca"
	"pganalytics/pkg/service"
)

type collectorsCmd struct {
	EnrollToken enrollTokenCmd `cmd:"" help:"Make a token with which one collector enrols once."`
}

type enrollTokenCmd struct {
	service.Installation
	Name      string        `help:"The only collector name that the token enrols. Defaults to any."`
	TTL       time.Duration `default:"30m" help:"How long the token is good; at most 168h."`
	URL       string        `help:"Address of the listener for users, as the collector reaches it. Defaults to that of serve in data-dir."`
	ServerCA  string        `type:"path" help:"File with the CA of the listeners' certificates. Defaults to that of data-dir."`
	TokenFile string        `type:"path" help:"File to write the token to, mode 0600, instead of printing it."`
	Output    string        `default:"text" enum:"text,json" help:"text for people, json for scripts."`
}

// enrollToken is the answer for scripts.
type enrollToken struct {
	ID            string    `json:"id"`
	Token         string    `json:"token,omitempty"`
	ExpiresAt     time.Time `json:"expires_at"`
	URL           string    `json:"url"`
	CAFingerprint string    `json:"ca_fingerprint"`
}

// Run makes the token in the database: whoever has that may enrol collectors.
func (c *enrollTokenCmd) Run(con console) error {
	answer, err := c.describe()
	url, urlErr := c.Database.URL()
	if err := errors.Join(err, urlErr); err != nil {
		return err
	}
	store, err := pgstore.Open(con.ctx, url)
	if err != nil {
		return err
	}
	defer store.Close()
	made, err := authsvc.CreateEnrollmentToken(con.ctx, store, authsvc.EnrollmentRequest{BoundName: c.Name, TTL: c.TTL, Actor: actor()})
	if err != nil {
		return err
	}
	answer.ID, answer.Token, answer.ExpiresAt = made.ID, made.Token, made.ExpiresAt
	if c.TokenFile != "" {
		if err := os.WriteFile(c.TokenFile, []byte(made.Token+"\n"), 0o600); err != nil {
			return err
		}
		answer.Token = ""
	}
	if c.Output == "json" {
		return json.NewEncoder(con.stdout).Encode(answer)
	}
	return c.print(con, answer)
}

func (c *enrollTokenCmd) print(con console, a enrollToken) error {
	name := c.Name
	if name == "" {
		name = "NAME"
	}
	file := c.TokenFile
	if file == "" {
		file = "token"
		fmt.Fprintf(con.stdout, "token, good once until %s:\n\n  %s\n\nOn the collector's host, with the token in the file %q (mode 0600):\n\n",
			a.ExpiresAt.Format(time.RFC3339), a.Token, file)
	} else {
		fmt.Fprintf(con.stdout, "token, good once until %s, is in %s. On the collector's host:\n\n", a.ExpiresAt.Format(time.RFC3339), file)
	}
	_, err := fmt.Fprintf(con.stdout, "  collector enroll --url %s --ca-fingerprint %s --token-file %s --name %s\n", a.URL, a.CAFingerprint, file, name)
	return err
}

// describe finds what the collector must be told beside the token.
func (c *enrollTokenCmd) describe() (enrollToken, error) {
	a := enrollToken{URL: c.URL}
	if a.URL == "" {
		e, err := c.Endpoints()
		if err != nil {
			return a, fmt.Errorf("address of the listener for users (or give --url): %w", err)
		}
		a.URL = e.Users
	}
	file := c.ServerCA
	if file == "" {
		file = filepath.Join(c.PKIDir(), ca.ServerCAFile)
	}
	certs, err := ca.LoadCertificates(file)
	if err != nil {
		return a, fmt.Errorf("CA of the listeners (or give --server-ca): %w", err)
	}
	a.CAFingerprint = ca.Fingerprint(certs[0])
	return a, nil
}

// actor names who acts at the command line, for the audit.
func actor() string {
	if u, err := user.Current(); err == nil {
		return "cli:" + u.Username
	}
	return "cli:" + fmt.Sprint(os.Getuid())
}
