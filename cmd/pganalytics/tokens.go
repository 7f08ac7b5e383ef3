package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

type tokensCmd struct {
	List   tokensListCmd   `cmd:"" help:"List API tokens."`
	Create tokensCreateCmd `cmd:"" help:"Make an API token, for senders and readers that can hold only a static secret."`
	Revoke tokensRevokeCmd `cmd:"" help:"Revoke an API token, at once and everywhere."`
}

type remoteToken struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	Token     string     `json:"token,omitempty"`
	Scopes    []string   `json:"scopes"`
	Status    string     `json:"status"`
	CreatedBy string     `json:"created_by"`
	CreatedAt time.Time  `json:"created_at"`
	ExpiresAt time.Time  `json:"expires_at"`
	RevokedAt *time.Time `json:"revoked_at"`
	LastUsed  *time.Time `json:"last_used"`
}

type tokensListCmd struct {
	remote
	paging
}

// Run lists.
func (c *tokensListCmd) Run(con console) error {
	var p page[remoteToken]
	if err := c.call(con, http.MethodGet, c.query("tokens", nil), nil, &p); err != nil {
		return err
	}
	return c.show(con, p, func(out io.Writer) error {
		return table(out, "ID NAME STATUS SCOPES EXPIRES LAST-USED CREATED-BY", p, func(t remoteToken) []string {
			return []string{t.ID, t.Name, t.Status, strings.Join(t.Scopes, ","), when(&t.ExpiresAt), when(t.LastUsed), t.CreatedBy}
		})
	})
}

type tokensCreateCmd struct {
	remote
	Name      string   `arg:"" help:"What it is for."`
	Scope     []string `required:"" help:"read, or push:<collector id>. May be given several times."`
	Days      int      `default:"90" help:"Days until it expires, at most 366."`
	TokenFile string   `type:"path" help:"File to write the token to, mode 0600, instead of printing it."`
}

// Run makes the token.
func (c *tokensCreateCmd) Run(con console) error {
	var t remoteToken
	in := map[string]any{"name": c.Name, "scopes": c.Scope, "expires_in_days": c.Days}
	if err := c.call(con, http.MethodPost, "tokens", in, &t); err != nil {
		return err
	}
	if c.TokenFile != "" {
		if err := os.WriteFile(c.TokenFile, []byte(t.Token+"\n"), 0o600); err != nil {
			return err
		}
		t.Token = ""
	}
	return c.show(con, t, func(out io.Writer) error {
		if c.TokenFile != "" {
			_, err := fmt.Fprintf(out, "token %s, good until %s, is in %s\n", t.ID, when(&t.ExpiresAt), c.TokenFile)
			return err
		}
		_, err := fmt.Fprintf(out, "token %s, good until %s, not shown again:\n\n  %s\n", t.ID, when(&t.ExpiresAt), t.Token)
		return err
	})
}

type tokensRevokeCmd struct {
	remote
	ID string `arg:"" help:"Id of the token."`
}

// Run revokes.
func (c *tokensRevokeCmd) Run(con console) error {
	return c.call(con, http.MethodDelete, "tokens/"+url.PathEscape(c.ID), nil, nil)
}

type auditCmd struct {
	remote
	paging
	Actor        string    `help:"Only what this one did, as user:<id>."`
	Action       string    `help:"Only this action, as user.create."`
	ResourceType string    `help:"Only what was done to such a thing, as collector."`
	ResourceID   string    `help:"Only what was done to the thing of this id."`
	Result       string    `enum:",success,refused" default:"" help:"Only what succeeded, or was refused."`
	Since        time.Time `help:"From this time on, as 2026-01-31T12:00:00Z."`
	Until        time.Time `help:"Before this time."`
}

type remoteAudit struct {
	ID           int64           `json:"id"`
	At           time.Time       `json:"at"`
	Actor        string          `json:"actor"`
	Action       string          `json:"action"`
	ResourceType string          `json:"resource_type"`
	ResourceID   string          `json:"resource_id"`
	Result       string          `json:"result"`
	SourceIP     *string         `json:"source_ip"`
	Changes      json.RawMessage `json:"changes"`
}

// Run lists the audit, newest first.
func (c *auditCmd) Run(con console) error {
	filters := map[string]string{
		"actor": c.Actor, "action": c.Action, "resource_type": c.ResourceType, "resource_id": c.ResourceID, "result": c.Result,
	}
	for name, at := range map[string]time.Time{"since": c.Since, "until": c.Until} {
		if !at.IsZero() {
			filters[name] = at.UTC().Format(time.RFC3339)
		}
	}
	var p page[remoteAudit]
	if err := c.call(con, http.MethodGet, c.query("audit", filters), nil, &p); err != nil {
		return err
	}
	return c.show(con, p, func(out io.Writer) error {
		return table(out, "AT ACTION RESULT ACTOR RESOURCE SOURCE CHANGES", p, func(a remoteAudit) []string {
			source := "-"
			if a.SourceIP != nil {
				source = *a.SourceIP
			}
			return []string{when(&a.At), a.Action, a.Result, a.Actor, a.ResourceType + ":" + a.ResourceID, source, string(a.Changes)}
		})
	})
}
