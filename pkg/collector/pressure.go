package collector

import (
	"log/slog"
	"sync"

	"pganalytics/pkg/catalogue"
	"pganalytics/pkg/collector/spool"
)

// How full the spool may be, by its bound or its volume, for families of these
// presets to be read: a long outage costs first what matters least, and what
// tells that a server is well is read until the spool is full.
const (
	exhaustiveUntil = 0.70
	standardUntil   = 0.85

	// ease is how much emptier it must be for them to be read again, or every
	// batch that is sent would change what is read.
	ease = 0.05
)

// pressure tells what is still read while the spool fills.
type pressure struct {
	stats   func() spool.Stats
	log     *slog.Logger
	metrics *metrics

	mu    sync.Mutex
	level catalogue.Preset // read up to
}

func newPressure(stats func() spool.Stats, log *slog.Logger, m *metrics) *pressure {
	return &pressure{stats: stats, log: log, metrics: m, level: catalogue.Exhaustive}
}

// upTo returns the largest preset whose families are read now.
func (p *pressure) upTo() catalogue.Preset {
	st := p.stats()
	used := st.Fill()
	p.mu.Lock()
	defer p.mu.Unlock()
	level := readable(used)
	if level > p.level {
		level = max(p.level, readable(used+ease))
	}
	if level == p.level {
		return level
	}
	args := []any{"read_up_to", level, "before", p.level, "spool_fill", used, "spool_bytes", st.Used(), "spool_max_bytes", st.MaxBytes}
	if level < p.level {
		p.log.Error("the spool fills; what matters less is no longer read", args...)
	} else {
		p.log.Info("the spool empties; more is read again", args...)
	}
	p.level = level
	p.metrics.heldBack.Set(float64(catalogue.Exhaustive - level))
	return level
}

func readable(used float64) catalogue.Preset {
	switch {
	case used <= exhaustiveUntil:
		return catalogue.Exhaustive
	case used <= standardUntil:
		return catalogue.Standard
	}
	return catalogue.Minimal
}
