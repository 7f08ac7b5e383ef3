package collector

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/collector/pgread"
	"pganalytics/pkg/collector/spool"
	"pganalytics/pkg/collector/uplink"
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

	// Servers are the PostgreSQL servers to read. Their names are unique and
	// never change: rows are stored under them.
	Servers []pgread.Config

	// Spool bounds what waits on disk. Dir defaults to StateDir/spool.
	Spool spool.Config

	// Pusher sets pauses and the grace at the end.
	Pusher uplink.PusherConfig
}

// SpoolDir returns where a collector with this state directory keeps its spool
// unless told otherwise.
func SpoolDir(stateDir string) string { return stateDir + "/spool" }

func (c *Config) setDefaults(id *uplink.Identity) {
	if c.Spool.Dir == "" {
		c.Spool.Dir = SpoolDir(c.StateDir)
	}
	if c.Hostname == "" {
		c.Hostname = id.Hostname
	}
	if c.Version == "" {
		c.Version = "devel"
	}
}

// What a gateway takes as labels.
const maxLabels = 64

var labelName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,62}$`)

// Validate reports all faults. It shows no conninfo.
func (c *Config) Validate(cat *catalogue.Catalogue) error {
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
	if !pgread.Acceptable(c.Hostname) {
		errs = append(errs, fmt.Errorf("hostname %q: must be at most 255 bytes long, without control characters", c.Hostname))
	}
	if len(c.Labels) > maxLabels {
		errs = append(errs, fmt.Errorf("%d labels: at most %d are possible", len(c.Labels), maxLabels))
	}
	for name, value := range c.Labels {
		if !labelName.MatchString(name) || !pgread.Acceptable(value) {
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
		for family := range s.Families {
			if _, ok := cat.Family(family); !ok {
				errs = append(errs, fmt.Errorf("server %q: no family %q in the catalogue", s.Name, family))
			}
		}
	}
	return errors.Join(errs...)
}

// minSpoolBytes is room for a few batches of the greatest size.
const minSpoolBytes = 16 << 20

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

// Conninfo is the way to a server's connection settings. One of the fields is
// set.
type Conninfo struct {
	Plain string // URL or DSN without a password
	File  string // holds one, may have a password
	Env   string // name of the variable that holds one, may have a password
}

// Resolve returns the settings. An error never shows them.
func (c Conninfo) Resolve() (string, error) {
	given := 0
	for _, s := range []string{c.Plain, c.File, c.Env} {
		if s != "" {
			given++
		}
	}
	switch {
	case given != 1:
		return "", errors.New("exactly one of conninfo, conninfo_file and conninfo_env must be set")
	case c.Plain != "":
		if hasPassword(c.Plain) {
			return "", errors.New("conninfo must not hold a password: use conninfo_file, conninfo_env or a password file")
		}
		return c.Plain, nil
	case c.File != "":
		data, err := os.ReadFile(c.File)
		if err != nil {
			return "", fmt.Errorf("conninfo_file: %w", err)
		}
		if strings.TrimSpace(string(data)) == "" {
			return "", fmt.Errorf("conninfo_file %s is empty", c.File)
		}
		return strings.TrimSpace(string(data)), nil
	}
	value := os.Getenv(c.Env)
	if value == "" {
		return "", fmt.Errorf("conninfo_env: variable %s is not set", c.Env)
	}
	return value, nil
}

var (
	urlPassword = regexp.MustCompile(`^[a-z]+://[^/@]*:[^/@]+@`)
	keyPassword = regexp.MustCompile(`(?i)(^|[\s?&])(password|sslpassword)\s*=`)
)

func hasPassword(conninfo string) bool {
	return urlPassword.MatchString(conninfo) || keyPassword.MatchString(conninfo)
}

// parseInterval reads a duration; "off" is 0.
func parseInterval(text string) (time.Duration, error) {
	if text == "off" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < time.Second {
		return 0, fmt.Errorf("%q: must be off or a duration of at least 1s", text)
	}
	return d, nil
}

// parseBytes reads a number of bytes such as 512MiB.
func parseBytes(text string) (int64, error) {
	units := []struct {
		suffix string
		factor int64
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"", 1}}
	for _, u := range units {
		digits, ok := strings.CutSuffix(text, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || n <= 0 || n > (1<<62)/u.factor {
			break
		}
		return n * u.factor, nil
	}
	return 0, fmt.Errorf("%q: must be a number of bytes such as 1073741824, 512MiB or 1GiB", text)
}
