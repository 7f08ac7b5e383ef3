package collector

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/collector/spool"
	"pganalytics/pkg/collector/uplink"
)

// Status is how a collector is, as seen from beside it.
type Status struct {
	Name             string        `json:"name"`
	CollectorID      uuid.UUID     `json:"collector_id"`
	Gateway          string        `json:"gateway"`
	CertificateUntil time.Time     `json:"certificate_until"`
	State            string        `json:"state"` // see state
	Do               string        `json:"do"`    // what people have to do; empty: nothing
	Running          bool          `json:"running"`
	ToldAt           time.Time     `json:"told_at,omitzero"` // what follows is as of then; zero: the collector never ran
	Version          string        `json:"version,omitempty"`
	Uplink           uplink.State  `json:"uplink"`
	ConfigVersion    int64         `json:"config_version"` // that was pulled; 0: none
	Servers          []ServerState `json:"servers"`
	Spool            SpoolState    `json:"spool"` // as of now
}

// SpoolState is what lies in the spool.
type SpoolState struct {
	Dir          string    `json:"dir"`
	Unsent       int       `json:"unsent_batches"`
	UnsentBytes  int64     `json:"unsent_bytes"`
	OldestAt     time.Time `json:"oldest_unsent_at,omitzero"`
	KeptBytes    int64     `json:"kept_bytes"`
	DeadLetters  int       `json:"dead_letters"`
	DeadBytes    int64     `json:"dead_letter_bytes"`
	MaxBytes     int64     `json:"max_bytes,omitempty"` // 0: no collector has told it
	Fill         float64   `json:"fill"`                // from 0 to 1, as of ToldAt
	Epoch        uuid.UUID `json:"epoch"`
	Sequence     uint64    `json:"sequence"`
	LastAccepted Accepted  `json:"last_accepted,omitzero"`
}

// Accepted is the last batch that the gateway took.
type Accepted struct {
	At       time.Time `json:"at"` // collector's clock
	BatchID  uuid.UUID `json:"batch_id"`
	Epoch    uuid.UUID `json:"epoch"`
	Sequence uint64    `json:"sequence"`
	Rows     int       `json:"rows"`
}

// ReadStatus returns how the collector in stateDir is. It may be running.
// spoolDir "" is the default one. Errors: uplink.ErrNotEnrolled.
func ReadStatus(stateDir, spoolDir string) (*Status, error) {
	id, err := uplink.LoadIdentity(stateDir)
	if err != nil {
		return nil, err
	}
	if spoolDir == "" {
		spoolDir = SpoolDir(stateDir)
	}
	stats, err := spool.Inspect(spoolDir)
	if err != nil {
		return nil, err
	}
	t, err := readTold(stateDir)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	s := &Status{
		Name: id.Name, CollectorID: id.CollectorID, Gateway: id.CollectorURL, CertificateUntil: id.Certificate.Leaf.NotAfter.UTC(),
		Running: t.runs(now), ToldAt: t.WrittenAt, Version: t.Version,
		Uplink: t.Uplink, ConfigVersion: t.ConfigVersion, Servers: t.Servers,
		Spool: spoolState(spoolDir, stats, &t),
	}
	s.State, s.Do = s.state(now)
	return s, nil
}

func spoolState(dir string, stats spool.Stats, t *told) SpoolState {
	s := SpoolState{
		Dir: dir, Unsent: stats.Unsent, UnsentBytes: stats.UnsentBytes, OldestAt: stats.OldestAt, KeptBytes: stats.KeptBytes,
		DeadLetters: stats.DeadLetters, DeadBytes: stats.DeadBytes, MaxBytes: t.SpoolMaxBytes, Fill: t.SpoolFill,
		Epoch: stats.Last.Epoch, Sequence: stats.Last.Sequence,
	}
	if a := stats.Accepted; a.Mark != (batch.Mark{}) {
		s.LastAccepted = Accepted{At: a.At, BatchID: a.BatchID, Epoch: a.Epoch, Sequence: a.Sequence, Rows: a.Rows}
	}
	return s
}

// states are what the backend's refusals are called.
var states = map[string]string{
	"collector_locked":    "locked",
	"collector_disabled":  "disabled",
	"collector_unknown":   "unknown to the backend",
	"certificate_revoked": "revoked",
	"certificate_unknown": "unknown to the backend",
	"quarantined":         "quarantined",
	"clock_skew":          "ahead of the backend's clock",
}

// state returns in a word or two how the collector is: works, holds (pushes
// fail and its spool keeps what it collects), not running, certificate expired,
// or what the backend calls it, and what to do about that.
func (s *Status) state(now time.Time) (state, do string) {
	trouble := s.Uplink.Trouble
	if trouble == nil || states[trouble.Code] == "" && s.Uplink.Renewal != nil {
		trouble = s.Uplink.Renewal // a no to a renewal is the first sign of a lock
	}
	if trouble != nil {
		do = trouble.Do
	}
	switch {
	case trouble != nil && states[trouble.Code] != "":
		return states[trouble.Code], do
	case now.After(s.CertificateUntil):
		return "certificate expired", uplink.Advice("certificate_expired")
	case !s.Running:
		return "not running", "start it: `collector run`."
	case s.Uplink.Trouble != nil:
		return "holds", do
	}
	return "works", do
}

// Print writes the status for people.
func (s *Status) Print(out io.Writer) error {
	now := time.Now()
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(table, "%s\t"+format+"\n", append([]any{name}, args...)...)
	}
	line("collector", "%s (%s)", s.Name, s.CollectorID)
	line("gateway", "%s", s.Gateway)
	line("state", "%s", s.stateLine(now))
	if s.Do != "" {
		line("what to do", "%s", s.Do)
	}
	line("certificate", "until %s", moment(s.CertificateUntil, now))
	trouble := func(name string, t *uplink.Trouble) {
		if t != nil {
			line(name, "since %s, %d times: %s", moment(t.Since, now), t.Failures, t.Error)
		}
	}
	trouble("pushes fail", s.Uplink.Trouble)
	trouble("renewal fails", s.Uplink.Renewal)
	s.Spool.print(line, now)
	if s.ConfigVersion > 0 {
		line("configuration", "version %d, pulled", s.ConfigVersion)
	}
	for _, server := range s.Servers {
		up := "up"
		if !server.Up {
			up = "down"
		}
		line("server "+server.Name, "%s", up)
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return nil
}

func (s *Status) stateLine(now time.Time) string {
	text := s.State
	switch {
	case s.ToldAt.IsZero():
		text += "; it never ran here"
	case !s.Running && s.State != "not running":
		text += "; not running"
	}
	if !s.Running && !s.ToldAt.IsZero() {
		text += ", last heard of " + moment(s.ToldAt, now)
	}
	return text
}

func (s *SpoolState) print(line func(name, format string, args ...any), now time.Time) {
	unsent := fmt.Sprintf("%d batches, %d bytes", s.Unsent, s.UnsentBytes)
	if !s.OldestAt.IsZero() {
		unsent += ", the oldest of " + moment(s.OldestAt, now)
	}
	line("unsent", "%s", unsent)
	if s.MaxBytes > 0 {
		line("spool", "%.0f %% full of %d bytes", 100*s.Fill, s.MaxBytes)
	}
	line("kept", "%d bytes of what was sent", s.KeptBytes)
	letters := fmt.Sprintf("%d, %d bytes", s.DeadLetters, s.DeadBytes)
	if s.DeadLetters > 0 {
		letters += ": collector deadletters list"
	}
	line("dead letters", "%s", letters)
	line("last number", "%d of epoch %s", s.Sequence, s.Epoch)
	if a := s.LastAccepted; !a.At.IsZero() {
		line("last accepted", "%d of epoch %s, %s", a.Sequence, a.Epoch, moment(a.At, now))
	}
}

// moment returns a time and how far it is.
func moment(t, now time.Time) string {
	text := t.UTC().Format(time.RFC3339)
	if t.After(now) {
		return text + " (in " + short(t.Sub(now)) + ")"
	}
	return text + " (" + short(now.Sub(t)) + " ago)"
}

// short leaves out what does not matter.
func short(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	case d >= time.Hour:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
	return d.Round(time.Second).String()
}
