package authsvc

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"pganalytics/pkg/httpserver/typed"
)

// AuditEntry is a row of the audit.
type AuditEntry struct {
	ID                       int64
	At                       time.Time
	Actor, Action            string
	ResourceType, ResourceID string
	Result                   string // success, refused
	Source                   netip.Addr
	Changes                  json.RawMessage
}

// AuditQuery asks for entries. Zero members do not narrow it.
type AuditQuery struct {
	Page
	Actor, Action, ResourceType, ResourceID, Result string
	Since, Until                                    time.Time
}

// Refusal is what was refused in one minute to one source for one account.
type Refusal struct {
	Minute  time.Time
	Action  string
	Source  netip.Addr
	Account string // "user:<id>", "session:<id>" or "unknown": a name that is none may be a password
	Count   int
}

// AuditStore keeps the audit.
type AuditStore interface {
	// ListAudit returns one page, newest first, and how many there are.
	ListAudit(ctx context.Context, q AuditQuery) ([]AuditEntry, int, error)
	// Refused writes down what was refused.
	Refused(ctx context.Context, r []Refusal) error
}

// maxRefusals bounds what is folded at once. Beyond it the sources of unknown
// accounts are no longer told apart.
const maxRefusals = 10_000

// refusals folds failures per source, account and minute, so that whoever tries
// passwords does not fill the database.
type refusals struct {
	mu     sync.Mutex
	counts map[Refusal]int // Count is 0 in the keys
}

func (r *refusals) add(now time.Time, action string, source netip.Addr, account string) {
	key := Refusal{Minute: now.UTC().Truncate(time.Minute), Action: action, Source: source, Account: account}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.counts[key]; !ok && len(r.counts) >= maxRefusals {
		key.Source, key.Account = netip.Addr{}, "unknown"
	}
	r.counts[key]++
}

// take returns those of minutes that are over by now.
func (r *refusals) take(now time.Time) []Refusal {
	minute := now.UTC().Truncate(time.Minute)
	r.mu.Lock()
	defer r.mu.Unlock()
	var over []Refusal
	for key, n := range r.counts {
		if key.Minute.Before(minute) {
			delete(r.counts, key)
			key.Count = n
			over = append(over, key)
		}
	}
	return over
}

func (r *refusals) putBack(over []Refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, key := range over {
		n := key.Count
		key.Count = 0
		if len(r.counts) < maxRefusals {
			r.counts[key] += n
		}
	}
}

// flushRefusals writes what was refused until the minute of now.
func (s *Service) flushRefusals(ctx context.Context, now time.Time) error {
	over := s.refused.take(now)
	if len(over) == 0 {
		return nil
	}
	if err := s.Audit.Refused(ctx, over); err != nil {
		s.refused.putBack(over)
		return fmt.Errorf("write down what was refused: %w", err)
	}
	return nil
}

type auditInput struct {
	PageQuery
	Actor        string    `query:"actor" maxLength:"200"`
	Action       string    `query:"action" maxLength:"200"`
	ResourceType string    `query:"resource_type" maxLength:"200"`
	ResourceID   string    `query:"resource_id" maxLength:"200"`
	Result       string    `query:"result" enum:"success,refused"`
	Since        time.Time `query:"since" doc:"From this time on."`
	Until        time.Time `query:"until" doc:"Before this time."`
}

type auditView struct {
	ID           int64          `json:"id"`
	At           time.Time      `json:"at"`
	Actor        string         `json:"actor"`
	Action       string         `json:"action"`
	ResourceType string         `json:"resource_type"`
	ResourceID   string         `json:"resource_id"`
	Result       string         `json:"result"`
	SourceIP     *string        `json:"source_ip"`
	Changes      map[string]any `json:"changes"`
}

func (s *Service) auditRoutes(api *typed.API) {
	typed.Route(api, typed.Operation{
		ID: "list_audit", Method: http.MethodGet, Path: "/api/v1/audit", Tag: "audit", Summary: "List the audit, newest first.",
	}, func(ctx context.Context, in *auditInput) (*body[list[auditView]], error) {
		found, total, err := s.Audit.ListAudit(ctx, AuditQuery{
			Page: in.page(), Actor: in.Actor, Action: in.Action, ResourceType: in.ResourceType, ResourceID: in.ResourceID,
			Result: in.Result, Since: in.Since, Until: in.Until,
		})
		if err != nil {
			return nil, err
		}
		return listed(found, total, in.page(), viewAudit), nil
	})
}

func viewAudit(e AuditEntry) auditView {
	v := auditView{
		ID: e.ID, At: e.At.UTC(), Actor: e.Actor, Action: e.Action, ResourceType: e.ResourceType, ResourceID: e.ResourceID,
		Result: e.Result,
	}
	if e.Source.IsValid() {
		source := e.Source.String()
		v.SourceIP = &source
	}
	_ = json.Unmarshal(e.Changes, &v.Changes) // jsonb of the database's: an object
	return v
}
