package collector

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pganalytics/pkg/collector/spool"
	"pganalytics/pkg/collector/uplink"
)

// statusName is the file in the state directory by which a running collector
// tells whoever looks from beside it how it is.
const statusName = "status.json"

// statusEvery is how often it is written. One that is older than staleAfter is
// of a collector that does not run any more.
const (
	statusEvery = 5 * time.Second
	staleAfter  = 6 * statusEvery // it is written late on a host that is short of everything
)

// told is the file.
type told struct {
	WrittenAt     time.Time     `json:"written_at"`
	StartedAt     time.Time     `json:"started_at"`
	Stopped       bool          `json:"stopped"` // it has ended as it was told to
	PID           int           `json:"pid"`
	Version       string        `json:"version"`
	SpoolMaxBytes int64         `json:"spool_max_bytes"`
	SpoolFill     float64       `json:"spool_fill"` // from 0 to 1, see spool.Stats
	Uplink        uplink.State  `json:"uplink"`
	ConfigVersion int64         `json:"config_version"` // that was pulled; 0: none
	Servers       []ServerState `json:"servers"`
}

// ServerState is whether a server is connected.
type ServerState struct {
	Name string `json:"name"`
	Up   bool   `json:"up"`
}

// runs reports whether the collector that wrote it is still there.
func (t *told) runs(now time.Time) bool {
	return !t.Stopped && now.Sub(t.WrittenAt) < staleAfter
}

// teller writes the file.
type teller struct {
	path    string
	version string
	spool   *spool.Spool
	pusher  *uplink.Pusher
	metrics prometheus.Gatherer // nil: what only metrics tell is left out
	log     *slog.Logger
}

// newTeller makes one. What reg knows it tells only if it can be asked.
func newTeller(cfg *Config, s *spool.Spool, p *uplink.Pusher, reg prometheus.Registerer, log *slog.Logger) *teller {
	t := &teller{path: filepath.Join(cfg.StateDir, statusName), version: cfg.Version, spool: s, pusher: p, log: log}
	t.metrics, _ = reg.(prometheus.Gatherer)
	return t
}

// run writes until ctx ends, and then that it has.
func (t *teller) run(ctx context.Context) {
	started := time.Now().UTC()
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	failed := false
	for {
		now := told{StartedAt: started, Stopped: ctx.Err() != nil}
		if err := t.write(now); err != nil && !failed {
			failed = true
			t.log.Warn("status file cannot be written; `collector status` does not know how the collector is", "err", err)
		} else if err == nil {
			failed = false
		}
		if now.Stopped {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

func (t *teller) write(s told) error {
	s.WrittenAt, s.PID, s.Version = time.Now().UTC(), os.Getpid(), t.version
	stats := t.spool.Stats()
	s.SpoolMaxBytes, s.SpoolFill, s.Uplink = stats.MaxBytes, stats.Fill(), t.pusher.State()
	s.Servers = []ServerState{}
	if t.metrics != nil {
		if err := t.gather(&s); err != nil {
			return err
		}
	}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode status: %w", err)
	}
	// Not synced: after a crash of the host it is out of date anyway.
	if err := os.WriteFile(t.path+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(t.path+".new", t.path)
}

// gather takes from the metrics what no other part has to keep for it.
func (t *teller) gather(s *told) error {
	families, err := t.metrics.Gather()
	if err != nil {
		return fmt.Errorf("gather metrics: %w", err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			switch f.GetName() {
			case "pganalytics_collector_config_version":
				s.ConfigVersion = int64(m.GetGauge().GetValue())
			case "pganalytics_collector_server_up":
				for _, l := range m.GetLabel() {
					if l.GetName() == "server" {
						s.Servers = append(s.Servers, ServerState{Name: l.GetValue(), Up: m.GetGauge().GetValue() == 1})
					}
				}
			}
		}
	}
	slices.SortFunc(s.Servers, func(a, b ServerState) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

// readTold returns what the collector in stateDir told last, zero if it never
// has.
func readTold(stateDir string) (told, error) {
	var s told
	text, err := os.ReadFile(filepath.Join(stateDir, statusName))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	if err != nil {
		return s, fmt.Errorf("read status: %w", err)
	}
	return s, nil
}
