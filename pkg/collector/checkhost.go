package collector

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/collector/hostread"
	"pganalytics/pkg/collector/logread"
	"pganalytics/pkg/policy"
)

// host reads the host's families once.
func (f *Findings) host(ctx context.Context, cfg *Config, cat *catalogue.Catalogue) {
	if cfg.Host.Off {
		f.note("host: switched off")
		return
	}
	h := HostFinding{Name: cfg.Host.Name, Families: []FamilyFinding{}}
	host := cfg.host(cat, policy.Document{})
	for _, t := range hostread.New(host, cat, slog.New(slog.DiscardHandler), hostread.NewMetrics(prometheus.NewRegistry()), nil).Try(ctx) {
		finding := FamilyFinding{Family: t.Family, State: collected, Every: t.Interval.Seconds(), Rows: t.Rows, Millis: float64(t.Took.Microseconds()) / 1000}
		if t.Err != nil {
			finding.State, finding.Fault, finding.Reason = fails, true, t.Err.Error()
		}
		h.Families = append(h.Families, finding)
	}
	f.Host = &h
}

// logs looks whether a server's log files can be read.
func (c *checker) logs(f *ServerFinding, files string) {
	family, known := c.catalogue.Family(logread.Family)
	if !known {
		return
	}
	finding := FamilyFinding{Family: logread.Family, State: off}
	reading, on := c.cfg.Families[logread.Family]
	switch {
	case !on:
		finding.Reason = c.unchosen(family)
	case files == "":
		finding.Reason = "log_files is not set for this server"
	default:
		began := time.Now()
		follower, err := logread.New(files)
		if err == nil {
			_, err = follower.Read()
		}
		finding.State, finding.Every, finding.Millis = collected, reading.Interval.Seconds(), float64(time.Since(began).Microseconds())/1000
		if err != nil {
			finding.State, finding.Fault, finding.Reason = fails, true, err.Error()
		}
	}
	f.Families = append(f.Families, finding)
}
