package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/client"
)

type collectorsCmd struct {
	List        collectorsListCmd    `cmd:"" help:"List collectors."`
	Show        collectorsShowCmd    `cmd:"" help:"Show one collector."`
	Disable     collectorsDisableCmd `cmd:"" help:"Refuse a collector until it is enabled, at once and everywhere. What it sends meanwhile waits in its spool."`
	Enable      collectorsEnableCmd  `cmd:"" help:"Let a disabled collector in again."`
	Unlock      collectorsUnlockCmd  `cmd:"" help:"Revoke what a locked collector has and make a token that enrols it again."`
	Delete      collectorsDeleteCmd  `cmd:"" help:"Revoke a collector's certificates and forget it; what it sent stays."`
	EnrollToken enrollTokenCmd       `cmd:"" help:"Make a token with which one collector enrols once, or one for each of a list."`
}

type remoteCollector struct {
	ID                    string     `json:"id"`
	Name                  string     `json:"name"`
	Hostname              string     `json:"hostname"`
	Address               string     `json:"address"`
	Version               string     `json:"version"`
	Status                string     `json:"status"`
	LastSeen              *time.Time `json:"last_seen"`
	CertificateThumbprint string     `json:"certificate_thumbprint"`
	CertificateExpiresAt  time.Time  `json:"certificate_expires_at"`
	ConfigVersion         int64      `json:"config_version"`
	CreatedAt             time.Time  `json:"created_at"`
	UpdatedAt             time.Time  `json:"updated_at"`
}

func (k remoteCollector) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, line := range [][2]string{
		{"name", k.Name}, {"id", k.ID}, {"status", k.Status}, {"last seen", when(k.LastSeen)}, {"hostname", k.Hostname},
		{"address", k.Address}, {"version", k.Version}, {"certificate", k.CertificateThumbprint},
		{"certificate until", when(&k.CertificateExpiresAt)}, {"enrolled", when(&k.CreatedAt)}, {"changed", when(&k.UpdatedAt)},
	} {
		fmt.Fprintf(w, "%s\t%s\n", line[0], line[1])
	}
	return w.Flush()
}

type collectorsListCmd struct {
	remote
	paging
	Status string `enum:",registered,active,offline,disabled,locked" default:"" help:"Only collectors of this status."`
}

// Run lists.
func (c *collectorsListCmd) Run(con console) error {
	var p page[remoteCollector]
	if err := c.call(con, http.MethodGet, c.query("collectors", map[string]string{"status": c.Status}), nil, &p); err != nil {
		return err
	}
	return c.show(con, p, func(out io.Writer) error {
		return table(out, "NAME STATUS LAST-SEEN CERTIFICATE-UNTIL VERSION HOSTNAME ID", p, func(k remoteCollector) []string {
			return []string{k.Name, k.Status, when(k.LastSeen), when(&k.CertificateExpiresAt), k.Version, k.Hostname, k.ID}
		})
	})
}

// oneCollector is the flags of a command about one.
type oneCollector struct {
	remote
	Collector string `arg:"" help:"Name or id of the collector."`
}

// find returns the collector of that name or id.
func (o *oneCollector) find(con console, c *client.Client) (remoteCollector, error) {
	var k remoteCollector
	if id, err := uuid.Parse(o.Collector); err == nil {
		return k, c.Call(con.ctx, http.MethodGet, "collectors/"+id.String(), nil, &k)
	}
	var p page[remoteCollector]
	if err := c.Call(con.ctx, http.MethodGet, "collectors?name="+url.QueryEscape(o.Collector), nil, &p); err != nil {
		return k, err
	}
	if len(p.Data) != 1 {
		return k, fmt.Errorf("there is no collector %q", o.Collector)
	}
	return p.Data[0], nil
}

// do finds the collector, calls the path below it, and prints the answer.
func (o *oneCollector) do(con console, method, below string) error {
	c, err := o.client()
	if err != nil {
		return err
	}
	defer c.Close()
	k, err := o.find(con, c)
	if err != nil {
		return err
	}
	if method != "" {
		if err := c.Call(con.ctx, method, "collectors/"+k.ID+below, nil, &k); err != nil {
			return err
		}
	}
	return o.show(con, k, k.print)
}

type collectorsShowCmd struct{ oneCollector }

// Run shows it.
func (c *collectorsShowCmd) Run(con console) error { return c.do(con, "", "") }

type collectorsDisableCmd struct{ oneCollector }

// Run disables it.
func (c *collectorsDisableCmd) Run(con console) error { return c.do(con, http.MethodPost, "/disable") }

type collectorsEnableCmd struct{ oneCollector }

// Run enables it.
func (c *collectorsEnableCmd) Run(con console) error { return c.do(con, http.MethodPost, "/enable") }

type collectorsDeleteCmd struct {
	oneCollector
	Yes bool `help:"Really. Its name is free again; to let it in once more it must be enrolled as a new collector."`
}

// Run deletes it and shows what is gone.
func (c *collectorsDeleteCmd) Run(con console) error {
	if !c.Yes {
		return errors.New("this cannot be undone: give --yes, or disable the collector instead")
	}
	return c.do(con, http.MethodDelete, "")
}

type collectorsUnlockCmd struct {
	oneCollector
	TTL       time.Duration `default:"30m" help:"How long the token is good; at most 168h."`
	TokenFile string        `type:"path" help:"File to write the token to, mode 0600, instead of printing it."`
}

// Run unlocks it and prints how to enrol it again.
func (c *collectorsUnlockCmd) Run(con console) error {
	session, err := c.client()
	if err != nil {
		return err
	}
	defer session.Close()
	k, err := c.find(con, session)
	if err != nil {
		return err
	}
	var unlocked struct {
		EnrollmentToken enrollToken `json:"enrollment_token"`
	}
	in := map[string]any{"ttl_seconds": int(c.TTL.Seconds())}
	if err := session.Call(con.ctx, http.MethodPost, "collectors/"+k.ID+"/unlock", in, &unlocked); err != nil {
		return err
	}
	made := unlocked.EnrollmentToken
	made.Name, made.URL, made.again = k.Name, session.Server(), true
	return printTokens(con, c.Output, c.TokenFile, []enrollToken{made})
}
