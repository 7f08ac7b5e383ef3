package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"pganalytics/pkg/authsvc"
	"pganalytics/pkg/authsvc/pgstore"
	"pganalytics/pkg/identity/ca"
	"pganalytics/pkg/service"
)

// enrollTokenCmd works with the session of a login, or, before anybody can log
// in, straight on the database.
type enrollTokenCmd struct {
	service.Installation
	SessionFile string        `type:"path" help:"File with the session of pganalytics login, which is then used instead of the database. Defaults to that of the last login where no database is given."`
	Name        string        `help:"The only collector name that the token enrols. Defaults to any."`
	From        string        `type:"existingfile" help:"File with a collector's name on each line: makes a token for each."`
	CIDR        string        `name:"cidr" help:"Network that the token may be used from, as 10.1.0.0/16. Defaults to anywhere."`
	TTL         time.Duration `default:"30m" help:"How long the token is good; at most 168h."`
	URL         string        `help:"Address of the listener for users, as the collector reaches it. Defaults to that of serve in data-dir, or of the login."`
	ServerCA    string        `type:"path" help:"File with the CA of the listeners' certificates. Defaults to that of data-dir, or of the server that is logged in to."`
	TokenFile   string        `type:"path" help:"File to write the token to, mode 0600, instead of printing it."`
	Output      string        `default:"text" enum:"text,json" help:"text for people, json for scripts."`
}

// enrollToken is the answer for scripts.
type enrollToken struct {
	ID            string    `json:"id"`
	Name          string    `json:"name,omitempty"`
	Token         string    `json:"token,omitempty"`
	ExpiresAt     time.Time `json:"expires_at"`
	URL           string    `json:"url"`
	CAFingerprint string    `json:"ca_fingerprint"`

	again bool // it replaces an identity
}

// command is the line to run on the collector's host.
func (t enrollToken) command(tokenFile string) string {
	name, force := t.Name, ""
	if name == "" {
		name = "NAME"
	}
	if t.again {
		force = " --force"
	}
	return fmt.Sprintf("collector enroll --url %s --ca-fingerprint %s --token-file %s --name %s%s",
		t.URL, t.CAFingerprint, tokenFile, shellWord(name), force)
}

// shellWord quotes what a shell would take apart.
func shellWord(s string) string {
	plain := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("._-@:/", c)
	}
	if !strings.ContainsFunc(s, func(c rune) bool { return !plain(c) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// Run makes the tokens.
func (c *enrollTokenCmd) Run(con console) error {
	names, err := c.names()
	if err != nil {
		return err
	}
	makeOne, end, err := c.maker(con)
	if err != nil {
		return err
	}
	defer end()
	made := make([]enrollToken, 0, len(names))
	for _, name := range names {
		t, err := makeOne(name)
		if err != nil {
			return fmt.Errorf("%w (%d tokens were made)", err, len(made))
		}
		made = append(made, t)
	}
	if c.From != "" && c.Output == "json" {
		return json.NewEncoder(con.stdout).Encode(made) // a list, also of one
	}
	return printTokens(con, c.Output, c.TokenFile, made)
}

// names returns the names to make a token for; one that is empty is for any.
func (c *enrollTokenCmd) names() ([]string, error) {
	if c.From == "" {
		return []string{c.Name}, nil
	}
	if c.Name != "" || c.TokenFile != "" {
		return nil, errors.New("--from goes with neither --name nor --token-file")
	}
	f, err := os.Open(c.From)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var names []string
	for lines := bufio.NewScanner(f); ; {
		if !lines.Scan() {
			if err := lines.Err(); err != nil {
				return nil, fmt.Errorf("--from: %w", err)
			}
			break
		}
		name := strings.TrimSpace(lines.Text())
		if name == "" || strings.HasPrefix(name, "#") {
			continue
		}
		if slices.Contains(names, name) {
			return nil, fmt.Errorf("--from: %q stands there twice", name)
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return nil, errors.New("--from: no name in it")
	}
	return names, nil
}

// maker returns what makes a token, and what to call after the last one.
func (c *enrollTokenCmd) maker(con console) (makeOne func(name string) (enrollToken, error), end func(), err error) {
	databaseURL, databaseErr := c.Database.URL()
	if c.SessionFile != "" || databaseErr != nil {
		return c.overHTTP(con, databaseErr)
	}
	return c.inDatabase(con, databaseURL)
}

func (c *enrollTokenCmd) overHTTP(con console, databaseErr error) (func(string) (enrollToken, error), func(), error) {
	r := remote{SessionFile: c.SessionFile}
	session, err := r.client()
	if err != nil {
		return nil, nil, errors.Join(err, databaseErr)
	}
	return func(name string) (enrollToken, error) {
		t := enrollToken{Name: name}
		in := map[string]any{"ttl_seconds": int(c.TTL.Seconds())}
		for key, value := range map[string]string{"name": name, "cidr": c.CIDR} {
			if value != "" {
				in[key] = value
			}
		}
		err := session.Call(con.ctx, http.MethodPost, "enrollment-tokens", in, &t)
		t.URL = session.Server()
		if c.URL != "" {
			t.URL = c.URL
		}
		return t, err
	}, session.Close, nil
}

// inDatabase needs no login: whoever has the database may enrol collectors.
func (c *enrollTokenCmd) inDatabase(con console, databaseURL string) (func(string) (enrollToken, error), func(), error) {
	described, err := c.describe()
	if err != nil {
		return nil, nil, err
	}
	var source netip.Prefix
	if c.CIDR != "" {
		if source, err = netip.ParsePrefix(c.CIDR); err != nil {
			return nil, nil, fmt.Errorf("--cidr: %w", err)
		}
	}
	store, err := pgstore.Open(con.ctx, databaseURL)
	if err != nil {
		return nil, nil, err
	}
	return func(name string) (enrollToken, error) {
		made, err := authsvc.CreateEnrollmentToken(con.ctx, store, authsvc.EnrollmentRequest{
			BoundName: name, BoundSource: source, TTL: c.TTL, Actor: actor(),
		})
		t := described
		t.ID, t.Name, t.Token, t.ExpiresAt = made.ID, name, made.Token, made.ExpiresAt
		return t, err
	}, store.Close, nil
}

// describe finds what the collector must be told beside the token.
func (c *enrollTokenCmd) describe() (enrollToken, error) {
	t := enrollToken{URL: c.URL}
	if t.URL == "" {
		e, err := c.Endpoints()
		if err != nil {
			return t, fmt.Errorf("address of the listener for users (or give --url): %w", err)
		}
		t.URL = e.Users
	}
	file := c.ServerCA
	if file == "" {
		file = filepath.Join(c.PKIDir(), ca.ServerCAFile)
	}
	certs, err := ca.LoadCertificates(file)
	if err != nil {
		return t, fmt.Errorf("CA of the listeners (or give --server-ca): %w", err)
	}
	t.CAFingerprint = ca.Fingerprint(certs[0])
	return t, nil
}

// printTokens prints one token, or as text any number.
func printTokens(con console, format, tokenFile string, made []enrollToken) error {
	if tokenFile != "" {
		if err := os.WriteFile(tokenFile, []byte(made[0].Token+"\n"), 0o600); err != nil {
			return err
		}
		made[0].Token = ""
	}
	if format == "json" {
		return json.NewEncoder(con.stdout).Encode(made[0])
	}
	if tokenFile != "" {
		_, err := fmt.Fprintf(con.stdout, "token, good once until %s, is in %s. On the collector's host, with a copy of that file:\n\n  %s\n",
			made[0].ExpiresAt.Format(time.RFC3339), tokenFile, made[0].command(filepath.Base(tokenFile)))
		return err
	}
	for _, t := range made {
		_, err := fmt.Fprintf(con.stdout, "token, good once until %s:\n\n  %s\n\nOn the collector's host, with the token in the file %q (mode 0600):\n\n  %s\n",
			t.ExpiresAt.Format(time.RFC3339), t.Token, "token", t.command("token"))
		if err != nil {
			return err
		}
	}
	return nil
}

// actor names who acts at the command line, for the audit.
func actor() string {
	if u, err := user.Current(); err == nil {
		return "cli:" + u.Username
	}
	return "cli:" + fmt.Sprint(os.Getuid())
}
