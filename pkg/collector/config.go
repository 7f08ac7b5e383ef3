package collector

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/collector/logread"
	"pganalytics/pkg/collector/pgread"
	"pganalytics/pkg/collector/spool"
	"pganalytics/pkg/collector/uplink"
	"pganalytics/pkg/policy"
)

// Config of a collector.
type Config struct {
	// StateDir holds the identity, and the spool unless Spool.Dir is set.
	StateDir string

	// Hostname is sent with every batch and informs only. Defaults to the one
	// that was enrolled.
	Hostname string

	// Version of the program, sent with every batch.
	Version string

	// Labels are sent with every batch and stored with the servers. At most 64.
	Labels map[string]string

	// Policy says what is read from all servers. Defaults to the standard
	// preset.
	Policy policy.Policy

	// Servers are the PostgreSQL servers to read. Their names are unique and
	// never change: rows are stored under them.
	Servers []Server

	// Host says how the collector's own host is read.
	Host Host

	// Spool bounds what waits on disk. Dir defaults to StateDir/spool.
	Spool spool.Config

	// Pusher sets pauses and the grace at the end.
	Pusher uplink.PusherConfig
}

// Server is one PostgreSQL server.
type Server struct {
	// Config says how to reach it. Families, Include and Exclude are not set:
	// they come from policies.
	pgread.Config

	// Policy is the server's own, over that of all servers.
	Policy policy.Policy

	// LogFiles is a path or pattern of its csvlog or jsonlog files on this
	// host, see logread.Config. Empty: they are not read.
	LogFiles string
}

// Host is the collector's own host.
type Host struct {
	// Off: it is not read.
	Off bool

	// Name of the server that its rows are stored under. Defaults to Hostname.
	Name string
}

// SpoolDir returns where a collector with this state directory keeps its spool
// unless told otherwise.
func SpoolDir(stateDir string) string { return stateDir + "/spool" }

// setDefaults fills in what the identity says, which is nil for a collector
// that is not enrolled.
func (c *Config) setDefaults(id *uplink.Identity) {
	if c.Spool.Dir == "" {
		c.Spool.Dir = SpoolDir(c.StateDir)
	}
	if c.Hostname == "" && id != nil {
		c.Hostname = id.Hostname
	}
	if c.Host.Name == "" {
		c.Host.Name = c.Hostname
	}
	if c.Version == "" {
		c.Version = "devel"
	}
}

// has reports whether there is a server of that name.
func (c *Config) has(server string) bool {
	return slices.ContainsFunc(c.Servers, func(s Server) bool { return s.Name == server })
}

// Validate reports all faults. It shows no conninfo.
func (c *Config) Validate() error {
	var errs []error
	if c.StateDir == "" {
		errs = append(errs, errors.New("state-dir is not set"))
	}
	if len(c.Servers) == 0 {
		errs = append(errs, errors.New("no servers are configured"))
	}
	if n := c.Spool.MaxBytes; n != 0 && n < minSpoolBytes {
		errs = append(errs, fmt.Errorf("spool max bytes %d: must be at least %d", n, minSpoolBytes))
	}
	if !push.ValidNote(c.Hostname) {
		errs = append(errs, fmt.Errorf("hostname %q: must be at most 255 bytes long, without control characters", c.Hostname))
	}
	if !push.ValidNote(c.Host.Name) {
		errs = append(errs, fmt.Errorf("host name %q: must be at most 255 bytes long, without control characters", c.Host.Name))
	}
	if len(c.Labels) > push.MaxLabels {
		errs = append(errs, fmt.Errorf("%d labels: at most %d are possible", len(c.Labels), push.MaxLabels))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Labels)) {
		if push.Printable(name) == "" || !push.ValidNote(c.Labels[name]) {
			errs = append(errs, fmt.Errorf("label %q: name or value is not acceptable", name))
		}
	}
	names := map[string]bool{}
	for i := range c.Servers {
		s := &c.Servers[i]
		if names[s.Name] {
			errs = append(errs, fmt.Errorf("server %q: name is used twice", s.Name))
		}
		names[s.Name] = true
		errs = append(errs, s.Validate())
		if s.LogFiles != "" {
			if _, err := logread.New(s.LogFiles); err != nil {
				errs = append(errs, fmt.Errorf("server %q: %w", s.Name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// minSpoolBytes is room for a few batches of the greatest size.
const minSpoolBytes = 16 << 20

// sender returns what batches say about who sends them.
func (c *Config) sender(id *uplink.Identity) sender {
	return sender{collectorID: id.CollectorID, hostname: c.Hostname, version: c.Version, labels: c.labels()}
}

// labels returns the labels sorted by name, so that a batch is always made of
// the same bytes.
func (c *Config) labels() []batch.Label {
	var labels []batch.Label
	for name, value := range c.Labels {
		labels = append(labels, batch.Label{Name: name, Value: value})
	}
	slices.SortFunc(labels, func(a, b batch.Label) int { return strings.Compare(a.Name, b.Name) })
	return labels
}
