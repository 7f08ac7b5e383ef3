package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
)

// Quarantine knows which collectors have so many dead letters that no more
// batches should be taken from them: one that sends nothing but what cannot be
// stored would else fill the dead letters for all.
type Quarantine struct {
	bus     *Bus
	quota   uint64
	over    atomic.Pointer[map[uuid.UUID]uint64] // letters of those in quarantine; replaced, never changed
	seen    lettersState
	failing bool
}

// lettersState changes whenever a letter comes or goes, and when the stream of
// letters is made anew.
type lettersState struct {
	created               time.Time
	messages, first, last uint64
}

// Quarantine returns the quarantine for collectors with quota letters or more.
// Without Run it knows of none.
func (b *Bus) Quarantine(quota uint64) *Quarantine {
	q := &Quarantine{bus: b, quota: quota}
	q.over.Store(&map[uuid.UUID]uint64{})
	return q
}

// Quarantined reports from memory whether a collector has reached the quota. It
// may be called concurrently, and is behind the dead letters by ConfirmEvery.
func (q *Quarantine) Quarantined(collector uuid.UUID) bool {
	_, ok := (*q.over.Load())[collector]
	return ok
}

// Run follows the dead letters until ctx ends, and then returns nil. While
// they cannot be counted what was known stands.
func (q *Quarantine) Run(ctx context.Context) error {
	tick := time.NewTicker(q.bus.cfg.ConfirmEvery)
	defer tick.Stop()
	for {
		err := q.look(ctx)
		if err != nil && !q.failing && ctx.Err() == nil {
			q.bus.log.Warn("dead letters cannot be counted, the quarantine stays as it is", "err", err)
		}
		q.failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look counts the letters if any came or went. The state is that from before
// the count, so what changes meanwhile is counted the next time.
func (q *Quarantine) look(ctx context.Context) error {
	state, err := q.state(ctx)
	if err != nil || state == q.seen {
		return err
	}
	over, err := countLetters(q.bus.names.dead, func(offset int) (letterPage, error) { return q.page(ctx, offset) })
	if err != nil {
		return err
	}
	for collector, letters := range over {
		if letters < q.quota {
			delete(over, collector)
		}
	}
	q.change(over)
	q.seen = state
	return nil
}

func (q *Quarantine) state(ctx context.Context) (lettersState, error) {
	ctx, done := q.bus.request(ctx)
	defer done()
	stream, err := q.bus.js.Stream(ctx, q.bus.names.deadLetters)
	if err != nil {
		return lettersState{}, unavailable("ask for stream "+q.bus.names.deadLetters, err)
	}
	info := stream.CachedInfo()
	return lettersState{info.Created, info.State.Msgs, info.State.FirstSeq, info.State.LastSeq}, nil
}

// change puts the new ones in quarantine and lets the others go.
func (q *Quarantine) change(over map[uuid.UUID]uint64) {
	old := *q.over.Swap(&over)
	q.bus.metrics.quarantined.Set(float64(len(over)))
	for collector, letters := range over {
		if _, ok := old[collector]; !ok {
			q.bus.log.Error("collector is in quarantine until some of its dead letters are retried or discarded",
				"collector_id", collector, "letters", letters, "quota", q.quota)
		}
	}
	for collector := range old {
		if _, ok := over[collector]; !ok {
			q.bus.log.Info("collector is out of quarantine", "collector_id", collector)
		}
	}
}

// letterPage is a part of the subjects of all letters.
type letterPage struct {
	Error *jetstream.APIError `json:"error"`
	Total int                 `json:"total"` // subjects on all pages
	State struct {
		Subjects map[string]uint64 `json:"subjects"` // letters by subject
	} `json:"state"`
}

// page asks for the subjects from offset on. The client library has a call for
// this that gathers all pages: as many as a gibibyte of small letters has, that
// is more than a gateway should take. A page has 100,000 at most; that took
// 1.3 s on a machine with six times the work that it had processors for.
func (q *Quarantine) page(ctx context.Context, offset int) (letterPage, error) {
	ctx, done := q.bus.request(ctx)
	defer done()
	request, err := json.Marshal(map[string]any{"subjects_filter": q.bus.names.dead + ">", "offset": offset})
	if err != nil {
		return letterPage{}, err
	}
	answer, err := q.bus.nc.RequestWithContext(ctx, "$JS.API.STREAM.INFO."+q.bus.names.deadLetters, request)
	if err != nil {
		return letterPage{}, unavailable("list the letters", err)
	}
	var page letterPage
	if err := json.Unmarshal(answer.Data, &page); err != nil {
		return letterPage{}, fmt.Errorf("read the list of letters: %w", err)
	}
	if page.Error != nil {
		return letterPage{}, unavailable("list the letters", page.Error)
	}
	return page, nil
}

// countLetters counts the letters per collector, page by page.
func countLetters(prefix string, page func(offset int) (letterPage, error)) (map[uuid.UUID]uint64, error) {
	counts := map[uuid.UUID]uint64{}
	for offset := 0; ; {
		p, err := page(offset)
		if err != nil {
			return nil, err
		}
		for subject, letters := range p.State.Subjects {
			if collector, ok := letterCollector(prefix, subject); ok {
				counts[collector] += letters
			}
		}
		offset += len(p.State.Subjects)
		if len(p.State.Subjects) == 0 || offset >= p.Total {
			return counts, nil
		}
	}
}

// letterCollector returns whose letter lies on a subject.
func letterCollector(prefix, subject string) (uuid.UUID, bool) {
	rest, ok := strings.CutPrefix(subject, prefix)
	token, _, _ := strings.Cut(rest, ".")
	collector, err := uuid.Parse(token)
	if !ok || err != nil {
		return uuid.Nil, false
	}
	return collector, true
}
