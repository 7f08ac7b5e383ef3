package collector

import (
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/collector/hostread"
	"pganalytics/pkg/collector/logread"
	"pganalytics/pkg/collector/pgread"
	"pganalytics/pkg/policy"
)

// sources returns everything that is to be read, by where it is.
func (c *Config) sources(cat *catalogue.Catalogue, pulled policy.Document) map[place]any {
	sources := map[place]any{}
	for name, r := range c.readers(cat, pulled) {
		sources[place{postgres, name}] = r
	}
	for _, l := range c.logs(cat, pulled) {
		sources[place{logFiles, l.Server}] = l
	}
	if !c.Host.Off {
		h := c.host(cat, pulled)
		sources[place{host, h.Name}] = h
	}
	return sources
}

// readers returns what is to be read from each server.
func (c *Config) readers(cat *catalogue.Catalogue, pulled policy.Document) map[string]pgread.Config {
	readers := make(map[string]pgread.Config, len(c.Servers))
	for _, s := range c.Servers {
		chosen := c.chosen(pulled, s.Name, s.Policy)
		r := s.Config
		r.Families = chosen.Resolve(cat)
		r.Include, r.Exclude = chosen.Databases.Include, chosen.Databases.Exclude
		readers[s.Name] = r
	}
	return readers
}

// logs returns what is to be read of the servers' log files.
func (c *Config) logs(cat *catalogue.Catalogue, pulled policy.Document) []logread.Config {
	var logs []logread.Config
	for _, s := range c.Servers {
		reading, on := c.chosen(pulled, s.Name, s.Policy).Resolve(cat)[logread.Family]
		if on && s.LogFiles != "" {
			logs = append(logs, logread.Config{Server: s.Name, Files: s.LogFiles, Interval: reading.Interval})
		}
	}
	return logs
}

// host returns what is to be read of the collector's host.
func (c *Config) host(cat *catalogue.Catalogue, pulled policy.Document) hostread.Config {
	h := hostread.Config{Name: c.Host.Name, Intervals: map[string]time.Duration{}}
	for family, reading := range c.chosen(pulled, h.Name, policy.Policy{}).Resolve(cat) {
		if slices.Contains(hostread.Families(), family) {
			h.Intervals[family] = reading.Interval
		}
	}
	return h
}

// chosen returns the policy of a server: the pulled one of the server, the
// pulled one of all, the server's own, and that of all, the stronger first.
func (c *Config) chosen(pulled policy.Document, server string, own policy.Policy) policy.Policy {
	return policy.Merge(pulled.Servers[server], pulled.Policy, own, c.Policy)
}

// desk opens sources. All hand over to the same channel.
type desk struct {
	collectorID uuid.UUID
	catalogue   *catalogue.Catalogue
	upTo        func() catalogue.Preset
	log         *slog.Logger
	out         chan<- []batch.Section

	servers *pgread.Metrics
	logs    *logread.Metrics
	hosts   *hostread.Metrics
}

func newDesk(collectorID uuid.UUID, cat *catalogue.Catalogue, upTo func() catalogue.Preset, log *slog.Logger, reg prometheus.Registerer, out chan<- []batch.Section) *desk {
	return &desk{
		collectorID: collectorID, catalogue: cat, upTo: upTo, log: log, out: out,
		servers: pgread.NewMetrics(reg), logs: logread.NewMetrics(reg), hosts: hostread.NewMetrics(reg),
	}
}

func (d *desk) open(source any) (runner, error) {
	switch cfg := source.(type) {
	case pgread.Config:
		cfg.CollectorID, cfg.UpTo = d.collectorID, d.upTo
		return pgread.NewServer(cfg, d.catalogue, d.log, d.servers, d.out)
	case logread.Config:
		cfg.CollectorID, cfg.UpTo = d.collectorID, d.upTo
		return logread.NewReader(cfg, d.catalogue, d.log, d.logs, d.out)
	case hostread.Config:
		cfg.CollectorID, cfg.UpTo = d.collectorID, d.upTo
		return hostread.New(cfg, d.catalogue, d.log, d.hosts, d.out), nil
	}
	return nil, fmt.Errorf("no source: %T", source)
}

// forget ends the metrics of a place where nothing is read any more.
func (d *desk) forget(at place) {
	switch at.kind {
	case postgres:
		d.servers.Forget(at.server)
	case logFiles:
		d.logs.Forget(at.server)
	}
}
