package collector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/collector/pgread"
	"pganalytics/pkg/collector/spool"
	"pganalytics/pkg/collector/uplink"
	"pganalytics/pkg/policy"
)

// Findings are what a check of a collector found.
type Findings struct {
	Collector string          `json:"collector"` // name and id; empty: not enrolled
	Gateway   string          `json:"gateway"`   // its URL
	Notes     []string        `json:"notes"`     // what works, and what is worth knowing
	Faults    []string        `json:"faults"`    // what keeps the collector itself from working
	Servers   []ServerFinding `json:"servers"`
	Host      *HostFinding    `json:"host,omitempty"` // nil: it is not read
}

// HostFinding is about the collector's own host.
type HostFinding struct {
	Name     string          `json:"name"` // of the server that its rows are stored under
	Families []FamilyFinding `json:"families"`
}

// ServerFinding is about one server.
type ServerFinding struct {
	Name     string          `json:"name"`
	Version  string          `json:"version"`
	Role     string          `json:"role"` // primary or standby
	User     string          `json:"user"`
	Notes    []string        `json:"notes"`
	Faults   []string        `json:"faults"`
	Families []FamilyFinding `json:"families"`
}

// What is said of a family.
const (
	collected = "collected"
	off       = "off"
	fails     = "fails"
)

// FamilyFinding is about one family in one database.
type FamilyFinding struct {
	Family   string  `json:"family"`
	Database string  `json:"database"` // empty for scope instance
	State    string  `json:"state"`    // collected, off or fails
	Every    float64 `json:"every_seconds"`
	Rows     int     `json:"rows"`
	Millis   float64 `json:"milliseconds"`
	Reason   string  `json:"reason"` // why not, and what to do
	Fault    bool    `json:"fault"`  // the configuration names the family, so it should work
}

// Check looks whether the collector can work: its own directories, the way to
// the gateway unless that is not wanted, every server, and each family by
// reading it once. An error means that ctx has ended.
func Check(ctx context.Context, cfg Config, cat *catalogue.Catalogue, offline bool) (*Findings, error) {
	f := &Findings{Notes: []string{}, Faults: []string{}, Servers: []ServerFinding{}}
	id := f.identity(cfg.StateDir)
	cfg.setDefaults(id)
	f.spool(cfg.Spool)
	if id != nil && !offline {
		f.gateway(ctx, id, cfg.StateDir)
	}
	readers := cfg.readers(cat, policy.Document{})
	for _, s := range cfg.Servers {
		c := checker{catalogue: cat, named: policy.Merge(s.Policy, cfg.Policy), cfg: readers[s.Name]}
		finding := c.server(ctx)
		c.logs(&finding, s.LogFiles)
		finding.sort()
		f.Servers = append(f.Servers, finding)
	}
	f.host(ctx, &cfg, cat)
	return f, ctx.Err()
}

// Bad returns how many faults there are.
func (f *Findings) Bad() int {
	n := len(f.Faults)
	for _, s := range f.Servers {
		n += len(s.Faults) + bad(s.Families)
	}
	if f.Host != nil {
		n += bad(f.Host.Families)
	}
	return n
}

func bad(families []FamilyFinding) (n int) {
	for _, f := range families {
		if f.Fault {
			n++
		}
	}
	return n
}

func (s *ServerFinding) sort() {
	slices.SortStableFunc(s.Families, func(a, b FamilyFinding) int { return cmp.Compare(a.Family, b.Family) })
}

func (f *Findings) note(format string, args ...any) {
	f.Notes = append(f.Notes, fmt.Sprintf(format, args...))
}
func (f *Findings) fault(format string, args ...any) {
	f.Faults = append(f.Faults, fmt.Sprintf(format, args...))
}

// identity looks at the state directory.
func (f *Findings) identity(dir string) *uplink.Identity {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		f.note("state directory %s: not there; collector enroll makes it", dir)
		return nil
	}
	if err != nil {
		f.fault("state directory: %v", err)
		return nil
	}
	if unix.Access(dir, unix.W_OK) != nil {
		f.fault("state directory %s: cannot be written to", dir)
	}
	if info.Mode().Perm()&0o077 != 0 {
		f.fault("state directory %s has mode %04o, and holds the collector's key: make it 0700", dir, info.Mode().Perm())
	}
	id, err := uplink.LoadIdentity(dir)
	if errors.Is(err, uplink.ErrNotEnrolled) {
		f.note("state directory %s: not enrolled yet", dir)
		return nil
	}
	if err != nil {
		f.fault("identity: %v", err)
		return nil
	}
	f.Collector, f.Gateway = fmt.Sprintf("%s (%s)", id.Name, id.CollectorID), id.CollectorURL
	until := id.Certificate.Leaf.NotAfter
	f.note("certificate: until %s", until.UTC().Format(time.RFC3339))
	if until.Before(time.Now()) {
		f.fault("the certificate has ended: enrol again")
	}
	return id
}

// spool looks for room.
func (f *Findings) spool(cfg spool.Config) {
	limit := cfg.MaxBytes
	if limit == 0 {
		limit = spool.DefaultMaxBytes
	}
	stats, err := spool.Inspect(cfg.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.fault("spool %s: %v", cfg.Dir, err)
		return
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(existing(cfg.Dir), &disk); err != nil {
		f.fault("spool %s: %v", cfg.Dir, err)
		return
	}
	free, used := int64(disk.Bavail*uint64(disk.Bsize)), stats.Used()
	f.note("spool %s: %s of %s used, %s free on its disk", cfg.Dir, mebibytes(used), mebibytes(limit), mebibytes(free))
	switch {
	case free < minSpoolBytes:
		f.fault("spool %s: its disk is full", cfg.Dir)
	case free < limit-used:
		f.note("spool %s: its disk has less room than max_bytes; collecting stops when the disk is full", cfg.Dir)
	}
}

// existing returns the directory or the nearest one above it that is there.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

func mebibytes(n int64) string { return fmt.Sprintf("%d MiB", n>>20) }

// gatewayTime bounds how long the gateway is waited for.
const gatewayTime = 15 * time.Second

func (f *Findings) gateway(ctx context.Context, id *uplink.Identity, stateDir string) {
	ctx, cancel := context.WithTimeout(ctx, gatewayTime)
	defer cancel()
	client := uplink.NewClient(id, stateDir, prometheus.NewRegistry())
	defer client.Close()
	if err := client.Check(ctx); err != nil {
		f.fault("gateway: %v", err)
		return
	}
	f.note("gateway: takes this collector's certificate and token")
}

// checker looks at one server.
type checker struct {
	catalogue *catalogue.Catalogue
	named     policy.Policy // what the configuration says
	cfg       pgread.Config // what comes of it
}

func (c *checker) server(ctx context.Context) ServerFinding {
	f := ServerFinding{Name: c.cfg.Name, Notes: []string{}, Faults: []string{}, Families: []FamilyFinding{}}
	server, err := pgread.NewServer(c.cfg, c.catalogue, slog.New(slog.DiscardHandler), pgread.NewMetrics(prometheus.NewRegistry()), nil)
	if err == nil {
		var report *pgread.Report
		if report, err = server.Check(ctx); err == nil {
			c.report(&f, report)
			return f
		}
	}
	f.Faults = append(f.Faults, err.Error())
	return f
}

func (c *checker) report(f *ServerFinding, r *pgread.Report) {
	f.Version, f.User, f.Role = r.Version, r.User, "primary"
	if r.Standby {
		f.Role = "standby"
	}
	switch {
	case r.Superuser:
		f.Notes = append(f.Notes, "role "+r.User+" is a superuser, and needs pg_monitor only: see collector setup-sql")
	case !r.Monitor:
		f.Notes = append(f.Notes, "role "+r.User+" is not in pg_monitor, so much is hidden from it: grant pg_monitor to it")
	}
	for _, e := range r.Extensions {
		note := fmt.Sprintf("extension %s %s in database %s", e.Name, e.Version, e.Database)
		if e.Version != e.Available {
			note += fmt.Sprintf(": version %s is there, alter extension %s update", e.Available, e.Name)
		}
		f.Notes = append(f.Notes, note)
	}
	for _, family := range r.Families {
		f.Families = append(f.Families, c.family(family, r))
	}
	for _, family := range c.catalogue.Families() {
		if _, on := c.cfg.Families[family.Name]; !on && len(family.Queries) > 0 {
			f.Families = append(f.Families, FamilyFinding{Family: family.Name, State: off, Reason: c.unchosen(family)})
		}
	}
}

// family says what came of reading one.
func (c *checker) family(r pgread.FamilyReport, server *pgread.Report) FamilyFinding {
	setting, named := c.named.Families[r.Family]
	f := FamilyFinding{
		Family: r.Family, Database: r.Database, State: collected, Rows: r.Rows,
		Every: c.cfg.Families[r.Family].Interval.Seconds(), Millis: float64(r.Took.Microseconds()) / 1000,
	}
	switch {
	case r.Err != nil:
		f.State, f.Fault, f.Reason = fails, true, r.Err.Error()
		if pg, ok := errors.AsType[*pgconn.PgError](r.Err); ok && pg.Code == "42501" && !server.Monitor {
			f.Reason += "; grant pg_monitor to the role"
		}
	case r.Off != nil:
		f.State, f.Reason = off, r.Off.String()+c.remedy(r.Family, *r.Off, server)
		f.Fault = named && !setting.Off && r.Off.Reason != pgread.TextsAreOff
	}
	return f
}

// remedy says what to do about it.
func (c *checker) remedy(family string, o pgread.Off, server *pgread.Report) string {
	switch o.Reason {
	case pgread.NoFunction, pgread.NoPrivilege:
		if f, ok := c.catalogue.Family(family); !ok || f.Setup == "" {
			return "" // whoever wrote the family knows
		}
		return ": run there what collector setup-sql prints"
	case pgread.NotTrusted:
		if f, ok := c.catalogue.Family(family); !ok || f.Setup == "" {
			return ": make it security definer, or give it to a superuser"
		}
		return ": look at who made it and drop it with its schema; then run there, as a superuser or a member of pg_monitor, what collector setup-sql prints"
	case pgread.NoExtension:
		var elsewhere []string
		for _, e := range server.Extensions {
			if e.Name == o.Needs {
				elsewhere = append(elsewhere, e.Database)
			}
		}
		if len(elsewhere) > 0 {
			return ": it is in " + strings.Join(elsewhere, ", ") + "; name that one in the conninfo, or create it"
		}
		return ": create extension " + o.Needs
	}
	return ""
}

// unchosen says why the configuration leaves a family out.
func (c *checker) unchosen(f *catalogue.Family) string {
	if c.named.Families[f.Name].Off {
		return "switched off"
	}
	preset := c.named.Preset
	if preset == 0 {
		preset = catalogue.Standard
	}
	return fmt.Sprintf("not in preset %s", preset)
}
